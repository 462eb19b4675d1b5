"""What the engine needs from whatever computes the numbers: the seam between deciding and doing.

`service.model_runner.OnnxModelRunner` is the real one; the tests have another with predictable tokens.

A *lane* holds one sentence's encoded source; its *rows* are the hypotheses that read it, each with its own target so
far. Greedy search has one row a lane, beam search `beam_size`. Lanes 0..N-1 and rows 0..B-1 take part in a step; the
rows of a lane may lie anywhere among them.
Axes: B rows, N lanes, C candidates, V vocabulary, S source, K width per head, L layers.
"""

from __future__ import annotations

from collections.abc import Sequence as Ids
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt


class EncodedSource(NamedTuple):
    """One encoded sentence, on its way from the encoder into a lane of the slab."""

    source_length: int
    """Source tokens, end of sentence included."""
    payload: Any
    """Cross keys and values; only the runner that made them knows their shape. They hold until its next `encode`."""


class EncodedBatch(NamedTuple):
    """What one call of `encode` made, in the order of its sources, and what it cost."""

    sources: list[EncodedSource]
    """One for each source, in the order given."""
    num_tokens: int
    """Source tokens without padding."""
    num_padded_tokens: int
    """Source tokens as computed, padding included."""


class StepInputs(NamedTuple):
    """One step of rows 0..B-1 over lanes 0..N-1."""

    target_ids: npt.NDArray[np.int64]
    """[B] each row's previous token, the begin of sentence for a fresh row."""
    past_lengths: npt.NDArray[np.int32]
    """[B] target positions already cached, which is the position of `target_ids`."""
    row_lanes: npt.NDArray[np.int64]
    """[B] the lane each row reads; every lane is read by at least one row."""
    row_places: npt.NDArray[np.int64]
    """[B] each row's place among the rows of its lane: 0, 1, ... without a gap."""
    source_lengths: npt.NDArray[np.int32]
    """[N] source tokens of each lane."""
    rows_per_lane: npt.NDArray[np.int32]
    """[N] rows that read each lane."""
    num_candidates: int
    """C: how many best tokens of each row are wanted; 1 is the cheapest."""
    with_attention: bool
    """Whether the attention over the source is wanted."""


class StepOutputs(NamedTuple):
    """What a step computed. The arrays may be views of buffers that hold until the next step."""

    candidate_ids: npt.NDArray[np.int64]
    """[B,C] the most probable tokens, best first; equal ones in the order of their ids."""
    candidate_log_probabilities: npt.NDArray[np.float32]
    """[B,C] natural logarithms. A row whose numbers are broken has one that is no finite number first."""
    log_probabilities: npt.NDArray[np.float32]
    """[B,V] of every token; to be read only."""
    attention: npt.NDArray[np.float32] | None
    """[B,S'] with S' at least the longest source: attention of the alignment layer, the mean of its heads; anything
    after the row's own source. It holds beyond the next step. None when it was not wanted."""


class GreedyOutputs(NamedTuple):
    """What a run of several steps of greedy search computed. The arrays hold until the next run."""

    token_ids: npt.NDArray[np.int64]
    """[B,T] the best token of each step, of equal ones that with the lowest id; what comes after an end of sentence, or
    after the cache is full, is of no use."""
    log_probabilities: npt.NDArray[np.float32]
    """[B,T] their natural logarithms; the first that is no finite number says that the row's numbers are broken."""


class Runner(Protocol):
    """Encodes sentences and decodes one step of rows 0..B-1 of a fixed slab.

    Promise 1 rests on it: what comes out for a row depends on that row's own source and tokens alone.
    """

    @property
    def max_rows(self) -> int:
        """Rows of the slab, and its lanes."""
        ...

    @property
    def max_source_tokens(self) -> int:
        """The longest source a lane holds, end of sentence included."""
        ...

    @property
    def max_target_tokens(self) -> int:
        """The most target tokens a row's cache holds, end of sentence included."""
        ...

    @property
    def source_vocabulary_size(self) -> int:
        """Source token ids are 0..source_vocabulary_size-1."""
        ...

    @property
    def target_vocabulary_size(self) -> int:
        """V: target token ids are 0..target_vocabulary_size-1."""
        ...

    @property
    def greedy_steps(self) -> int:
        """T: steps that `decode_greedy` makes; 1: it cannot be asked."""
        ...

    def padded_length(self, source_length: int) -> int:
        """Tokens the encoder computes for a source of that length, padding included."""
        ...

    def encode(self, sources: Ids[Ids[int]]) -> EncodedBatch:
        """Encodes sources in any mix of lengths; the batch they come in does not touch their values."""
        ...

    def place(self, lane: int, encoded: EncodedSource) -> None:
        """Makes `lane` ready: its rows can decode that source from their first token."""
        ...

    def copy_lane(self, source_lane: int, target_lane: int, *, source_length: int) -> None:
        """Copies a lane's encoded source of `source_length` tokens onto another lane."""
        ...

    def copy_row(self, source_row: int, target_row: int, *, start: int, stop: int) -> None:
        """Copies target positions `start`..`stop`-1 of a row's cache onto another row, which holds the rest already."""
        ...

    def decode_step(self, inputs: StepInputs) -> StepOutputs:
        """One step of every row: caches each row's token at its position and computes what may follow it."""
        ...

    def decode_greedy(self, inputs: StepInputs) -> GreedyOutputs:
        """`greedy_steps` steps of every row, each with the best token of the one before it: the same numbers as by as
        many steps. Neither more candidates nor attention can be asked for."""
        ...
