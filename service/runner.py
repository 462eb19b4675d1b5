"""What the engine needs from whatever computes the numbers: the seam between deciding and doing.

`service.model_runner.OnnxModelRunner` is the real one; the tests have another with predictable tokens.
Axes: B rows of the running batch, N candidates, S source, H heads, K width per head, L layers.
"""

from __future__ import annotations

from collections.abc import Sequence as Ids
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, kw_only=True)
class EncodedSource:
    """One encoded sentence, on its way from the encoder into a row of the slab."""

    source_length: int
    """Source tokens, end of sentence included."""
    payload: Any
    """Cross keys and values; only the runner that made them knows their shape."""


@dataclass(frozen=True, kw_only=True)
class EncodedBatch:
    """What one call of `encode` made, in the order of its sources, and what it cost."""

    sources: list[EncodedSource]
    """One for each source, in the order given."""
    num_tokens: int
    """Source tokens without padding."""
    num_padded_tokens: int
    """Source tokens as computed, padding included."""


@dataclass(frozen=True, kw_only=True)
class Candidates:
    """The best next tokens of each row, best first; equal ones in the order of their ids."""

    token_ids: npt.NDArray[np.int64]
    """[B,N]"""
    log_probabilities: npt.NDArray[np.float32]
    """[B,N] natural logarithms."""


class Runner(Protocol):
    """Encodes sentences and decodes one step of rows 0..B-1 of a fixed slab.

    Promise 1 rests on it: what comes out for a row depends on that row's own source and tokens alone.
    """

    @property
    def max_rows(self) -> int:
        """Rows of the slab."""
        ...

    @property
    def max_source_tokens(self) -> int:
        """The longest source a row holds, end of sentence included."""
        ...

    @property
    def max_target_tokens(self) -> int:
        """The most target tokens a row's cache holds, end of sentence included."""
        ...

    @property
    def source_vocabulary_size(self) -> int:
        """Source token ids are 0..source_vocabulary_size-1."""
        ...

    def padded_length(self, source_length: int) -> int:
        """Tokens the encoder computes for a source of that length, padding included."""
        ...

    def encode(self, sources: Ids[Ids[int]]) -> EncodedBatch:
        """Encodes sources in any mix of lengths; the batch they come in does not touch their values."""
        ...

    def place(self, row: int, encoded: EncodedSource) -> None:
        """Makes `row` ready to decode that source from its first token."""
        ...

    def move_row(self, source_row: int, target_row: int, *, past_length: int, source_length: int) -> None:
        """Copies a row's cache, `past_length` target and `source_length` source positions, onto another row."""
        ...

    def decode_step(
        self,
        target_ids: Ids[int],
        past_lengths: Ids[int],
        source_lengths: Ids[int],
        num_candidates: int,
    ) -> Candidates:
        """One step of rows 0..B-1, B = len(target_ids) >= 1.

        Args:
            target_ids: [B] each row's previous token, the begin of sentence for a fresh row.
            past_lengths: [B] target positions already cached, which is the position of `target_ids`.
            source_lengths: [B] each row's source tokens.
            num_candidates: N, how many tokens to return for each row.
        """
        ...
