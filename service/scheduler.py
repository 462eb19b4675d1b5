"""Who waits, who runs, and who comes and goes at the next step.

Waiting sequences are served in the order of `service.waiting_queue`, and nobody overtakes: what does not fit ends the
admission of a step, so neither a long sentence nor one that wants many rows can be starved. Which rows they own is
`service.rows`' matter. `plan` decides and changes nothing; `drop`, `put_back`, `start`, `discard` and `leave` commit.

Interactive sequences join by the next step wherever only bulk ones are in their way: these are *put back*, the latest
first, and decoded anew when there is room. The bulk sequence that has run longest is never put back, and where none
runs, one joins before anybody else once bulk work has waited long enough: so bulk work always goes on, for the rows of
one sentence.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass

from service.request import FinishReason, InvalidSequenceError, Priority, Sequence
from service.scheduler_limits import SchedulerLimits
from service.waiting_queue import WaitingQueue


@dataclass(frozen=True, kw_only=True)
class Drop:
    """A sequence nobody wants any more."""

    sequence: Sequence
    """Waiting or running."""
    reason: FinishReason
    """CANCELLED or EXPIRED."""


@dataclass(frozen=True, kw_only=True)
class StepPlan:
    """What the next step does before it decodes."""

    drop: list[Drop]
    """Sequences that leave, in order of arrival."""
    preempt: list[Sequence]
    """Running bulk sequences that are put back to make room for interactive ones, the latest to join first."""
    admit: list[Sequence]
    """Waiting sequences that join the batch, in their order."""


def no_padding(source_length: int) -> int:
    """The padded length of a source where nothing is padded."""
    return source_length


class Scheduler:
    """The waiting queue and those who run. Used by one thread at a time."""

    def __init__(self, limits: SchedulerLimits, *, padded_length: Callable[[int], int] = no_padding) -> None:
        """Args:
            limits: see there.
            padded_length: source length to the tokens the encoder computes for it.

        Raises:
            ValueError: naming every limit that is not sound.
        """
        problems = limits.problems()
        if problems:
            raise ValueError(" ".join(problems))
        self.limits = limits
        self._padded_length = padded_length
        self._waiting = WaitingQueue(self._cost)
        self._running: OrderedDict[Sequence, None] = OrderedDict()
        self._running_bulk: OrderedDict[Sequence, None] = OrderedDict()
        self._num_used_rows = 0
        self._num_used_bulk_rows = 0
        self._num_arrived = 0
        self._has_cancelled = False
        # No live sequence expires before it, so a plan need not look at each; tightened whenever it looked.
        self._earliest_deadline = math.inf

    @property
    def running(self) -> list[Sequence]:
        """The running sequences, in the order in which they joined."""
        return list(self._running)

    @property
    def num_running(self) -> int:
        """Sequences that run."""
        return len(self._running)

    @property
    def num_used_rows(self) -> int:
        """Rows that running sequences own."""
        return self._num_used_rows

    @property
    def num_used_interactive_rows(self) -> int:
        """Rows that running sequences of interactive priority own."""
        return self._num_used_rows - self._num_used_bulk_rows

    @property
    def waiting(self) -> WaitingQueue:
        """Who waits for a row. Not to be changed."""
        return self._waiting

    @property
    def num_waiting(self) -> int:
        """Sequences waiting for a row."""
        return len(self._waiting)

    @property
    def num_waiting_tokens(self) -> int:
        """Source tokens waiting for a row."""
        return self._waiting.num_tokens

    @property
    def num_waiting_rows(self) -> int:
        """Rows that waiting sequences will own."""
        return self._waiting.num_rows

    @property
    def is_idle(self) -> bool:
        """Whether nothing waits and nothing runs."""
        return not self._waiting and not self._running

    def live(self) -> list[Sequence]:
        """Every sequence that has not left, running ones first."""
        return [*self._running, *self._waiting]

    def oldest_waiting_since(self) -> float | None:
        """When the sequence that waits longest was submitted; None when nobody waits."""
        return self._waiting.oldest_since()

    def check_sound(self, sequences: Iterable[Sequence]) -> None:
        """Refuses what could never be decoded.

        Raises:
            InvalidSequenceError: naming every problem of every sequence.
        """
        given = list(sequences)
        problems = [
            f"Sequence {index} of this call: {problem}"
            for index, sequence in enumerate(given)
            for problem in self._problems(sequence)
        ]
        if len(set(given)) < len(given):
            problems.append("A sequence must be submitted once, but one is there more than once.")
        if problems:
            raise InvalidSequenceError(" ".join(problems))

    def _problems(self, sequence: Sequence) -> list[str]:
        problems = sequence.options.problems(
            max_rows=self.limits.max_rows, vocabulary_size=self.limits.target_vocabulary_size
        )
        ids = sequence.source_ids
        if not 1 <= len(ids) <= self.limits.max_source_tokens:
            problems.append(
                f"`source_ids` must have between 1 and {self.limits.max_source_tokens} tokens, but has {len(ids)}."
            )
        elif min(ids) < 0 or max(ids) >= self.limits.source_vocabulary_size:
            problems.append(
                f"`source_ids` must be between 0 and {self.limits.source_vocabulary_size - 1}, "
                f"but reach from {min(ids)} to {max(ids)}."
            )
        if sequence.arrival >= 0 or not math.isnan(sequence.submitted_at) or sequence.is_finished:
            problems.append("a sequence must be submitted once, but this one was submitted before.")
        if not 0 < sequence.weight < math.inf:
            problems.append(f"`weight` must be above 0 and finite, but is {sequence.weight}.")
        if sequence.priority is Priority.BULK and sequence.on_progress is not None:
            problems.append("`on_progress` must be None for a bulk sequence, which may be decoded more than once.")
        return problems

    def _cost(self, sequence: Sequence) -> float:
        """What a caller's share is counted in: source tokens with padding, for each row."""
        return self._padded_length(len(sequence.source_ids)) * sequence.options.num_rows

    def check_room(
        self,
        sequences: Collection[Sequence],
        *,
        num_sequences: int = 0,
        num_tokens: int = 0,
        callers: Collection[str] = (),
    ) -> None:
        """Refuses what the waiting queue cannot take now, all of it or none.

        Args:
            sequences: what asks for room.
            num_sequences: others that were accepted but not added yet.
            num_tokens: their source tokens.
            callers: whose interactive sequences are among those.

        Raises:
            QueueFullError: when a limit would be passed.
        """
        self.limits.check_room(
            sequences,
            num_waiting_sequences=len(self._waiting) + num_sequences,
            num_waiting_tokens=self._waiting.num_tokens + num_tokens,
            with_reserve=all(
                sequence.priority is Priority.INTERACTIVE
                and sequence.caller not in callers
                and not self._waiting.interactive.has_caller(sequence.caller)
                for sequence in sequences
            ),
        )

    def add(self, sequences: Iterable[Sequence], now: float) -> None:
        """Adds sequences that `check_sound` and `check_room` let pass to the waiting queue.

        One that was timed before (it waited outside) keeps its `submitted_at`.
        """
        for sequence in sequences:
            sequence.arrival = self._num_arrived
            self._num_arrived += 1
            if math.isnan(sequence.submitted_at):
                sequence.submitted_at = now
            self._waiting.of(sequence.priority).add(sequence)
            if sequence.deadline is not None and sequence.deadline < self._earliest_deadline:
                self._earliest_deadline = sequence.deadline
            if sequence.is_cancelled:
                self._has_cancelled = True

    def cancel(self, sequences: Iterable[Sequence]) -> None:
        """Marks sequences to leave at the next step; those that ended already are left as they are."""
        for sequence in sequences:
            if not sequence.is_finished:
                sequence.is_cancelled = True
                self._has_cancelled = True

    def plan(self, now: float) -> StepPlan:
        """Decides who leaves and who joins at `now`; changes nothing."""
        drop: list[Drop] = []
        if self._has_cancelled or now >= self._earliest_deadline:
            for sequence in sorted(self.live(), key=lambda sequence: sequence.arrival):
                if sequence.is_cancelled:
                    drop.append(Drop(sequence=sequence, reason=FinishReason.CANCELLED))
                elif sequence.deadline is not None and now >= sequence.deadline:
                    drop.append(Drop(sequence=sequence, reason=FinishReason.EXPIRED))
        num_free = self.limits.max_rows - self._num_used_rows
        dropped: set[Sequence] = set()
        if drop:
            dropped = {item.sequence for item in drop}
            num_free += sum(sequence.options.num_rows for sequence in dropped if sequence in self._running)
        preempt: list[Sequence] = []
        admit: list[Sequence] = []
        if num_free > 0 or (len(self._waiting.interactive) and len(self._running_bulk) > 1):
            preempt, admit = self._plan_admission(now, dropped, num_free)
        return StepPlan(drop=drop, preempt=preempt, admit=admit)

    def _plan_admission(
        self, now: float, dropped: Collection[Sequence], num_free: int
    ) -> tuple[list[Sequence], list[Sequence]]:
        """Who is put back and who joins, with so many rows free and without those who are dropped."""
        preempt: list[Sequence] = []
        admit: list[Sequence] = []
        yielding: list[Sequence] | None = None  # found when somebody needs it; who yields first is last
        budget = self.limits.max_encode_tokens_per_step
        for sequence in self._waiting.in_order(dropped, bulk_first=self._is_bulk_due(now, dropped)):
            is_bulk = sequence.priority is Priority.BULK
            num_free -= sequence.options.num_rows
            budget -= self._padded_length(len(sequence.source_ids))
            if (budget < 0 and admit) or (is_bulk and (preempt or num_free < 0)):
                break
            if num_free < 0:
                if yielding is None:
                    yielding = [each for each in self._running_bulk if each not in dropped][1:]
                if num_free + sum(each.options.num_rows for each in yielding) < 0:
                    break
                while num_free < 0:
                    preempt.append(yielding.pop())
                    num_free += preempt[-1].options.num_rows
            admit.append(sequence)
            if num_free < 1 and not len(self._running_bulk) > 1:
                break
        return preempt, admit

    def _is_bulk_due(self, now: float, dropped: Collection[Sequence]) -> bool:
        """Whether a bulk sequence is to join before anybody else: none runs, and they have waited long enough."""
        oldest = self._waiting.bulk.oldest_since()
        return (
            oldest is not None
            and now - oldest >= self.limits.bulk_patience_seconds
            and all(sequence in dropped for sequence in self._running_bulk)
        )

    def drop(self, plan: StepPlan, now: float) -> list[Sequence]:
        """Commits `plan.drop`: its sequences end and leave.

        Returns:
            Those that ran, whose rows are free now.
        """
        if not plan.drop and not self._has_cancelled and now < self._earliest_deadline:
            return []
        ran: list[Sequence] = []
        for item in plan.drop:
            if item.sequence in self._running:
                ran.append(item.sequence)
            else:
                self._leave_queue(item.sequence)
            item.sequence.finish(item.reason, now)
        self.leave(ran)
        self._has_cancelled = any(sequence.is_cancelled for sequence in self.live())
        self._earliest_deadline = min(
            (sequence.deadline for sequence in self.live() if sequence.deadline is not None), default=math.inf
        )
        return ran

    def start(self, sequences: Iterable[Sequence], now: float) -> None:
        """Commits `plan.admit`: its sequences leave the queue and run.

        Raises:
            RuntimeError: when there are not enough free rows or a sequence does not wait: a bug.
        """
        for sequence in sequences:
            num_rows = sequence.options.num_rows
            if self._num_used_rows + num_rows > self.limits.max_rows:
                raise RuntimeError(f"At most {self.limits.max_rows} rows may be in use, but {num_rows} more were.")
            is_bulk = sequence.priority is Priority.BULK
            try:
                (self._waiting.bulk if is_bulk else self._waiting.interactive).take(sequence)
            except KeyError as error:
                raise _no_longer_waiting(sequence) from error
            self._num_used_rows += num_rows
            sequence.admitted_at = now
            self._running[sequence] = None
            if is_bulk:
                self._running_bulk[sequence] = None
                self._num_used_bulk_rows += num_rows

    def put_back(self, sequences: Iterable[Sequence]) -> None:
        """Commits `plan.preempt`: its sequences run no more and wait again, before others of their callers.

        Raises:
            RuntimeError: when a sequence does not run: a bug.
        """
        for sequence in sequences:
            self.leave([sequence])
            sequence.start_over()
            self._waiting.of(sequence.priority).put_back(sequence)

    def discard(self, sequences: Iterable[Sequence]) -> None:
        """Takes waiting sequences out of the queue: their encoder run failed."""
        for sequence in sequences:
            self._leave_queue(sequence)

    def leave(self, sequences: Iterable[Sequence]) -> None:
        """Takes running sequences out.

        Raises:
            RuntimeError: when a sequence does not run: a bug.
        """
        for sequence in sequences:
            if sequence not in self._running:
                raise RuntimeError(f"Sequence {sequence.arrival} must run to leave, but does not.")
            del self._running[sequence]
            self._num_used_rows -= sequence.options.num_rows
            if sequence.priority is Priority.BULK:
                del self._running_bulk[sequence]
                self._num_used_bulk_rows -= sequence.options.num_rows

    def clear(self) -> list[Sequence]:
        """Empties the queue and lets go of who runs; returns them all."""
        everybody = self.live()
        self._running.clear()
        self._running_bulk.clear()
        self._num_used_rows = self._num_used_bulk_rows = 0
        self._waiting.clear()
        self._has_cancelled = False
        self._earliest_deadline = math.inf
        return everybody

    def _leave_queue(self, sequence: Sequence) -> None:
        try:
            self._waiting.of(sequence.priority).remove(sequence)
        except KeyError as error:
            raise _no_longer_waiting(sequence) from error


def _no_longer_waiting(sequence: Sequence) -> RuntimeError:
    return RuntimeError(f"Sequence {sequence.arrival} must wait to leave the queue, but does not.")
