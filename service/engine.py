"""The decoding loop's one step: plan, run, commit.

    plan    who leaves (cancelled, expired), who joins (first in, first out, within the encoder's budget)
    run     encode the newcomers, place them, one decoding step of all rows, decide every row's next token
    commit  append the tokens, end what is finished, close the gaps in the slab

A failure stays as small as it can: a failed encoder run fails its newcomers, a failed decoding step fails the rows it
decoded, a row whose numbers are broken fails alone; the next step starts from a sound state. Every sequence comes back
exactly once, in the report of the step in which it ended.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass

from service.request import FinishReason, Sequence
from service.runner import Candidates, EncodedBatch, Runner
from service.scheduler import RowMove, Scheduler, SchedulerLimits
from service.search import Advance, GreedySearch, Search
from service.tokenizer import BOS_ID, EOS_ID


@dataclass(frozen=True, kw_only=True, slots=True)
class StepReport:
    """What one step did, for metrics and tests."""

    finished: list[Sequence]
    """Every sequence that ended in this step, for whatever reason; each appears in one report only."""
    num_rows: int
    """Rows that decoded; 0 when no decoding step ran."""
    num_admitted: int
    """Sequences that joined the batch."""
    num_dropped: int
    """Sequences that were cancelled or expired."""
    num_dropped_steps: int
    """Decoding steps those had already taken: wasted work."""
    num_failed: int
    """Sequences that ended FAILED."""
    num_waiting: int
    """Sequences that wait after the step."""
    num_target_tokens: int
    """Target tokens committed."""
    num_source_tokens: int
    """Source tokens encoded, without padding."""
    num_padded_source_tokens: int
    """Source tokens encoded, padding included."""
    encode_seconds: float
    """Duration of the encoder run; 0.0 when nothing was encoded."""
    decode_seconds: float
    """Duration of the decoding step in the runner; 0.0 when none ran."""
    step_seconds: float
    """Duration of the whole step."""
    encode_error: Exception | None
    """What the encoder run failed with."""
    decode_error: Exception | None
    """What the decoding step failed with."""


class Engine:
    """Drives a runner by a scheduler and a search. Used by one thread at a time."""

    def __init__(
        self,
        runner: Runner,
        scheduler: Scheduler,
        search: Search,
        *,
        bos_id: int = BOS_ID,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Args:
            runner: computes the numbers.
            scheduler: its `max_rows` must not exceed the runner's.
            search: decides the tokens.
            bos_id: the token every target starts from.
            clock: monotonic seconds.

        Raises:
            ValueError: when the scheduler's limits exceed what the runner holds.
        """
        limits = scheduler.limits
        problems = [
            f"`{name}` must be at most the runner's {most}, but is {value}."
            for name, value, most in (
                ("max_rows", limits.max_rows, runner.max_rows),
                ("max_source_tokens", limits.max_source_tokens, runner.max_source_tokens),
                ("source_vocabulary_size", limits.source_vocabulary_size, runner.source_vocabulary_size),
            )
            if value > most
        ]
        if problems:
            raise ValueError(" ".join(problems))
        self.runner = runner
        self.scheduler = scheduler
        self._search = search
        self._bos_id = bos_id
        self._clock = clock
        self._finished: list[Sequence] = []

    @classmethod
    def greedy(
        cls,
        runner: Runner,
        *,
        max_waiting_sequences: int = 8192,
        max_waiting_tokens: int = 262_144,
        max_encode_tokens_per_step: int = 1024,
        clock: Callable[[], float] = time.monotonic,
    ) -> Engine:
        """An engine with greedy search that uses all rows of `runner`; the queue limits as in `SchedulerLimits`."""
        limits = SchedulerLimits(
            max_rows=runner.max_rows,
            max_source_tokens=runner.max_source_tokens,
            source_vocabulary_size=runner.source_vocabulary_size,
            max_waiting_sequences=max_waiting_sequences,
            max_waiting_tokens=max_waiting_tokens,
            max_encode_tokens_per_step=max_encode_tokens_per_step,
        )
        scheduler = Scheduler(limits, padded_length=runner.padded_length)
        return cls(runner, scheduler, GreedySearch(eos_id=EOS_ID), clock=clock)

    @property
    def is_idle(self) -> bool:
        """Whether a step would have nothing to do."""
        return self.scheduler.is_idle

    def submit(self, sequences: Collection[Sequence]) -> None:
        """Queues sequences, all of them or none.

        Raises:
            InvalidSequenceError: when one can never be decoded; names every problem.
            QueueFullError: when the waiting queue cannot take them now.
        """
        self.scheduler.check_sound(sequences)
        self.scheduler.check_room(sequences)
        self.scheduler.add(sequences, self._clock())

    def cancel(self, sequences: Iterable[Sequence]) -> None:
        """Makes sequences leave at the next step."""
        self.scheduler.cancel(sequences)

    def step(self) -> StepReport:
        """One step of everything that waits and runs. A failure of the runner ends sequences, it is never raised."""
        started_at = self._clock()
        plan = self.scheduler.plan(started_at)
        self._finished.extend(item.sequence for item in plan.drop)
        moves = self.scheduler.drop(plan, started_at)
        decode_error = self._move_rows(moves) if moves else None

        num_source_tokens = num_padded = 0
        encode_seconds = 0.0
        encode_error: Exception | None = None
        if plan.admit:
            encode_started_at = self._clock()
            encoded = self._encode(plan.admit)
            encoded_at = self._clock()
            encode_seconds = encoded_at - encode_started_at
            if isinstance(encoded, Exception):
                encode_error = encoded
                self._fail(plan.admit, encoded)
                self.scheduler.discard(plan.admit)
            else:
                num_source_tokens, num_padded = encoded.num_tokens, encoded.num_padded_tokens
                self.scheduler.start(plan.admit, started_at)
                for sequence in plan.admit:
                    sequence.encoded_at = encoded_at
                    sequence.encode_seconds = encode_seconds

        rows = list(self.scheduler.running)
        decode_seconds = 0.0
        num_target_tokens = 0
        if rows:
            decode_started_at = self._clock()
            candidates = self._decode(rows)
            decoded_at = self._clock()
            decode_seconds = decoded_at - decode_started_at
            if isinstance(candidates, Exception):
                decode_error = candidates
                self._fail(rows, candidates)
                self.scheduler.leave(rows)
            else:
                num_target_tokens, move_error = self._commit(rows, candidates, decoded_at)
                decode_error = move_error or decode_error

        finished, self._finished = self._finished, []
        return StepReport(
            finished=finished,
            num_rows=len(rows),
            num_admitted=0 if encode_error else len(plan.admit),
            num_dropped=len(plan.drop),
            num_dropped_steps=sum(item.sequence.num_steps for item in plan.drop),
            num_failed=sum(sequence.finish_reason is FinishReason.FAILED for sequence in finished),
            num_waiting=self.scheduler.num_waiting,
            num_target_tokens=num_target_tokens,
            num_source_tokens=num_source_tokens,
            num_padded_source_tokens=num_padded,
            encode_seconds=encode_seconds,
            decode_seconds=decode_seconds,
            step_seconds=self._clock() - started_at,
            encode_error=encode_error,
            decode_error=decode_error,
        )

    def run_to_completion(self, sequences: Iterable[Sequence]) -> list[StepReport]:
        """Decodes sequences to their end, however many, feeding the queue as it empties.

        Returns:
            The reports of all steps, in their order.

        Raises:
            InvalidSequenceError: when one can never be decoded; nothing is decoded then.
        """
        pending = list(sequences)
        self.scheduler.check_sound(pending)
        pending.reverse()
        reports: list[StepReport] = []
        while pending or not self.is_idle:
            while pending and self.scheduler.num_waiting < self.scheduler.limits.max_rows:
                self.scheduler.add([pending.pop()], self._clock())
            reports.append(self.step())
        return reports

    def fail_all(self, error: Exception) -> list[Sequence]:
        """Ends everything that waits or runs with FAILED.

        Returns:
            Those sequences, and any that ended before without being reported: to be delivered.
        """
        ended = dict.fromkeys([*self._finished, *self.scheduler.clear()])
        self._finished = []
        now = self._clock()
        for sequence in ended:
            if not sequence.is_finished:
                sequence.finish(FinishReason.FAILED, now, error)
        return list(ended)

    def _encode(self, sequences: list[Sequence]) -> EncodedBatch | Exception:
        """Encodes newcomers and places them in the rows they are about to own; changes no row in use."""
        try:
            batch = self.runner.encode([sequence.source_ids for sequence in sequences])
            for row, encoded in enumerate(batch.sources, start=self.scheduler.num_running):
                self.runner.place(row, encoded)
        except Exception as error:
            return error
        return batch

    def _decode(self, rows: list[Sequence]) -> Candidates | Exception:
        """One decoding step; the caches gain a position that the next step overwrites if this one is not committed."""
        bos_id = self._bos_id
        try:
            return self.runner.decode_step(
                [sequence.target_ids[-1] if sequence.target_ids else bos_id for sequence in rows],
                [len(sequence.target_ids) for sequence in rows],
                [len(sequence.source_ids) for sequence in rows],
                self._search.num_candidates,
            )
        except Exception as error:
            return error

    def _commit(self, rows: list[Sequence], candidates: Candidates, now: float) -> tuple[int, Exception | None]:
        """Decides every row, then appends tokens and lets go of what ended.

        Returns:
            The number of tokens committed, and what moving rows failed with, if it did.
        """
        token_ids: list[list[int]] = candidates.token_ids.tolist()
        log_probabilities: list[list[float]] = candidates.log_probabilities.tolist()
        max_target_tokens = self.runner.max_target_tokens
        advance = self._search.advance
        decided: list[Advance | Exception] = []
        for row, sequence in enumerate(rows):
            try:
                decided.append(advance(sequence, token_ids[row], log_probabilities[row], max_target_tokens))
            except Exception as error:
                decided.append(error)

        num_rows = len(rows)
        num_tokens = 0
        leaving: list[Sequence] = []
        for sequence, outcome in zip(rows, decided, strict=True):
            sequence.num_steps += 1
            sequence.max_rows_shared = max(sequence.max_rows_shared, num_rows)
            if isinstance(outcome, Exception):
                self._fail([sequence], outcome)
                leaving.append(sequence)
                continue
            if not sequence.target_ids:
                sequence.first_token_at = now
            sequence.target_ids.append(outcome.token_id)
            sequence.token_log_probabilities.append(outcome.log_probability)
            num_tokens += 1
            if outcome.finish_reason is not None:
                sequence.finish(outcome.finish_reason, now)
                self._finished.append(sequence)
                leaving.append(sequence)
        if not leaving:
            return num_tokens, None
        return num_tokens, self._move_rows(self.scheduler.leave(leaving))

    def _move_rows(self, moves: list[RowMove]) -> Exception | None:
        """Closes gaps in the slab. Where that fails, nobody knows what the slab holds: every running row fails."""
        try:
            for move in moves:
                self.runner.move_row(
                    move.source_row,
                    move.target_row,
                    past_length=len(move.sequence.target_ids),
                    source_length=len(move.sequence.source_ids),
                )
        except Exception as error:
            rows = list(self.scheduler.running)
            self._fail(rows, error)
            self.scheduler.leave(rows)
            return error
        return None

    def _fail(self, sequences: Iterable[Sequence], error: Exception) -> None:
        now = self._clock()
        for sequence in sequences:
            sequence.finish(FinishReason.FAILED, now, error)
            self._finished.append(sequence)
