"""The decoding loop's one step: plan, run, commit.

    plan    who leaves (cancelled, expired), who joins (first in, first out, within the encoder's budget)
    run     encode the newcomers, place them, close the gaps in the slab, one decoding step of all rows
    commit  decide how every hypothesis goes on, end what is finished, copy what beams share

A failure stays as small as it can: a failed encoder run fails its newcomers, a failed decoding step fails the rows it
decoded, a row whose numbers are broken fails alone; the next step starts from a sound state. Every sequence comes back
exactly once, in the report of the step in which it ended.
"""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable

import numpy as np

from service.accounts import Accounts
from service.beam_arrays import advance_lanes
from service.company import Company
from service.greedy_arrays import advance_greedy, advance_steps, next_look
from service.lane import Lane
from service.request import FinishReason, Sequence
from service.rows import RowCopy, RowStore
from service.runner import EncodedBatch, GreedyOutputs, Runner, StepOutputs
from service.scheduler import Scheduler, SchedulerLimits
from service.search import Search
from service.step_report import StepReport
from service.tokenizer import BOS_ID, EOS_ID

MANY_LANES = 2
"""Fewer lanes are quicker one by one than in arrays."""


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
        self._eos_id = eos_id
        self._clock = clock
        self._store = RowStore(max_rows=limits.max_rows, max_target_tokens=runner.max_target_tokens, bos_id=bos_id)
        self._search = Search(self._store, eos_id=eos_id)
        self._accounts = Accounts()
        self._finished: list[Sequence] = []
        self._progress: list[tuple[Sequence, list[int]]] = []
        self._num_steps = 0
        self._company = Company()

    @classmethod
    def over(
        cls,
        runner: Runner,
        *,
        max_waiting_sequences: int = 8192,
        max_waiting_tokens: int = 262_144,
        max_encode_tokens_per_step: int = 1024,
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
        self.scheduler.cancel(sequences)

    def step(self) -> StepReport:
        """One step of everything that waits and runs. A failure of the runner ends sequences, it is never raised."""
        started_at = self._clock()
        plan = self.scheduler.plan(started_at)
        self._finished.extend(item.sequence for item in plan.drop)
        for sequence in self.scheduler.drop(plan, started_at):
            self._vacate(sequence)

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
                self._end_failed(plan.admit, encoded)
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
            outputs = self._decode()
            decoded_at = self._clock()
            decode_seconds = decoded_at - decode_started_at
            if isinstance(outputs, Exception):
                decode_error = outputs
                self._accounts.fresh = []
                self._fail(self.scheduler.running, outputs)
            elif isinstance(outputs, GreedyOutputs):
                num_steps = self.runner.greedy_steps
                num_target_tokens = self._commit_steps(outputs, decoded_at)
            else:
                num_steps = 1
                num_target_tokens = len(self._accounts.lanes)
                decode_error = self._commit(outputs, decoded_at) or decode_error

        finished, self._finished = self._finished, []
        progress, self._progress = self._progress, []
        return StepReport(
            finished=finished,
            progress=progress,
            num_rows=num_rows,
            num_steps=num_steps,
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
        self._progress = []
        self._accounts.clear()
        self._search.attention.clear()
        self._store.clear()
        now = self._clock()
        for sequence in ended:
            if not sequence.is_finished:
                sequence.finish(FinishReason.FAILED, now, error)
        return list(ended)

    def _encode(self, sequences: list[Sequence]) -> EncodedBatch | Exception:
        """Gives newcomers lanes and rows and encodes them; takes the lanes back when that fails."""
        for sequence in sequences:
            limit = self.runner.max_target_tokens
            own = sequence.options.max_target_tokens
            lane = Lane(sequence, limit if own is None else min(own, limit), eos_id=self._eos_id)
            lane.first_step = self._num_steps
            lane.first_cell = self._store.num_cells
            self._store.enter(lane, sequence.options.num_rows, lane.limit)
            lane.start(lane.rows)
            self._accounts.admit(lane)
            self._file(lane)
        try:
            batch = self.runner.encode([sequence.source_ids for sequence in sequences])
            for sequence, encoded in zip(sequences, batch.sources, strict=True):
                self.runner.place(self._accounts.lanes[sequence].lane, encoded)
        except Exception as error:
            for sequence in sequences:
                self._vacate(sequence)
            self._accounts.fresh = []
            return error
        return batch

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
            self._fail(self.scheduler.running, error)
            self._accounts.fresh = []
            return error
        return None

    def _copy_rows(self, copies: Iterable[tuple[int, int, int, int]]) -> Exception | None:
        """Copies what beams share. Where that fails, everybody who runs fails, as in `_compact`."""
        copy_row = self.runner.copy_row
        try:
            for source, target, start, stop in copies:
                copy_row(source, target, start=start, stop=stop)
        except Exception as error:
            self._fail(self.scheduler.running, error)
            return error
        return None

    def _decode(self) -> StepOutputs | GreedyOutputs | Exception:
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
        self._company.note(self._num_steps, self._store.num_rows)
        self._num_steps += runner.greedy_steps if is_greedy else 1
        return outputs

    def _commit(self, outputs: StepOutputs, now: float) -> Exception | None:
        """Decides every hypothesis, lets go of what ended, and copies what beams share.

        Returns:
            What copying failed with, if it did.
        """
        self._search.begin_step(outputs, may_branch=bool(self._accounts.others))
        self._note_first_tokens(now)
        others = list(self._accounts.others)  # before a greedy lane joins them because it is decoded again
        if len(self._accounts.lanes) > len(others):
            self._commit_greedy(outputs, now)
        copies = self._commit_others(others, outputs, now) if others else []
        error = self._copy_rows(copies) if copies else None
        for lane in self._accounts.talkative:
            certain = self._search.newly_certain(lane)
            if certain:
                self._progress.append((lane.sequence, certain))
        return error

    def _commit_greedy(self, outputs: StepOutputs, now: float) -> None:
        """The next token of every lane of plain greedy search."""
        store = self._store
        rows = None
        if self._accounts.others:
            rows = np.array([lane.rows[0] for lane in self._accounts.lanes.values() if lane.is_plain_greedy])
        for row in advance_greedy(store, rows, outputs, self._eos_id).tolist():
            lane = store.row_tenant(row)
            assert isinstance(lane, Lane)
            value = float(outputs.candidate_log_probabilities[row, 0])
            if not math.isfinite(value):
                self._fail([lane.sequence], self._search.broken(row, int(outputs.candidate_ids[row, 0]), value))
            else:
                self._look(lane, row, now)

    def _commit_steps(self, outputs: GreedyOutputs, now: float) -> int:
        """The next tokens of all lanes, which are all of plain greedy search; how many there are of all together."""
        self._note_first_tokens(now)
        counts, asks = advance_steps(self._store, outputs, self._eos_id)
        total = int(counts.sum())
        for row, taken in zip(asks, counts[asks].tolist(), strict=True):
            total += self._look_at_steps(outputs, row, taken, now)
        return total

    def _look_at_steps(self, outputs: GreedyOutputs, row: int, taken: int, now: float) -> int:
        """Looks at a row that took some of its tokens, and after each of the others; how many of these it took."""
        lane, num_steps = self._store.row_tenant(row), self.runner.greedy_steps
        assert isinstance(lane, Lane)
        for step in range(taken, num_steps + 1):
            num_idle = num_steps - step
            if step:
                lane.num_idle_steps += num_idle  # should it have ended, or be started again
                if not self._look(lane, row, now):
                    break
                lane.num_idle_steps -= num_idle
            if not num_idle:
                break
            token_id, value = int(outputs.token_ids[row, step]), float(outputs.log_probabilities[row, step])
            if not math.isfinite(value):
                self._fail([lane.sequence], self._search.broken(row, token_id, value))
                break
            self._store.append(row, token_id, value, 0.0)
        return step - taken

    def _note_first_tokens(self, now: float) -> None:
        for lane in self._accounts.fresh:
            lane.sequence.first_token_at = now
        self._accounts.fresh = []

    def _look(self, lane: Lane, row: int, now: float) -> bool:
        """Ends a greedy lane whose hypothesis has ended, starts one again that loops; whether it goes on as it is."""
        store = self._store
        has_ended = store.last_ids[row] == self._eos_id
        if has_ended or store.lengths[row] >= lane.limit:
            values = store.target_log_probabilities(row)
            reason = FinishReason.STOP if has_ended else FinishReason.LENGTH
            lane.end(row, store.target_ids(row), values, math.fsum(values), reason)
            self._conclude(lane, now)
            return False
        self._search.check_growing_loop(lane)
        self._file(lane)
        return lane.is_plain_greedy

    def _commit_others(
        self, lanes: Iterable[Lane], outputs: StepOutputs, now: float
    ) -> list[tuple[int, int, int, int]]:
        """The next tokens of all other lanes; what they need copied."""
        copies: list[tuple[int, int, int, int]] = []
        singly: list[Lane] = []
        beams: defaultdict[int, list[Lane]] = defaultdict(list)
        for lane in lanes:
            if lane.in_arrays and (not lane.num_forced or self._store.lengths[lane.open[0]] >= lane.num_forced):
                beams[lane.options.beam_size].append(lane)
            else:
                singly.append(lane)
        for size, alike in beams.items():
            if len(alike) < MANY_LANES:
                singly += alike
                continue
            try:
                advanced = advance_lanes(self._search, self._store, alike, size, outputs)
            except Exception as error:
                self._fail([lane.sequence for lane in alike], error)
                continue
            copies += advanced.copies
            singly += advanced.special
            for lane in advanced.over:
                self._conclude(lane, now)
            if size == 1:
                for lane in advanced.going:
                    self._search.check_growing_loop(lane)
        for lane in singly:
            try:
                is_over, made = self._search.advance(lane)
            except Exception as error:
                self._fail([lane.sequence], error)
                continue
            copies += made
            if is_over:
                self._finish(lane, now)
        return copies

    def _conclude(self, lane: Lane, now: float) -> None:
        """The search of a lane is over: its sequence ends, unless it is decoded again."""
        if self._search.conclude(lane):
            self._finish(lane, now)
        else:
            self._file(lane)

    def _file(self, lane: Lane) -> None:
        """Keeps account of which lanes want more than the best token, and of when to look at those that do not."""
        if lane.is_plain_greedy:
            row = lane.rows[0]
            self._store.looks[row] = next_look(int(self._store.lengths[row]), lane.limit)
        else:
            self._accounts.others[lane] = None

    def _finish(self, lane: Lane, now: float) -> None:
        sequence = lane.sequence
        sequence.hypotheses = lane.results()
        self._vacate(sequence)
        self.scheduler.leave([sequence])
        sequence.finish(sequence.hypotheses[0].finish_reason, now)
        self._finished.append(sequence)

    def _vacate(self, sequence: Sequence) -> None:
        """Takes a sequence's lane back."""
        lane = self._accounts.release(sequence)
        if lane.keeps_attention:
            oldest = next(iter(self._accounts.attentive), None)
            self._search.attention.forget_before(self._store.num_cells if oldest is None else oldest.first_cell)
        sequence.num_steps = self._num_steps - lane.first_step - lane.num_idle_steps
        sequence.max_rows_shared = self._company.most_since(lane.first_step)
        self._store.leave(lane)

    def _fail(self, sequences: Collection[Sequence], error: Exception) -> None:
        """Running sequences end with FAILED."""
        for sequence in sequences:
            self._vacate(sequence)
        self.scheduler.leave(sequences)
        self._end_failed(sequences, error)

    def _end_failed(self, sequences: Iterable[Sequence], error: Exception) -> None:
        now = self._clock()
        for sequence in sequences:
            sequence.finish(FinishReason.FAILED, now, error)
            self._finished.append(sequence)
