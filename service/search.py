"""Which token a sequence takes next, and whether that ends it.

A search decides and changes nothing: the engine commits what it decided. Greedy search takes the best candidate.
"""

from __future__ import annotations

import math
from collections.abc import Sequence as Row
from typing import NamedTuple, Protocol

from service.request import FinishReason, Sequence


class SearchError(RuntimeError):
    """The candidates of a row cannot be used: the numbers behind them are broken."""


class Advance(NamedTuple):
    """One decided step of a sequence."""

    token_id: int
    """The token it takes."""
    log_probability: float
    """That token's natural-log probability."""
    finish_reason: FinishReason | None
    """Why the sequence ends with this token; None when it goes on."""


class Search(Protocol):
    """Decides the next token of a sequence from the best candidates of its row."""

    @property
    def num_candidates(self) -> int:
        """How many candidates a row it wants to see."""
        ...

    def advance(
        self, sequence: Sequence, token_ids: Row[int], log_probabilities: Row[float], max_target_tokens: int
    ) -> Advance:
        """The next step of `sequence`.

        Args:
            sequence: as it stands, not changed.
            token_ids: [N] candidates, best first.
            log_probabilities: [N] theirs.
            max_target_tokens: what the cache holds; the sequence's own limit may be lower.

        Raises:
            SearchError: when a log-probability is no number between minus infinity and zero.
        """
        ...


class GreedySearch:
    """Takes the most probable token; equal ones by the lower id."""

    num_candidates = 1

    def __init__(self, *, eos_id: int) -> None:
        self._eos_id = eos_id

    def advance(
        self, sequence: Sequence, token_ids: Row[int], log_probabilities: Row[float], max_target_tokens: int
    ) -> Advance:
        """See `Search.advance`."""
        token_id = token_ids[0]
        log_probability = log_probabilities[0]
        if not math.isfinite(log_probability):
            raise SearchError(
                f"A log-probability must be finite, but is {log_probability} for token {token_id} "
                f"at position {len(sequence.target_ids)}."
            )
        if token_id == self._eos_id:
            return Advance(token_id, log_probability, FinishReason.STOP)
        limit = max_target_tokens
        own = sequence.options.max_target_tokens
        if own is not None and own < limit:
            limit = own
        if len(sequence.target_ids) + 1 >= limit:
            return Advance(token_id, log_probability, FinishReason.LENGTH)
        return Advance(token_id, log_probability, None)
