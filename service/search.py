"""Which hypotheses of a lane go on with which tokens, and which end: one lane at a time, with every option.

docs/decoding.md defines the searches. `service.greedy_arrays` and `service.beam_arrays` do the same for many lanes at
once where nothing special is asked for; they give the same results.
"""

from __future__ import annotations

import math
from collections.abc import Sequence as Row
from typing import NamedTuple

from service.adjust import Continuation
from service.attention_log import AttentionLog
from service.draw import draw
from service.lane import Lane
from service.repetition import find_loop, unlooped_length
from service.request import FinishReason
from service.rows import RowCopy, RowStore
from service.runner import StepOutputs

LOOP_CHECK_INTERVAL = 16
"""A greedy hypothesis is looked at for a loop whenever it has grown by so many tokens."""
MIN_LOOP_CHECK_TOKENS = 32
MANY_ROWS = 16


class SearchError(RuntimeError):
    """The candidates of a row cannot be used: the numbers behind them are broken."""


class Child(NamedTuple):
    """An open hypothesis that goes on with a token."""

    parent_row: int
    token_id: int
    log_probability: float
    """The model's own."""
    score: float
    """Search score with this token."""


class _Step:
    """What a step computed, in the form in which lanes look at it one by one."""

    def __init__(self, outputs: StepOutputs) -> None:
        self.outputs = outputs
        self.log_probabilities = outputs.log_probabilities
        self._num_asked = 0
        self._rows: list[tuple[list[int], list[float]]] | None = None

    def first(self, row: int) -> tuple[int, float]:
        """The best candidate of a row and its log-probability."""
        return int(self.outputs.candidate_ids[row, 0]), float(self.outputs.candidate_log_probabilities[row, 0])

    def candidates(self, row: int) -> tuple[list[int], list[float]]:
        """The candidates of a row and their log-probabilities; those of all rows are made at once when many ask."""
        ids, values = self.outputs.candidate_ids, self.outputs.candidate_log_probabilities
        if self._rows is None:
            self._num_asked += 1
            if self._num_asked <= MANY_ROWS:
                return ids[row].tolist(), values[row].tolist()
            self._rows = list(zip(ids.tolist(), values.tolist(), strict=True))
        return self._rows[row]


