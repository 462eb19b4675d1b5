"""Greedy and beam search of many lanes of one beam size at once, with the usual options, in NumPy.

It comes to what `service.search` comes to one lane at a time. What arrays cannot tell for sure (broken numbers, equal
adjusted scores, a choice for which the candidates may not be enough) is left to it.
Axes: N lanes, K beam size, C candidates, W continuations that are ranked, V vocabulary, M target positions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence as Row
from functools import lru_cache
from itertools import chain
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from service.adjust_arrays import adjust_candidates
from service.lane import Lane
from service.options import MAX_BEAM_SIZE
from service.rows import RowStore
from service.runner import StepOutputs
from service.search import Child, Search

Numbers = npt.NDArray[np.int64]
Scores = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]
_EVERY = np.arange(MAX_BEAM_SIZE)
_IS_EARLIER = np.tri(MAX_BEAM_SIZE, k=-1, dtype=np.bool_)  # [K,K]


class Advanced(NamedTuple):
    """What one step came to."""

    special: list[Lane]
    """Lanes that were not touched: `service.search` is to advance them."""
    over: list[Lane]
    """Lanes whose search is over, to be concluded."""
    going: list[Lane]
    """Lanes that go on."""
    copies: list[tuple[int, int, int, int]]
    """What the runner has to copy, as in `service.rows.RowCopy`."""


class _Ranked(NamedTuple):
    """Every lane's candidates, and the best of them."""

    ids: Numbers
    """[N,K,C]."""
    values: npt.NDArray[np.float32]
    """[N,K,C] the model's own log-probabilities."""
    scores: Scores
    """[N,K*C] search scores with them."""
    best: Numbers
    """[N,W] places among all N*K*C, those of a lane best first."""
    is_unsure: Flags
    """[N] whether the best of a lane may be others, or in another order."""

    def parents(self, places: Numbers) -> Numbers:
        """Places among all N*K hypotheses of those that the candidates at these places continue."""
        parents: Numbers = places // self.ids.shape[2]
        return parents


def advance_lanes(search: Search, store: RowStore, lanes: Row[Lane], size: int, outputs: StepOutputs) -> Advanced:
    """One step of lanes of beam size `size` for each of which `Lane.in_arrays` holds; the store has noted it."""
    each = [lane.open if len(lane.open) == size else lane.open_rows_first() for lane in lanes]
    rows = np.array(list(chain.from_iterable(each))).reshape(-1, size)  # [N,K]
    firsts = rows[:, 0]
    lengths = store.lengths[firsts]  # [N]
    ranked = _rank(store, lanes, rows, lengths, outputs, eos_id=search.eos_id)

    # Of a lane's first K continuations those that end are kept; the first K that do not end go on.
    best = ranked.best  # [N,W]
    is_end = ranked.ids.take(best) == search.eos_id  # [N,W]
    is_last = lengths + 1 >= store.limits[firsts]  # [N]
    if is_last.any():
        is_end |= is_last[:, None]
    asks = ranked.is_unsure.tolist()
    if is_end.any():
        numbers, ranks = np.nonzero(is_end[:, :size])
        for number, place in zip(numbers.tolist(), best[numbers, ranks].tolist(), strict=True):
            if not asks[number]:
                search.end(lanes[number], _child(ranked, place, rows))
        first_going = is_end.argsort(axis=1, kind="stable")[:, :size]  # [N,K]
        goes_on = (~is_end.all(axis=1)).tolist()
        children = best.take(first_going + _first_places(len(lanes), best.shape[1]))  # [N,K]
    else:
        goes_on = [True] * len(lanes)
        children = best[:, :size]
    best_open = ranked.scores.take(children[:, 0]).tolist()
    special: list[Lane] = []
    over: list[Lane] = []
    going: list[Lane] = []
    chosen: list[int] = []
    for number, lane in enumerate(lanes):
        if asks[number]:
            special.append(lane)
        elif not goes_on[number] or (lane.ended and lane.is_decided(best_open[number])):
            over.append(lane)
        else:
            going.append(lane)
            chosen.append(number)
    copies: list[tuple[int, int, int, int]] = []
    if going:
        if len(going) < len(lanes):
            children = children[chosen]
        copies = _settle(store, going, rows, children, ranked)
    return Advanced(special, over, going, copies)


@lru_cache(maxsize=256)
def _first_places(num_lanes: int, per_lane: int) -> Numbers:
    """Where each lane's first of `per_lane` places stands; [N,1]."""
    return np.arange(num_lanes)[:, None] * per_lane


