"""The decoding loop's one step: plan, run, commit.

    plan    who leaves (cancelled, expired), who joins (in turn, within the encoder's budget), who is put back for them
    run     encode the newcomers, place them, close the gaps in the slab, one decoding step of all rows
    commit  decide how every hypothesis goes on, end what is finished, copy what beams share

A failure stays as small as it can: a failed encoder run fails its newcomers, a failed decoding step fails the rows it
decoded, a row whose numbers are broken fails alone; the next step starts from a sound state. Every sequence comes back
exactly once, in the report of the step in which it ended.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable

from service.batch import Batch
from service.commit import Commit
from service.request import FinishReason, Sequence
from service.rows import RowCopy, RowStore
from service.runner import EncodedBatch, GreedyOutputs, Runner, StepOutputs
from service.scheduler import Scheduler
from service.scheduler_limits import SchedulerLimits
from service.step_report import StepReport
from service.tokenizer import BOS_ID, EOS_ID


class Engine:
    """Drives a runner by a scheduler and the searches. Used by one thread at a time."""

    def __init__(
        self,
        runner: Runner,
        scheduler: Scheduler,
        *,
        bos_id: int = BOS_ID,
        eos_id: int = EOS_ID,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Args:
            runner: computes the numbers.
            scheduler: its `max_rows` must not exceed the runner's.
            bos_id: the token every target starts from.
            eos_id: the token that ends a target.
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
        self._clock = clock
        self._batch = Batch(
            scheduler, max_target_tokens=runner.max_target_tokens, bos_id=bos_id, eos_id=eos_id, clock=clock
        )
        self._commit = Commit(self._batch, runner)
        self._store = self._batch.store
        self._accounts = self._batch.accounts

    @classmethod
    def over(
        cls,
        runner: Runner,
        *,
        max_waiting_sequences: int = 8192,
        max_waiting_tokens: int = 262_144,
        max_encode_tokens_per_step: int = 1024,
        reserved_share: float = 0.0,
        bulk_patience_seconds: float = 5.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> Engine:
        """An engine that uses all of `runner`; the queue limits as in `SchedulerLimits`."""
        limits = SchedulerLimits(
            max_rows=runner.max_rows,
            max_source_tokens=runner.max_source_tokens,
            source_vocabulary_size=runner.source_vocabulary_size,
            target_vocabulary_size=runner.target_vocabulary_size,
            max_waiting_sequences=max_waiting_sequences,
            max_waiting_tokens=max_waiting_tokens,
            max_encode_tokens_per_step=max_encode_tokens_per_step,
            reserved_share=reserved_share,
            bulk_patience_seconds=bulk_patience_seconds,
        )
        return cls(runner, Scheduler(limits, padded_length=runner.padded_length), clock=clock)

    @property
    def is_idle(self) -> bool:
        """Whether a step would have nothing to do."""
        return self.scheduler.is_idle

    @property
    def store(self) -> RowStore:
        """What every row and lane holds. Not to be changed."""
        return self._store

    def open_hypotheses(self, sequence: Sequence) -> list[list[int]]:
        """The target tokens of a running sequence's open hypotheses so far, in their order."""
        return [self._store.target_ids(row) for row in self._accounts.lanes[sequence].open]

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
        given = list(sequences)
        now = self._clock()
        for sequence in given:
            sequence.cancelled_at = min(sequence.cancelled_at, now)
        self.scheduler.cancel(given)

    def step(self) -> StepReport:
        """One step of everything that waits and runs. A failure of the runner ends sequences, it is never raised."""
        started_at = self._clock()
        plan = self.scheduler.plan(started_at)
        self._batch.finished.extend(item.sequence for item in plan.drop)
        for sequence in self.scheduler.drop(plan, started_at):
            self._batch.vacate(sequence)
        num_preempted_steps = 0
        if plan.preempt:
            for sequence in plan.preempt:
                self._batch.vacate(sequence)
                num_preempted_steps += sequence.num_row_steps
            self.scheduler.put_back(plan.preempt)

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
                self.scheduler.discard(plan.admit)
                self._batch.end_failed(plan.admit, encoded)
            else:
                num_source_tokens, num_padded = encoded.num_tokens, encoded.num_padded_tokens
                self.scheduler.start(plan.admit, started_at)
                for sequence in plan.admit:
                    sequence.encoded_at = encoded_at
                    sequence.encode_seconds = encode_seconds

        decode_error = self._compact()
        num_rows = self._store.num_rows
        decode_seconds = 0.0
        num_target_tokens = num_steps = 0
        if num_rows:
            decode_started_at = self._clock()
            outputs = self._decode(decode_started_at)
            decoded_at = self._clock()
            decode_seconds = decoded_at - decode_started_at
            if isinstance(outputs, Exception):
                decode_error = outputs
                self._accounts.fresh = []
                self._batch.fail(self.scheduler.running, outputs)
            elif isinstance(outputs, GreedyOutputs):
                num_steps = self.runner.greedy_steps
                num_target_tokens = self._commit.steps(outputs, decoded_at)
            else:
                num_steps = 1
                num_target_tokens = len(self._accounts.lanes)
                decode_error = self._commit.step(outputs, decoded_at) or decode_error

        finished, progress = self._batch.take_news()
        return StepReport(
            finished=finished,
            progress=progress,
            num_rows=num_rows,
            num_steps=num_steps,
            num_admitted=0 if encode_error else len(plan.admit),
            num_dropped=len(plan.drop),
            num_dropped_steps=sum(item.sequence.num_row_steps for item in plan.drop),
            num_preempted=len(plan.preempt),
            num_preempted_steps=num_preempted_steps,
            num_late_steps=sum(sequence.num_late_steps for sequence in finished),
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
        ended = dict.fromkeys([*self._batch.finished, *self.scheduler.clear()])
        self._batch.clear()
        now = self._clock()
        for sequence in ended:
            if not sequence.is_finished:
                sequence.finish(FinishReason.FAILED, now, error)
        return list(ended)

    def _encode(self, sequences: list[Sequence]) -> EncodedBatch | Exception:
        """Gives newcomers lanes and rows and encodes them; takes the lanes back when that fails."""
        for sequence in sequences:
            self._batch.enter(sequence)
        try:
            encoded_batch = self.runner.encode([sequence.source_ids for sequence in sequences])
            for sequence, encoded in zip(sequences, encoded_batch.sources, strict=True):
                self.runner.place(self._accounts.lanes[sequence].lane, encoded)
        except Exception as error:
            for sequence in sequences:
                self._batch.vacate(sequence)
            self._accounts.fresh = []
            return error
        return encoded_batch

    def _compact(self) -> Exception | None:
        """Closes gaps in the slab. Where that fails, nobody knows what the slab holds: everybody who runs fails."""
        try:
            for copy in self._store.compact():
                if isinstance(copy, RowCopy):
                    source, target, start, stop = copy
                    if start < stop:
                        self.runner.copy_row(source, target, start=start, stop=stop)
                else:
                    self.runner.copy_lane(copy.source_lane, copy.target_lane, source_length=copy.source_length)
        except Exception as error:
            self._batch.fail(self.scheduler.running, error)
            self._accounts.fresh = []
            return error
        return None

    def _decode(self, started_at: float) -> StepOutputs | GreedyOutputs | Exception:
        """One decoding step, or several where nobody wants more than the best tokens.

        The caches gain positions that the next step overwrites if these are not committed.
        """
        runner, accounts = self.runner, self._accounts
        is_greedy = runner.greedy_steps > 1 and accounts.want_best_tokens_only
        num_candidates = max((lane.num_candidates for lane in accounts.others), default=1)
        inputs = self._store.inputs(
            num_candidates=min(num_candidates, runner.target_vocabulary_size),
            with_attention=bool(accounts.attentive),
        )
        outputs: StepOutputs | GreedyOutputs
        try:
            outputs = runner.decode_greedy(inputs) if is_greedy else runner.decode_step(inputs)
        except Exception as error:
            return error
        self._batch.note_run(runner.greedy_steps if is_greedy else 1, started_at)
        return outputs
