"""How long will a call take, with all that is ahead of it?

Told from what was measured of late: what a decoding step takes, by how many rows it has, and how many steps a sentence
takes, by its length. Whoever has measured nothing yet predicts nothing.
"""

from __future__ import annotations

from collections.abc import Sequence as Row
from typing import NamedTuple

from service.request import Sequence
from service.step_report import StepReport

_STEP_WEIGHT = 1 / 32
"""Of the newest step in the mean of its size."""
_SENTENCE_WEIGHT = 1 / 128
"""Of the newest sentence in the mean of all."""
_MOST_GROWTH = 4.0
"""A step that took so many times the mean counts as that: the machine stood still, which says nothing of the next."""
_NUM_SIZES = 14
"""Sizes of steps that are told apart: 1 row, 2 and 3, 4 to 7, and so on."""


class Load(NamedTuple):
    """What the engines of a model have to do, as of about now."""

    num_engines: int
    """Engines side by side."""
    num_rows: int
    """Rows that can decode at a time, over all engines."""
    num_used_rows: int
    """Rows that decode."""
    num_waiting: int
    """Sequences that wait for rows."""
    num_waiting_rows: int
    """Rows that they wait for."""
    num_waiting_tokens: int
    """Their source tokens."""


class Forecast:
    """What the engines of one model have been seen to do, and what follows from it.

    Their threads tell it of their steps, and others ask, without a lock: a mean that two threads change at once loses
    one of the two changes, and no more.
    """

    def __init__(self) -> None:
        self._rows = [0.0] * _NUM_SIZES
        self._seconds = [0.0] * _NUM_SIZES
        self._num_source_tokens = 0.0
        self._num_steps = 0.0

    def observe_step(self, report: StepReport) -> None:
        """An engine made a step. Called in its thread: less than a microsecond, and as much a sentence that ended."""
        if report.num_steps:
            size = report.num_rows.bit_length()
            seconds = report.step_seconds / report.num_steps
            mean = self._seconds[size]
            if mean:
                self._seconds[size] = mean + _STEP_WEIGHT * (min(seconds, _MOST_GROWTH * mean) - mean)
                self._rows[size] += _STEP_WEIGHT * (report.num_rows - self._rows[size])
            else:
                self._rows[size] = report.num_rows
                self._seconds[size] = seconds
        for sequence in report.finished:
            if sequence.hypotheses:
                weight = _SENTENCE_WEIGHT if self._num_steps else 1.0
                self._num_source_tokens += weight * (len(sequence.source_ids) - self._num_source_tokens)
                self._num_steps += weight * (sequence.num_steps - self._num_steps)

    @property
    def is_cold(self) -> bool:
        """Whether no sentence has ended yet: nothing is predicted, and every prediction is 0."""
        return not self._num_steps

    def step_seconds(self, num_rows: float) -> float:
        """What a decoding step of so many rows of one engine takes; never less for more rows. 0.0 when cold.

        Between the sizes that were seen it is in proportion, and beyond the largest, too; below the least it is the
        least.
        """
        before_rows = before_seconds = 0.0
        for rows, mean in zip(self._rows, self._seconds, strict=True):
            if not mean:
                continue
            seconds = max(mean, before_seconds)
            if num_rows <= rows:
                if not before_rows:
                    return seconds
                share = (num_rows - before_rows) / (rows - before_rows)
                return before_seconds + share * (seconds - before_seconds)
            before_rows, before_seconds = rows, seconds
        return before_seconds * num_rows / before_rows if before_rows else 0.0

    def num_steps(self, num_source_tokens: float) -> float:
        """The steps that a sentence of so many source tokens is likely to take; 0.0 when cold."""
        return num_source_tokens * self._num_steps / self._num_source_tokens if self._num_steps else 0.0

    def delay_seconds(self, load: Load) -> float:
        """How much work is ahead of a call that comes now: what those who decode still need, and what all who wait
        will. A call whose rows are free need not wait for all of it, but shares the engines with it."""
        if self.is_cold:
            return 0.0
        used = load.num_used_rows / load.num_engines
        running = self._num_steps / 2 * self.step_seconds(max(1.0, used)) * min(1.0, used)
        return running + self._queue_seconds(load)

    def finish_seconds(self, load: Load, sequences: Row[Sequence]) -> float:
        """How long a call of these sequences (at least one) takes that comes now.

        Args:
            load: what is ahead of it.
            sequences: all of the call, in order.
        """
        if self.is_cold:
            return 0.0
        steps = [self._num_steps_of(sequence) for sequence in sequences]
        rows = [sequence.options.num_rows for sequence in sequences]
        num_wanted = load.num_used_rows + load.num_waiting_rows + sum(rows)
        step_seconds = self.step_seconds(max(1.0, min(num_wanted, load.num_rows) / load.num_engines))
        longest = max(steps) * step_seconds
        num_late = num_wanted - load.num_rows
        if num_late <= 0:
            return longest
        own_work = sum(a * b for a, b in zip(steps, rows, strict=True)) * min(1.0, num_late / sum(rows))
        wait = self._queue_seconds(load) + own_work * self._row_seconds(load)
        return max(longest, wait + steps[-1] * step_seconds)

    def wait_seconds(self, load: Load) -> float:
        """How long a call that comes now waits at least until its first rows are free."""
        has_free_rows = load.num_used_rows + load.num_waiting_rows < load.num_rows
        return 0.0 if has_free_rows or self.is_cold else self._queue_seconds(load)

    def _num_steps_of(self, sequence: Sequence) -> float:
        options = sequence.options
        if options.is_scoring:
            return len(options.target_prefix)
        steps = max(self.num_steps(len(sequence.source_ids)), options.min_target_tokens)
        return steps if options.max_target_tokens is None else min(steps, options.max_target_tokens)

    def _queue_seconds(self, load: Load) -> float:
        """Until all who wait now have joined the batch."""
        num_more_rows = max(0, load.num_waiting_rows - load.num_waiting)
        work = self.num_steps(load.num_waiting_tokens) + num_more_rows * self._num_steps
        return work * self._row_seconds(load)

    def _row_seconds(self, load: Load) -> float:
        """What one step of one row costs where all rows decode."""
        return self.step_seconds(load.num_rows / load.num_engines) / load.num_rows
