"""A running sequence: its lane, its rows, its open and ended hypotheses, and which of them are its results."""

from __future__ import annotations

import math
from collections.abc import Sequence as Row
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from service.adjust import Adjuster
from service.draw import stream
from service.options import DecodingOptions
from service.repetition import GUARD_NGRAM_SIZE, Loop, find_loop
from service.request import FinishReason, Hypothesis, Sequence

Attention = npt.NDArray[np.float32]
"""[T,S] what each token of a hypothesis attended to."""


class Ended(NamedTuple):
    """A hypothesis that has ended."""

    target_ids: list[int]
    log_probabilities: list[float]
    normalized_score: float
    finish_reason: FinishReason
    attention: Attention | None
    """Where the lane keeps it."""
    number: int
    """Which sample or alternative it is; of a beam, 0."""


class Lane:
    """One running sequence; a `Tenant` of the row store."""

    def __init__(self, sequence: Sequence, limit: int, *, eos_id: int) -> None:
        """`limit`: the most target tokens, end of sentence included."""
        self.sequence = sequence
        self.limit = limit
        self.lane = -1
        self.rows: list[int] = []
        self.source_length = len(sequence.source_ids)
        self.first_step = 0
        """The step it joined before."""
        self.num_idle_steps = 0
        """Steps that were run after its end, or after it was to be started again, in the same run."""
        self.first_cell = 0
        """Its rows' cached positions have cells (`service.rows`) of no lower number."""
        self.num_certain = 0
        """Target tokens that were handed out."""
        self._eos_id = eos_id
        self._begin(sequence.options)

    def _begin(self, options: DecodingOptions) -> None:
        self.options = options
        self.adjuster = Adjuster(options, eos_id=self._eos_id) if options.adjusts else None
        self.open: list[int] = []
        """Rows of the open hypotheses, in their order."""
        self.ended: list[Ended] = []
        self.numbers: dict[int, int] = {}
        """Which sample or alternative each row is."""
        self.has_branched = False
        """Whether the alternatives have begun."""
        self.keeps_attention = options.with_alignment or options.coverage_penalty != 0
        self.streams: list[np.random.Generator] = []
        self.is_beam = options.beam_size > 1
        self.num_forced = 0 if options.prefix_bias else len(options.target_prefix)
        """Tokens that the prefix forces."""
        is_search = options.sampling is None and not options.with_alternatives and not options.is_scoring
        self.in_arrays = is_search and (self.adjuster is None or self.adjuster.in_arrays)
        """Whether `service.beam_arrays` can advance it, after the forced tokens."""
        self.is_plain_greedy = options.is_plain_greedy
        """Whether each step just takes the best token."""
        self.num_candidates = 1 if self.is_plain_greedy else 2 * options.num_rows
        if self.adjuster is not None:
            self.num_candidates += 8  # so that a few tokens left out do not ask for the whole vocabulary

    def start(self, rows: Row[int]) -> None:
        """The rows are there, all fresh: which hypotheses are open."""
        options = self.options
        if options.sampling is not None:
            self.open = list(rows)
            self.numbers = {row: number for number, row in enumerate(rows)}
            self.streams = [
                stream(options.sampling.seed, number, self.sequence.source_ids) for number in range(len(rows))
            ]
        else:
            self.open = [rows[0]]

    def renumber(self, old_row: int, new_row: int) -> None:
        """See `service.rows.Tenant`."""
        self.open = [new_row if row == old_row else row for row in self.open]
        if old_row in self.numbers:
            self.numbers[new_row] = self.numbers.pop(old_row)

    def open_rows_first(self) -> list[int]:
        """All its rows: those of the open hypotheses in their order, then the others."""
        return [*self.open, *(row for row in self.rows if row not in self.open)]

    def rows_of_children(self, parents: Row[int]) -> tuple[list[int], list[tuple[int, int]]]:
        """Rows for hypotheses that go on, given the row of each one's parent.

        The first child of a hypothesis stays in its row; others take rows that no open hypothesis needs. So a row that
        is copied from is never written to, and what did not change is not moved.

        Returns:
            Their rows in order, and as pairs which row each of the others is to become like.
        """
        needed = set(parents)
        spare = [row for row in self.open_rows_first() if row not in needed]
        rows: list[int] = []
        branches: list[tuple[int, int]] = []
        taken: set[int] = set()
        for parent in parents:
            row = parent
            if parent in taken:
                row = spare.pop(0)
                branches.append((parent, row))
            taken.add(parent)
            rows.append(row)
        return rows, branches

    def forced(self, position: int) -> int | None:
        """The token that the prefix forces at a position."""
        return self.options.target_prefix[position] if position < self.num_forced else None

    def end(
        self,
        row: int,
        target_ids: list[int],
        log_probabilities: list[float],
        search_score: float,
        reason: FinishReason,
        *,
        attention: Attention | None = None,
    ) -> None:
        """A hypothesis of `row` has ended with these tokens; `attention` where the lane keeps it."""
        normalized = search_score / len(target_ids) ** self.options.length_penalty
        if self.options.coverage_penalty:
            assert attention is not None
            normalized += self.options.coverage_penalty * coverage_term(attention)
        number = self.numbers.get(row, 0)
        self.ended.append(Ended(target_ids, log_probabilities, normalized, reason, attention, number))

    def is_decided(self, best_open_score: float | None) -> bool:
        """Whether the search is over, given the best open hypothesis's search score; None where none is open."""
        if best_open_score is None:
            return True
        if not self.ended:
            return False
        options = self.options
        if not self.is_beam:
            return False  # the others of its samples or alternatives go on
        if len(self.ended) < options.num_hypotheses:
            return False
        if options.early_stopping and len(self.ended) >= math.floor(options.patience * options.beam_size + 0.5):
            return True
        bound: float = best_open_score / self.limit**options.length_penalty
        scores = sorted((each.normalized_score for each in self.ended), reverse=True)
        return scores[options.num_hypotheses - 1] >= bound

    def best_ended(self) -> list[Ended]:
        """The results, best first; alternatives in their order."""
        if len(self.ended) == 1:
            return list(self.ended)
        if self.options.with_alternatives:
            ranked = sorted(self.ended, key=lambda each: each.number)
        else:
            ranked = sorted(self.ended, key=lambda each: -each.normalized_score)  # stable: equal ones as they ended
        return ranked[: self.options.num_hypotheses]

    def loop_to_guard(self, target_ids: Row[int]) -> Loop | None:
        """The loop because of which the sequence is to be decoded again."""
        options = self.options
        if (
            not options.guards_repetition
            or options.sampling is not None
            or options.with_alternatives
            or options.is_scoring
        ):
            return None
        loop = find_loop(target_ids)
        if loop is None or find_loop(self.sequence.source_ids) is not None:
            return None
        return loop

    def guard(self, prefix: Row[int]) -> None:
        """Decodes again from `prefix`, so that no loop can recur; the rows are to be reset and `start` to be called."""
        options = self.options
        size = options.no_repeat_ngram_size
        self.sequence.was_guarded = True
        self._begin(
            replace(
                options,
                target_prefix=tuple(prefix),
                prefix_bias=0.0,
                no_repeat_ngram_size=min(size, GUARD_NGRAM_SIZE) if size else GUARD_NGRAM_SIZE,
                guards_repetition=False,
            )
        )

    def results(self) -> list[Hypothesis]:
        """The results for the caller."""
        with_alignment = self.options.with_alignment
        made = []
        for each in self.best_ended():
            reason = each.finish_reason
            if self.sequence.was_guarded and reason is FinishReason.LENGTH:
                reason = FinishReason.REPETITION
            made.append(
                Hypothesis(
                    target_ids=each.target_ids,
                    token_log_probabilities=each.log_probabilities,
                    score=math.fsum(each.log_probabilities),
                    normalized_score=each.normalized_score,
                    finish_reason=reason,
                    attention=each.attention if with_alignment else None,
                )
            )
        return made


def coverage_term(attention: Attention) -> float:
    """Σ over the source of log(min(coverage, 1)), positions without any attention left out (Wu et al. 2016)."""
    coverage = attention.sum(axis=0, dtype=np.float64)  # [S]
    return float(np.log(np.minimum(coverage[coverage > 0], 1.0)).sum())
