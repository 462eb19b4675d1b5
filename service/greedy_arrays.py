"""Greedy search of many rows at once, where nothing special is asked for: the commonest case, in NumPy.

Axes: B rows, G greedy rows.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from service.rows import RowStore
from service.runner import StepOutputs
from service.search import LOOP_CHECK_INTERVAL, MIN_LOOP_CHECK_TOKENS


def next_look(length: int, limit: int) -> int:
    """The length at which a greedy row of `length` tokens is to be looked at again: it may loop, or reaches `limit`."""
    check = max((length // LOOP_CHECK_INTERVAL + 1) * LOOP_CHECK_INTERVAL, MIN_LOOP_CHECK_TOKENS)
    return min(check, limit)


def advance_greedy(
    store: RowStore, rows: npt.NDArray[np.int64] | None, outputs: StepOutputs, eos_id: int
) -> npt.NDArray[np.int64]:
    """Every row takes its best token.

    Args:
        rows: [G] rows of greedy lanes; None: all rows are.

    Returns:
        Which rows ask for a look: they have ended, may loop, or their numbers are broken. A row whose numbers are
        broken has not been advanced.
    """
    which = slice(0, store.num_rows) if rows is None else rows
    ids = outputs.candidate_ids[which, 0]  # [G]
    values = outputs.candidate_log_probabilities[which, 0]  # [G]
    if not math.isfinite(values.sum(dtype=np.float64)):  # which no sum of finite float32 leaves
        return _advance_sound(store, rows, outputs, eos_id)
    lengths = store.append_each(which, ids, values)  # [G]
    asks: npt.NDArray[np.int64] = ((ids == eos_id) | (lengths >= store.looks[which])).nonzero()[0]
    return asks if rows is None else rows[asks]


def _advance_sound(
    store: RowStore, rows: npt.NDArray[np.int64] | None, outputs: StepOutputs, eos_id: int
) -> npt.NDArray[np.int64]:
    """`advance_greedy` where the numbers of some rows are broken."""
    if rows is None:
        rows = np.arange(store.num_rows)
    is_sound = np.isfinite(outputs.candidate_log_probabilities[rows, 0])  # [G]
    sound = rows[is_sound]
    asks = advance_greedy(store, sound, outputs, eos_id) if sound.size else sound
    return np.concatenate([rows[~is_sound], asks])
