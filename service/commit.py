"""What becomes of everybody when a step has run: each hypothesis goes on or ends, and what beams share is copied.

Lanes of plain greedy search are decided together in arrays (`service.greedy_arrays`), so are beams with the usual
options where there are several alike (`service.beam_arrays`), and all others one by one (`service.search`).
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable

import numpy as np

from service.batch import Batch
from service.beam_arrays import advance_lanes
from service.greedy_arrays import advance_greedy, advance_steps
from service.lane import Lane
from service.request import FinishReason
from service.runner import GreedyOutputs, Runner, StepOutputs

MANY_LANES = 2
"""Fewer lanes are quicker one by one than in arrays."""


class Commit:
    """Takes what steps computed into a batch. Used by one thread at a time."""

    def __init__(self, batch: Batch, runner: Runner) -> None:
        """`runner` made the steps, and copies."""
        self._batch = batch
        self._runner = runner
        self._store = batch.store
        self._search = batch.search
        self._accounts = batch.accounts
        self._eos_id = batch.eos_id

    def step(self, outputs: StepOutputs, now: float) -> Exception | None:
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
                self._batch.progress.append((lane.sequence, certain))
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
                self._batch.fail([lane.sequence], self._search.broken(row, int(outputs.candidate_ids[row, 0]), value))
            else:
                self._look(lane, row, now)

    def steps(self, outputs: GreedyOutputs, now: float) -> int:
        """The next tokens of all lanes, which are all of plain greedy search; how many there are of all together."""
        self._note_first_tokens(now)
        counts, asks = advance_steps(self._store, outputs, self._eos_id)
        total = int(counts.sum())
        for row, taken in zip(asks, counts[asks].tolist(), strict=True):
            total += self._look_at_steps(outputs, row, taken, now)
        return total

    def _look_at_steps(self, outputs: GreedyOutputs, row: int, taken: int, now: float) -> int:
        """Looks at a row that took some of its tokens, and after each of the others; how many of these it took."""
        lane, num_steps = self._store.row_tenant(row), self._runner.greedy_steps
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
                self._batch.fail([lane.sequence], self._search.broken(row, token_id, value))
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
        self._batch.file(lane)
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
                self._batch.fail([lane.sequence for lane in alike], error)
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
                self._batch.fail([lane.sequence], error)
                continue
            copies += made
            if is_over:
                self._batch.finish(lane, now)
        return copies

    def _conclude(self, lane: Lane, now: float) -> None:
        """The search of a lane is over: its sequence ends, unless it is decoded again."""
        if self._search.conclude(lane):
            self._batch.finish(lane, now)
        else:
            self._batch.file(lane)

    def _copy_rows(self, copies: Iterable[tuple[int, int, int, int]]) -> Exception | None:
        """Copies what beams share. Where that fails, everybody who runs fails, as where gaps are closed."""
        copy_row = self._runner.copy_row
        try:
            for source, target, start, stop in copies:
                copy_row(source, target, start=start, stop=stop)
        except Exception as error:
            self._batch.fail(self._batch.scheduler.running, error)
            return error
        return None
