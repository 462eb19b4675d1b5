"""Greedy and beam search of many lanes at once, where nothing special is asked for: the common case, in NumPy.

Whatever is not common (a hypothesis ends, a limit is reached) is left to `service.search`, a lane at a time.
Axes: G greedy rows, N lanes, K beam size, C candidates.
"""

from __future__ import annotations

from collections.abc import Sequence as Row

import numpy as np
import numpy.typing as npt

from service.lane import Lane
from service.rows import RowCopy, RowStore
from service.runner import StepOutputs
from service.search import LOOP_CHECK_INTERVAL, MIN_LOOP_CHECK_TOKENS


def advance_greedy(
    store: RowStore, rows: npt.NDArray[np.int64], outputs: StepOutputs, eos_id: int
) -> npt.NDArray[np.bool_]:
    """Every row takes its best token.

    Args:
        rows: [G] rows of greedy lanes.

    Returns:
        [G] which rows ask for a look: they have ended, may loop, or their numbers are broken. A row whose numbers are
        broken has not been advanced.
    """
    is_sound = np.isfinite(outputs.candidate_log_probabilities[rows, 0])  # [G]
    sound = rows if is_sound.all() else rows[is_sound]
    lengths = store.lengths[sound]
    store.tokens[sound, lengths] = store.last_ids[sound] = outputs.candidate_ids[sound, 0]
    store.log_probabilities[sound, lengths] = outputs.candidate_log_probabilities[sound, 0]
    store.lengths[sound] = lengths + 1
    now = store.lengths[rows]  # [G]
    asks: npt.NDArray[np.bool_] = (store.last_ids[rows] == eos_id) | (now >= store.limits[rows]) | ~is_sound
    asks |= (now % LOOP_CHECK_INTERVAL == 0) & (now >= MIN_LOOP_CHECK_TOKENS)
    return asks


def advance_beams(
    store: RowStore, lanes: Row[Lane], size: int, outputs: StepOutputs, eos_id: int
) -> tuple[list[Lane], list[Lane], list[RowCopy]]:
    """One step of lanes of one beam size, all of whose hypotheses are open.

    Returns:
        The lanes that were not advanced, because a hypothesis ends or numbers are broken; those that were; and what
        the runner has to copy.
    """
    rows = np.array([lane.open for lane in lanes])  # [N,K]
    most = min(2 * size, outputs.candidate_ids.shape[1])
    values = outputs.candidate_log_probabilities[rows, :most]  # [N,K,C]
    scores = (store.scores[rows][:, :, None] + values).reshape(len(lanes), -1)  # [N,K*C]
    order = np.argsort(-scores, axis=1, kind="stable")[:, :size]  # [N,K]
    of_lane = np.arange(len(lanes))[:, None]
    chosen_ids = outputs.candidate_ids[rows, :most].reshape(len(lanes), -1)[of_lane, order]  # [N,K]
    chosen_values = values.reshape(len(lanes), -1)[of_lane, order]  # [N,K]
    chosen_scores = scores[of_lane, order]  # [N,K]
    parents = rows[of_lane, order // most]  # [N,K]
    is_special = (chosen_ids == eos_id).any(axis=1)
    is_special |= store.lengths[rows[:, 0]] + 1 >= store.limits[rows[:, 0]]
    is_special |= ~np.isfinite(values[:, :, 0]).all(axis=1)

    special: list[Lane] = []
    advanced: list[Lane] = []
    branches: list[tuple[int, int]] = []
    for lane, asks, of_child in zip(lanes, is_special.tolist(), parents.tolist(), strict=True):
        if asks:
            special.append(lane)
            continue
        advanced.append(lane)
        if len(set(of_child)) == size:  # every hypothesis goes on once: nothing moves
            lane.open = of_child
        else:
            lane.open, made = lane.rows_of_children(of_child)
            branches += made
    copies = store.branch_all([source for source, _ in branches], [target for _, target in branches])
    if advanced:
        goes_on = ~is_special
        targets = np.array([lane.open for lane in advanced])  # [N',K]
        lengths = store.lengths[targets]  # [N',K]
        store.tokens[targets, lengths] = chosen_ids[goes_on]
        store.log_probabilities[targets, lengths] = chosen_values[goes_on]
        store.last_ids[targets] = chosen_ids[goes_on]
        store.lengths[targets] = lengths + 1
        store.scores[targets] = chosen_scores[goes_on]
    return special, advanced, copies
