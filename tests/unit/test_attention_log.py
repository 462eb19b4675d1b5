"""The attention of a hypothesis is found by its cells, whatever rows it was in and however wide the steps were."""

from __future__ import annotations

import numpy as np

from service.attention_log import AttentionLog


def test_attention_is_found_by_cells() -> None:
    chance = np.random.default_rng(0)
    steps = [chance.random((rows, width)).astype(np.float32) for rows, width in ((3, 5), (2, 4), (4, 6))]
    log = AttentionLog()
    first_cells = [10, 13, 15]
    for first, weights in zip(first_cells, steps, strict=True):
        log.add(first, weights)
    found = log.of(np.array([12, 13, 18]), 4)  # rows 2, 0 and 3
    np.testing.assert_array_equal(found, [steps[0][2, :4], steps[1][0], steps[2][3, :4]])
    np.testing.assert_array_equal(log.of(np.array([14, 15]), 2), [steps[1][1, :2], steps[2][0, :2]])  # began later


def test_old_steps_are_let_go_of() -> None:
    log = AttentionLog()
    for first in (0, 2, 4):
        log.add(first, np.full((2, 3), first, np.float32))
    log.forget_before(2)
    assert len(log) == 2
    np.testing.assert_array_equal(log.of(np.array([3, 4]), 1), [[2.0], [4.0]])
    log.forget_before(6)
    assert len(log) == 0
    log.add(6, np.zeros((1, 1), np.float32))
    log.clear()
    assert len(log) == 0