def _child(ranked: _Ranked, place: int, rows: Numbers) -> Child:
    """The continuation at a place."""
    return Child(
        int(rows.take(place // ranked.ids.shape[2])),
        int(ranked.ids.take(place)),
        float(ranked.values.take(place)),
        float(ranked.scores.take(place)),
    )


def _rank(
    store: RowStore, lanes: Row[Lane], rows: Numbers, lengths: Numbers, outputs: StepOutputs, *, eos_id: int
) -> _Ranked:
    """The best continuations; twice as many as hypotheses, because one of each hypothesis may end it."""
    num_lanes, size = rows.shape
    wanted = 1 if size == 1 else 2 * size  # W
    vocabulary_size = outputs.log_probabilities.shape[1]
    adjusted = [number for number, lane in enumerate(lanes) if lane.adjuster is not None]
    num_candidates = outputs.candidate_ids.shape[1]
    if not adjusted:
        num_candidates = min(wanted, num_candidates)
    ids = outputs.candidate_ids[rows, :num_candidates]  # [N,K,C]
    own = outputs.candidate_log_probabilities[rows, :num_candidates]  # [N,K,C]
    values: Scores = own.astype(np.float64)
    so_far = store.scores[rows]  # [N,K]
    is_unsure = np.zeros(num_lanes, np.bool_)
    num_open = [len(lane.open) for lane in lanes]
    is_full = min(num_open) == size
    if not is_full:
        is_closed = np.arange(size) >= np.array(num_open)[:, None]  # [N,K]
        so_far[is_closed] = -np.inf
        values[is_closed] = 0.0  # whatever it is
    if not math.isfinite(values[:, :, 0].sum()):
        is_broken = ~np.isfinite(values[:, :, 0])  # [N,K]
        is_unsure |= is_broken.any(axis=1)
        values[is_broken] = 0.0
    if adjusted:
        which = slice(None) if len(adjusted) == num_lanes else np.array(adjusted)
        chosen = values[which]  # a view, or a copy
        adjust_candidates(
            [lane.adjuster for lane in lanes if lane.adjuster is not None],
            store.tokens[rows[which], : max(int(lengths.max()), 1)],
            lengths[which],
            ids[which],
            chosen,
            vocabulary_size=vocabulary_size,
            eos_id=eos_id,
        )
        values[which] = chosen

    scores = (so_far[:, :, None] + values).reshape(num_lanes, -1)  # [N,K*C]
    order = (-scores).argsort(axis=1, kind="stable")[:, : wanted + 1]  # [N,W+1] of equal ones the first hypothesis's
    order += _first_places(num_lanes, scores.shape[1])
    best = order[:, :wanted]
    if adjusted or not is_full:
        least = scores.take(best[:, -1])  # [N]
        is_unsure |= np.isneginf(least)
    if adjusted:
        # Equal ones are to stand in the order of their ids; and nothing outside the candidates may pass the last.
        ranked = scores.take(order)  # [N,W+1]
        differs = (ranked[:, 1:] == ranked[:, :-1]).any(axis=1)  # [N]
        differs |= (np.isneginf(values).all(axis=2) & np.isfinite(so_far)).any(axis=1)
        if num_candidates < vocabulary_size:
            differs |= least <= (so_far + own[:, :, -1]).max(axis=1)  # no other token comes to more
        is_unsure[which] |= differs[which]
    return _Ranked(ids, own, scores, best, is_unsure)


def _settle(
    store: RowStore, lanes: Row[Lane], rows: Numbers, children: Numbers, ranked: _Ranked
) -> list[tuple[int, int, int, int]]:
    """Gives every hypothesis that goes on a row and appends its token; what the runner has to copy for it.

    The rule is that of `Lane.rows_of_children`: a hypothesis's first child stays in its row, the others take rows that
    no open hypothesis needs.

    Args:
        lanes: [N'] those that go on.
        rows: [N,K] all rows of all lanes.
        children: [N',K] places of the continuations.
    """
    size = rows.shape[1]
    parents = ranked.parents(children)  # [N',K]
    targets = rows.take(parents)  # [N',K]
    copies: list[tuple[int, int, int, int]] = []
    is_same = parents[:, :, None] == parents[:, None]  # [N',K,K]
    moves = (is_same & _IS_EARLIER[:size, :size]).any(axis=2)  # [N',K] all but a hypothesis's first child
    if moves.any():
        sources = targets[moves]
        firsts = parents[:, :1] // size * size  # [N',1] place of each lane's first hypothesis
        places = firsts + _EVERY[:size]  # [N',K]
        is_parent = (parents[:, :, None] == places[:, None]).any(axis=1)  # [N',K]
        targets[moves] = spare = rows.take(places[~is_parent])  # as many are spare as move, lane by lane
        copies = store.branch_all(sources, spare)
    for lane, row_numbers in zip(lanes, targets.tolist(), strict=True):
        lane.open = row_numbers
    store.append_all(targets, ranked.ids.take(children), ranked.values.take(children), ranked.scores.take(children))
    return copies
