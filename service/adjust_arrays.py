"""Adjusted log-probabilities of the candidates of many hypotheses at once: what `service.adjust` does one by one.

Both give the same numbers: float64, made from the graph's float32 by the same operations.
Axes: N lanes, K hypotheses of a lane, C candidates, V vocabulary, M target positions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from collections.abc import Sequence as Row
from functools import lru_cache
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from service.adjust import IMPOSSIBLE, Adjuster

Numbers = npt.NDArray[np.int64]
Tokens = npt.NDArray[np.int32]
Flags = npt.NDArray[np.bool_]
Value = TypeVar("Value")


def adjust_candidates(
    adjusters: Row[Adjuster],
    tokens: Tokens,
    lengths: Numbers,
    ids: Numbers,
    values: npt.NDArray[np.float64],
    *,
    vocabulary_size: int,
    eos_id: int,
) -> None:
    """Adjusts `values` in place; minus infinity where a token may not follow.

    Args:
        adjusters: [N] of each lane; `Adjuster.in_arrays` holds for each.
        tokens: [N,K,M] the hypotheses, at least as wide as the longest.
        lengths: [N] tokens of each hypothesis of a lane.
        ids: [N,K,C] the candidates.
        values: [N,K,C] their log-probabilities.
        vocabulary_size: V.
        eos_id: the end of sentence.
    """
    is_possible = values >= IMPOSSIBLE  # [N,K,C]
    for penalty, lanes in _alike(adjusters, lambda each: each.repetition_penalty):
        if penalty != 1:
            values[lanes] = np.where(
                _are_seen(tokens[lanes], lengths[lanes], ids[lanes]), values[lanes] * penalty, values[lanes]
            )
    for suppressed, lanes in _alike(adjusters, lambda each: each.suppressed_tokens):
        if suppressed:
            is_possible[lanes] &= ~_as_flags(suppressed, vocabulary_size)[ids[lanes]]
    for size, lanes in _alike(adjusters, lambda each: each.no_repeat_ngram_size):
        if size == 1:
            is_possible[lanes] &= ~_are_seen(tokens[lanes], lengths[lanes], ids[lanes])
        elif size:
            is_possible[lanes] &= ~_would_repeat(tokens[lanes], lengths[lanes], ids[lanes], size)
    is_early = lengths < [each.min_target_tokens for each in adjusters]  # [N]
    if is_early.any():
        is_possible &= (ids != eos_id) | ~is_early[:, None, None]
    values[~is_possible] = -np.inf


def _alike(adjusters: Row[Adjuster], what: Callable[[Adjuster], Value]) -> Iterator[tuple[Value, Any]]:
    """Every value that some lanes have in common, with an index of these lanes."""
    of_lane = [what(each) for each in adjusters]
    if of_lane.count(of_lane[0]) == len(of_lane):
        yield of_lane[0], slice(None)  # a view: nothing is gathered
        return
    for value in set(of_lane):
        yield value, np.array([number for number, each in enumerate(of_lane) if each == value])


def _are_seen(tokens: Tokens, lengths: Numbers, ids: Numbers) -> Flags:
    """[N,K,C] whether a hypothesis has a candidate already."""
    is_there = np.arange(tokens.shape[2]) < lengths[:, None]  # [N,M]
    known = np.where(is_there[:, None], tokens, np.int32(-1))  # [N,K,M]
    found: Flags = (known[:, :, None] == ids[..., None]).any(axis=3)
    return found


def _would_repeat(tokens: Tokens, lengths: Numbers, ids: Numbers, size: int) -> Flags:
    """[N,K,C] whether a candidate would end an n-gram of `size`, at least 2, that its hypothesis has already."""
    found = np.zeros(ids.shape, np.bool_)
    num_starts = tokens.shape[2] - size + 1
    if num_starts < 1:
        return found
    of_lane = np.arange(len(lengths))
    is_within = np.arange(num_starts) + size <= lengths[:, None]  # [N,M'] the n-gram that begins there
    is_same: Flags = is_within[:, None]  # [N,1,M'], from the first comparison on [N,K,M']
    for offset in range(size - 1):
        latest = np.maximum(lengths - size + 1 + offset, 0)  # [N] where its counterpart among the last tokens stands
        is_same = is_same & (tokens[:, :, offset : offset + num_starts] == tokens[of_lane, :, latest][:, :, None])
    lanes, hypotheses, starts = np.nonzero(is_same)
    for lane, hypothesis, start in zip(lanes.tolist(), hypotheses.tolist(), starts.tolist(), strict=True):
        found[lane, hypothesis] |= ids[lane, hypothesis] == tokens[lane, hypothesis, start + size - 1]
    return found


@lru_cache(maxsize=64)
def _as_flags(token_ids: frozenset[int], vocabulary_size: int) -> Flags:
    """[V] whether each token is one of these."""
    flags = np.zeros(vocabulary_size, np.bool_)
    flags[list(token_ids)] = True
    return flags