class Search:
    """Advances lanes by one token."""

    def __init__(self, store: RowStore, *, eos_id: int) -> None:
        self._store = store
        self.eos_id = eos_id
        self.attention = AttentionLog()
        """What the lanes that keep it attended to."""
        self._step: _Step | None = None

    def begin_step(self, outputs: StepOutputs, *, may_branch: bool = True) -> None:
        """A step of all rows ran, and this is what it computed; `may_branch` as for `RowStore.note_step`."""
        first_cell = self._store.note_step(may_branch=may_branch)
        if outputs.attention is not None:
            self.attention.add(first_cell, outputs.attention)
        self._step = _Step(outputs)

    def advance(self, lane: Lane) -> tuple[bool, list[RowCopy]]:
        """What the step that `begin_step` was told of comes to for `lane`.

        Returns:
            Whether the lane's search is over, and what the runner has to copy before the next step.

        Raises:
            SearchError: when a log-probability is not finite.
        """
        step = self._step
        assert step is not None
        children = self._beam(lane, step) if lane.is_beam else self._independent(lane, step)
        best = max((child.score for child in children), default=None)
        if lane.is_decided(best):
            return self.conclude(lane), []
        copies = self.settle(lane, children)
        if lane.limit >= MIN_LOOP_CHECK_TOKENS:
            self.check_growing_loop(lane)
        return False, copies

    def _beam(self, lane: Lane, step: _Step) -> list[Child]:
        """Steps 1 to 4 of a beam search; the open hypotheses that go on, best first."""
        store, size = self._store, lane.options.beam_size
        position = int(store.lengths[lane.open[0]])
        forced = lane.forced(position)
        if forced is not None:
            return self._force(lane, lane.open[0], forced, step)
        ranked: list[tuple[float, int, int, int, float]] = []
        least = math.inf
        for place, row in enumerate(lane.open):
            score = float(store.scores[row])
            for negative, token_id, value in self._continuations(lane, row, step, 2 * size):
                total = negative - score
                if total > least:  # nor can those after it be among the best
                    break
                ranked.append((total, place, token_id, row, value))
            ranked.sort()
            del ranked[2 * size :]
            if len(ranked) == 2 * size:
                least = ranked[-1][0]
        is_last = position + 1 >= lane.limit
        children: list[Child] = []
        for rank, (negative, _place, token_id, row, value) in enumerate(ranked):
            if token_id == self.eos_id or is_last:
                if rank < size:
                    self.end(lane, Child(row, token_id, value, -negative))
            elif len(children) < size:
                children.append(Child(row, token_id, value, -negative))
        return children

    def _independent(self, lane: Lane, step: _Step) -> list[Child]:
        """Every open hypothesis goes its own way: greedy search, samples, alternatives."""
        children: list[Child] = []
        for row in lane.open:
            forced = lane.forced(int(self._store.lengths[row]))
            if forced is not None:
                children += self._force(lane, row, forced, step)
                continue
            score = float(self._store.scores[row])
            begins_alternatives = lane.options.with_alternatives and not lane.has_branched
            for number, (negative, token_id, value) in enumerate(self._choose(lane, row, step)):
                child = Child(row, token_id, value, score - negative)
                if self._is_end(lane, child):
                    if begins_alternatives:
                        lane.numbers[row] = number
                    self.end(lane, child)
                else:
                    children.append(child)
        return children

    def _choose(self, lane: Lane, row: int, step: _Step) -> list[Continuation]:
        """What an independent hypothesis goes on with: one token, or where alternatives begin, several."""
        options = lane.options
        if options.with_alternatives and not lane.has_branched:
            lane.has_branched = True
            count = options.num_hypotheses
            found = self._continuations(lane, row, step, count + 1)
            return [each for each in found if each[1] != self.eos_id][:count] or found[:1]
        if options.sampling is None:
            return self._continuations(lane, row, step, 1)
        values = step.log_probabilities[row]
        if not math.isfinite(step.outputs.candidate_log_probabilities[row, 0]):
            raise self.broken(row, *step.first(row))
        if lane.adjuster is None:
            adjusted = values.astype("float64")
        else:
            adjusted = lane.adjuster.all(self._store.target_ids(row), values)
        token_id = draw(adjusted, options.sampling, float(lane.streams[lane.numbers[row]].random()))
        return [(-float(adjusted[token_id]), token_id, float(values[token_id]))]

    def _continuations(self, lane: Lane, row: int, step: _Step, count: int) -> list[Continuation]:
        """The best `count` continuations of a row.

        Raises:
            SearchError: when their numbers are broken.
        """
        ids, values = step.candidates(row)
        if not math.isfinite(values[0]):
            raise self.broken(row, *step.first(row))
        if lane.adjuster is None:
            return [(-value, token_id, value) for token_id, value in zip(ids[:count], values[:count], strict=True)]
        return lane.adjuster.best(self._store.target_ids(row), ids, values, step.log_probabilities[row], count)

    def broken(self, row: int, token_id: int, value: float) -> SearchError:
        """What is said of a row whose numbers are broken: of its next token, and its log-probability."""
        return SearchError(
            f"A log-probability must be finite, but is {value} for token {token_id} at position "
            f"{self._store.lengths[row]}."
        )

    def _force(self, lane: Lane, row: int, token_id: int, step: _Step) -> list[Child]:
        """The prefix's token, whatever its probability."""
        value = float(step.log_probabilities[row, token_id])
        if not math.isfinite(value):
            raise self.broken(row, *step.first(row))
        child = Child(row, token_id, value, float(self._store.scores[row]) + value)
        is_scored = lane.options.is_scoring and int(self._store.lengths[row]) + 1 == len(lane.options.target_prefix)
        if is_scored or self._is_end(lane, child):
            self.end(lane, child)
            return []
        return [child]

    def _is_end(self, lane: Lane, child: Child) -> bool:
        return child.token_id == self.eos_id or int(self._store.lengths[child.parent_row]) + 1 >= lane.limit

    def end(self, lane: Lane, child: Child) -> None:
        """A hypothesis ends with a token."""
        row = child.parent_row
        length = int(self._store.lengths[row])
        attention = None
        if lane.keeps_attention:
            attention = self.attention.of(self._store.cells(row, length + 1), lane.source_length)
        lane.end(
            row,
            [*self._store.target_ids(row), child.token_id],
            [*self._store.target_log_probabilities(row), child.log_probability],
            child.score,
            FinishReason.STOP if child.token_id == self.eos_id else FinishReason.LENGTH,
            attention=attention,
        )

    def settle(self, lane: Lane, children: Row[Child]) -> list[RowCopy]:
        """Gives every hypothesis that goes on a row and appends its token; what the runner has to copy for it."""
        store = self._store
        rows, branches = lane.rows_of_children([child.parent_row for child in children])
        copies: list[RowCopy] = []
        for parent, row in branches:
            copies.append(store.branch(parent, row))
        for row, child in zip(rows, children, strict=True):
            store.append(row, child.token_id, child.log_probability, child.score)
        lane.open = rows
        if lane.options.with_alternatives and lane.has_branched and not lane.numbers:
            lane.numbers = {row: number for number, row in enumerate(rows)}
        return copies

    def check_growing_loop(self, lane: Lane) -> None:
        """Starts a greedy lane again when its hypothesis is seen to loop."""
        row = lane.open[0]
        length = int(self._store.lengths[row])
        if lane.options.num_rows == 1 and length >= MIN_LOOP_CHECK_TOKENS and length % LOOP_CHECK_INTERVAL == 0:
            self._guard(lane, self._store.target_ids(row))

    def conclude(self, lane: Lane) -> bool:
        """Whether a lane whose search is over is done; False: it loops and was started again."""
        best = lane.best_ended()[0]
        return not self._guard(lane, best.target_ids)

    def _guard(self, lane: Lane, target_ids: Row[int]) -> bool:
        """Whether the lane was started again because `target_ids` loop."""
        loop = lane.loop_to_guard(target_ids)
        if loop is None:
            return False
        forced = () if lane.options.prefix_bias else lane.options.target_prefix
        lane.guard(forced if len(forced) > loop.first_stop else target_ids[: loop.first_stop])
        for row in lane.rows:
            self._store.reset(row)
        lane.start(lane.rows)
        return True

    def newly_certain(self, lane: Lane) -> list[int]:
        """Target tokens that have become certain since the last call (docs/decoding.md, Streaming)."""
        hypotheses = [self._store.target_ids(row) for row in lane.open]
        hypotheses += [
            each.target_ids[:-1] if each.finish_reason is FinishReason.STOP else each.target_ids for each in lane.ended
        ]
        shared = common_prefix(hypotheses)
        limit = unlooped_length(shared)
        loop = find_loop(shared)
        if loop is not None:
            limit = min(limit, loop.first_stop)
        certain = shared[lane.num_certain : limit]
        lane.num_certain += len(certain)
        return certain


def common_prefix(lists: Row[list[int]]) -> list[int]:
    """The longest beginning that all share; empty when there is none to look at."""
    if not lists:
        return []
    low, high = min(lists), max(lists)
    for index, (one, other) in enumerate(zip(low, high, strict=False)):
        if one != other:
            return low[:index]
    return low[: min(len(low), len(high))]
