"""The learning rate follows section 5.3 of the paper, scaled to a peak, and cools down with the run's progress."""

from __future__ import annotations

import pytest

from training.config import TrainConfig
from training.schedule import learning_rate, progress

PAPER = TrainConfig(max_updates=100_000, warmup_updates=4000, peak_learning_rate=(512 * 4000) ** -0.5)


@pytest.mark.parametrize("update", [1, 10, 3999, 4000, 4001, 40_000, 100_000])
def test_inverse_square_root_is_the_papers_formula(update: int) -> None:
    expected = 512**-0.5 * min(update**-0.5, update * 4000**-1.5)  # equation 3
    assert learning_rate(PAPER, update, done=update / 100_000) == pytest.approx(expected)


def test_constant_stays_at_the_peak_after_warm_up() -> None:
    train = TrainConfig(max_updates=100, warmup_updates=10, peak_learning_rate=2.0, schedule="constant")
    assert [learning_rate(train, update, 0.0) for update in (1, 5, 10, 11, 99)] == pytest.approx([0.2, 1, 2, 2, 2])


def test_cooldown_is_a_line_to_zero_over_the_last_share() -> None:
    train = TrainConfig(max_updates=100, warmup_updates=0, peak_learning_rate=2.0, schedule="constant", cooldown=0.4)
    rates = [learning_rate(train, 50, done) for done in (0.0, 0.6, 0.7, 0.8, 0.9, 1.0)]
    assert rates == pytest.approx([2.0, 2.0, 1.5, 1.0, 0.5, 0.0])


def test_progress_takes_the_nearer_end() -> None:
    by_updates = TrainConfig(max_updates=200)
    by_seconds = TrainConfig(max_seconds=50.0)
    by_both = TrainConfig(max_updates=200, max_seconds=50.0)
    assert progress(by_updates, 50, seconds=49.0) == 0.25
    assert progress(by_seconds, 50, seconds=5.0) == 0.1
    assert progress(by_both, 50, seconds=5.0) == 0.25
    assert progress(by_both, 50, seconds=40.0) == 0.8
    assert progress(by_both, 500, seconds=60.0) == 1.0
