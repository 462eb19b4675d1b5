"""Adjusted log-probabilities: what a caller's options make of the model's, for one hypothesis at a time.

docs/decoding.md defines the adjustments. All but the prefix's bias only lower a token, so that the best adjusted tokens
are nearly always among the graph's best candidates; where that cannot be told, the whole vocabulary is looked at. Both
ways give the same numbers. Everything is computed in float64 from the graph's float32.
Axes: V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from service.options import DecodingOptions

IMPOSSIBLE = -1.0e8
"""Below it are tokens that cannot occur: pad, begin of sentence, and numbers that round the vocabulary up. They are as
much as banned, also where an option bans all others."""

Continuation = tuple[float, int, float]
"""A token that may follow a hypothesis: its adjusted log-probability negated, the token, the model's own
log-probability. So plain sorting brings the best first, and of equal ones the one with the lowest id."""


class _Rules(NamedTuple):
    """What the options say of the tokens that may follow one hypothesis."""

    banned: frozenset[int]
    seen: frozenset[int]
    """Tokens the hypothesis has, where they are penalised."""
    favoured: int | None
    """The prefix's token, where it is favoured."""
    rest: float
    """What is added to the log-probability of every other token."""


class Adjuster:
    """The adjustments of one sequence's options."""

    def __init__(self, options: DecodingOptions, *, eos_id: int) -> None:
        self._eos_id = eos_id
        self.repetition_penalty = options.repetition_penalty
        self.no_repeat_ngram_size = options.no_repeat_ngram_size
        self.suppressed_tokens = frozenset(options.suppressed_tokens)
        self.min_target_tokens = options.min_target_tokens
        self._sequences = tuple((sequence[:-1], sequence[-1]) for sequence in options.suppressed_sequences)
        self._prefix = options.target_prefix
        self._bias = options.prefix_bias

    @property
    def in_arrays(self) -> bool:
        """Whether `service.adjust_arrays` knows all that is asked for."""
        return not self._sequences and not self._bias

    def best(
        self,
        target_ids: Sequence[int],
        candidate_ids: Sequence[int],
        candidate_values: Sequence[float],
        row: npt.NDArray[np.float32],
        count: int,
    ) -> list[Continuation]:
        """The `count` best continuations, or all there are, best first; equal ones in the order of their ids.

        Args:
            target_ids: the hypothesis.
            candidate_ids: the model's most probable tokens, best first.
            candidate_values: their log-probabilities.
            row: [V] the log-probability of every token.
            count: at least 1.
        """
        rules = self._rules(target_ids)
        banned, seen, favoured, rest = rules
        penalty = self.repetition_penalty
        found: list[Continuation] = []
        if favoured is not None and favoured not in banned:
            found.append(self._favour(favoured, float(row[favoured]), favoured in seen))
        wanted = count  # so many more that nothing after them can pass
        for token_id, value in zip(candidate_ids, candidate_values, strict=True):
            if token_id in banned or token_id == favoured:
                continue
            if value < IMPOSSIBLE:
                break
            if token_id in seen:
                found.append((-((value + rest) * penalty), token_id, value))
                continue
            found.append((-(value + rest), token_id, value))
            wanted -= 1
            if not wanted:
                break
        found.sort()
        least = candidate_values[-1] + rest  # no token that is not among the candidates is above it
        is_sure = not wanted or len(candidate_ids) == row.size or (len(found) >= count and -found[count - 1][0] > least)
        if not is_sure:
            found = self._best_of_all(row, rules, count)
        return found[:count] or [self._end_of_sentence(row, rules)]

    def all(self, target_ids: Sequence[int], row: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
        """The adjusted log-probability of every token [V]; minus infinity where one may not be taken.

        Where none may, the end of sentence may.
        """
        rules = self._rules(target_ids)
        adjusted = self._adjust_all(row, rules)
        if np.isneginf(adjusted).all():
            adjusted[self._eos_id] = -self._end_of_sentence(row, rules)[0]
        return adjusted

    def _rules(self, target_ids: Sequence[int]) -> _Rules:
        favoured = self._favoured(target_ids)
        return _Rules(
            self._banned(target_ids),
            frozenset(target_ids) if self.repetition_penalty != 1 else frozenset(),
            favoured,
            0.0 if favoured is None else math.log1p(-self._bias),
        )

    def _end_of_sentence(self, row: npt.NDArray[np.float32], rules: _Rules) -> Continuation:
        """What is left where nothing else may follow: bans do not hold for it."""
        token_id = self._eos_id
        value = float(row[token_id])
        is_seen = token_id in rules.seen
        if token_id == rules.favoured:
            return self._favour(token_id, value, is_seen)
        adjusted = value + rules.rest
        return -(adjusted * self.repetition_penalty if is_seen else adjusted), token_id, value

    def _best_of_all(self, row: npt.NDArray[np.float32], rules: _Rules, count: int) -> list[Continuation]:
        adjusted = self._adjust_all(row, rules)
        if count < row.size:
            least = np.partition(adjusted, -count)[-count]
            chosen = np.flatnonzero(adjusted >= least)  # more than `count` where several are equal
        else:
            chosen = np.arange(row.size)
        return sorted(
            (-value, token_id, float(row[token_id]))
            for value, token_id in zip(adjusted[chosen].tolist(), chosen.tolist(), strict=True)
            if value != -math.inf
        )

    def _adjust_all(self, row: npt.NDArray[np.float32], rules: _Rules) -> npt.NDArray[np.float64]:
        adjusted: npt.NDArray[np.float64] = row.astype(np.float64) + rules.rest  # [V]
        if rules.seen:
            adjusted[list(rules.seen)] *= self.repetition_penalty
        if rules.favoured is not None:
            value = float(row[rules.favoured])
            adjusted[rules.favoured] = -self._favour(rules.favoured, value, rules.favoured in rules.seen)[0]
        if rules.banned:
            adjusted[list(rules.banned)] = -np.inf
        adjusted[row < IMPOSSIBLE] = -np.inf
        return adjusted

    def _favoured(self, target_ids: Sequence[int]) -> int | None:
        """The token of the prefix that is favoured now."""
        position = len(target_ids)
        if not self._bias or position >= len(self._prefix) or tuple(target_ids) != self._prefix[:position]:
            return None
        return self._prefix[position]

    def _favour(self, token_id: int, value: float, is_seen: bool) -> Continuation:
        adjusted = math.log((1 - self._bias) * math.exp(value) + self._bias)
        return -(adjusted * self.repetition_penalty if is_seen else adjusted), token_id, value

    def _banned(self, target_ids: Sequence[int]) -> frozenset[int]:
        """Tokens that may not follow."""
        more: set[int] = set()
        for before, last in self._sequences:
            if len(before) <= len(target_ids) and tuple(target_ids[len(target_ids) - len(before) :]) == before:
                more.add(last)
        if self.no_repeat_ngram_size:
            more |= _repeating(target_ids, self.no_repeat_ngram_size)
        if len(target_ids) < self.min_target_tokens:
            more.add(self._eos_id)
        return self.suppressed_tokens | more if more else self.suppressed_tokens


def _repeating(target_ids: Sequence[int], size: int) -> set[int]:
    """Tokens that would end an n-gram of `size` that `target_ids` has already."""
    ids = list(target_ids)
    length = len(ids)
    if length < size:
        return set()
    if size == 1:
        return set(ids)
    before = ids[length - size + 1 :]
    last = before[-1]
    return {ids[i + 1] for i in range(size - 2, length - 1) if ids[i] == last and ids[i - size + 2 : i + 1] == before}
