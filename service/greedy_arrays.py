"""Greedy search of many rows at once, where nothing special is asked for: the commonest case, in NumPy.

Axes: B rows, G greedy rows, T steps of a run.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from service.rows import RowStore
from service.runner import GreedyOutputs, StepOutputs
from service.search import LOOP_CHECK_INTERVAL, MIN_LOOP_CHECK_TOKENS


@lru_cache(maxsize=256)
def _rows(num_rows: int) -> npt.NDArray[np.int64]:
    return np.arange(num_rows)


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


def advance_steps(store: RowStore, outputs: GreedyOutputs, eos_id: int) -> tuple[npt.NDArray[np.int64], list[int]]:
    """Every row takes its tokens of a run of several steps, up to where it has to be looked at.

    Returns:
        How many tokens each row took [B], and which rows ask for a look: they have ended, may loop, or their next
        number is broken.
    """
    ids, values = outputs
    num_rows, num_steps = ids.shape
    stops = (ids == eos_id) | ~np.isfinite(values)  # [B,T]
    room = store.looks[:num_rows] - store.lengths[:num_rows]  # [B] at least 1
    counts = np.minimum(room, num_steps).astype(np.int64)
    if stops.any():
        first = stops.argmax(axis=1)  # [B] 0 also where there is none
        has_stop = stops[_rows(num_rows), first]
        is_end = ids[_rows(num_rows), first] == eos_id  # an end is taken, a broken number is not
        is_end &= np.isfinite(values[_rows(num_rows), first])
        counts = np.where(has_stop, np.minimum(counts, first + is_end), counts)
    lengths = store.append_steps(ids, values, counts)
    asks = (counts < num_steps) | (lengths >= store.looks[:num_rows]) | (store.last_ids[:num_rows] == eos_id)
    return counts, asks.nonzero()[0].tolist()
