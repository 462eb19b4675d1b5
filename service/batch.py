"""Who is being decoded: lanes and rows given out and taken back, who has ended, and what is to be told."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable

from service.accounts import Accounts
from service.company import Company
from service.greedy_arrays import next_look
from service.lane import Lane
from service.request import FinishReason, Sequence
from service.rows import RowStore
from service.scheduler import Scheduler
from service.search import Search


class Batch:
    """The running sequences of one engine and all that is known of them. Used by one thread at a time."""

    def __init__(
        self,
        scheduler: Scheduler,
        *,
        max_target_tokens: int,
        bos_id: int,
        eos_id: int,
        clock: Callable[[], float],
    ) -> None:
        """Args:
        scheduler: told of who leaves.
        max_target_tokens: of a row's cache.
        bos_id: the token every target starts from.
        eos_id: the token that ends a target.
        clock: monotonic seconds.
        """
        self.scheduler = scheduler
        """Who waits and who runs."""
        self.eos_id = eos_id
        """The token that ends a target."""
        self.store = RowStore(max_rows=scheduler.limits.max_rows, max_target_tokens=max_target_tokens, bos_id=bos_id)
        """What every row and lane holds."""
        self.search = Search(self.store, eos_id=eos_id)
        """How hypotheses go on."""
        self.accounts = Accounts()
        """Which lanes run, and what they want."""
        self.num_steps = 0
        """Decoding steps that were run."""
        self.finished: list[Sequence] = []
        """Who has ended and was not reported yet."""
        self.progress: list[tuple[Sequence, list[int]]] = []
        """Target tokens that have become certain and were not reported yet."""
        self._max_target_tokens = max_target_tokens
        self._clock = clock
        self._company = Company()
        self._last_run_at = -math.inf
        self._last_run_steps = 0

    def enter(self, sequence: Sequence) -> None:
        """Gives a newcomer its lane and rows."""
        limit, own = self._max_target_tokens, sequence.options.max_target_tokens
        lane = Lane(sequence, limit if own is None else min(own, limit), eos_id=self.eos_id)
        lane.first_step = self.num_steps
        lane.first_cell = self.store.num_cells
        self.store.enter(lane, sequence.options.num_rows, lane.limit)
        lane.start(lane.rows)
        self.accounts.admit(lane)
        self.file(lane)

    def note_run(self, num_steps: int, began_at: float) -> None:
        """A run of all rows, begun then, made so many steps."""
        self._last_run_at, self._last_run_steps = began_at, num_steps
        self._company.note(self.num_steps, self.store.num_rows)
        self.num_steps += num_steps

    def take_news(self) -> tuple[list[Sequence], list[tuple[Sequence, list[int]]]]:
        """Who has ended and what has become certain since the last time."""
        finished, self.finished = self.finished, []
        progress, self.progress = self.progress, []
        return finished, progress

    def clear(self) -> None:
        """Nobody runs, and there is nothing to tell."""
        self.finished = []
        self.progress = []
        self.accounts.clear()
        self.search.attention.clear()
        self.store.clear()

    def file(self, lane: Lane) -> None:
        """Keeps account of which lanes want more than the best token, and of when to look at those that do not."""
        if lane.is_plain_greedy:
            row = lane.rows[0]
            self.store.looks[row] = next_look(int(self.store.lengths[row]), lane.limit)
        else:
            self.accounts.others[lane] = None

    def finish(self, lane: Lane, now: float) -> None:
        """A lane's search is over: its sequence ends with its results."""
        sequence = lane.sequence
        sequence.hypotheses = lane.results()
        self.vacate(sequence)
        self.scheduler.leave([sequence])
        sequence.finish(sequence.hypotheses[0].finish_reason, now)
        self.finished.append(sequence)

    def vacate(self, sequence: Sequence) -> None:
        """Takes a sequence's lane back."""
        lane = self.accounts.release(sequence)
        if lane.keeps_attention:
            oldest = next(iter(self.accounts.attentive), None)
            self.search.attention.forget_before(self.store.num_cells if oldest is None else oldest.first_cell)
        sequence.num_steps = self.num_steps - lane.first_step - lane.num_idle_steps
        if sequence.gone_at <= self._last_run_at:  # before that run it was not known: the last one alone can be late
            sequence.num_late_steps = min(self._last_run_steps, sequence.num_steps) * sequence.options.num_rows
        sequence.max_rows_shared = self._company.most_since(lane.first_step)
        self.store.leave(lane)

    def fail(self, sequences: Collection[Sequence], error: Exception) -> None:
        """Running sequences end with FAILED."""
        for sequence in sequences:
            self.vacate(sequence)
        self.scheduler.leave(sequences)
        self.end_failed(sequences, error)

    def end_failed(self, sequences: Iterable[Sequence], error: Exception) -> None:
        """Sequences that have no lane end with FAILED."""
        now = self._clock()
        for sequence in sequences:
            sequence.finish(FinishReason.FAILED, now, error)
            self.finished.append(sequence)
