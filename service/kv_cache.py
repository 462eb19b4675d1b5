"""The slab: keys and values of every running row and lane, one fixed block of memory while the service runs.

Axes: R rows of the slab and its lanes, B rows in use (0..B-1), N lanes in use (0..N-1), L decoder layers, H heads,
M target positions, S source positions, K width per head. Keys and values of all layers lie in one array, so that
placing or copying is one copy, while each layer's first B rows are still one contiguous [B,H,M,K] buffer that a graph
can read and write in place.

What a row or lane held before is never cleared: attention reads its own positions and nothing after them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from service import graph_signature as names
from service.graph_signature import SOURCE_MULTIPLE, SPARE_POSITIONS, Architecture
from service.lazy_memory import lazy_zeros

KEY, VALUE = 0, 1


def round_up(length: int, multiple: int = SOURCE_MULTIPLE) -> int:
    """The least multiple of `multiple` that is at least `length`."""
    return -(-length // multiple) * multiple


class KeyValueSlab:
    """Caches of `max_rows` rows (self-attention) and lanes (cross-attention)."""

    def __init__(
        self,
        architecture: Architecture,
        *,
        max_rows: int,
        max_source_tokens: int,
        max_target_tokens: int,
        dtype: npt.DTypeLike = np.float32,
    ) -> None:
        """`dtype`: of keys and values, as in the graphs' signature."""
        layers, heads, head_width = architecture.decoder_layers, architecture.heads, architecture.head_width
        self._layers = layers
        # Untouched pages cost nothing, which keeps an idle service small.
        self._self = lazy_zeros(
            (layers, 2, max_rows, heads, round_up(max_target_tokens), head_width), dtype
        )  # [L,2,R,H,M,K]
        self._cross = lazy_zeros(
            (layers, 2, max_rows, heads, round_up(max_source_tokens) + SPARE_POSITIONS, head_width), dtype
        )  # [L,2,R,H,S,K]

    @property
    def num_bytes(self) -> int:
        """Address space of the whole slab."""
        return self._self.nbytes + self._cross.nbytes

    @property
    def target_slot_length(self) -> int:
        """M: positions of a row's slot."""
        length: int = self._self.shape[4]
        return length

    @property
    def source_slot_length(self) -> int:
        """S: positions of a lane's slot, those to spare included."""
        length: int = self._cross.shape[4]
        return length

    def place(self, lane: int, cross: npt.NDArray[Any], source_length: int) -> None:
        """Copies an encoded source into a lane.

        Args:
            lane: 0..R-1.
            cross: [L,2,H,s,K] keys and values, s >= source_length.
            source_length: source tokens; what lies after them in `cross` is padding and is left behind.
        """
        self._cross[:, :, lane, :, :source_length] = cross[:, :, :, :source_length]

    def copy_lane(self, source_lane: int, target_lane: int, *, source_length: int) -> None:
        """Copies the first `source_length` source positions of a lane onto another lane."""
        self._cross[:, :, target_lane, :, :source_length] = self._cross[:, :, source_lane, :, :source_length]

    def copy_row(self, source_row: int, target_row: int, *, start: int, stop: int) -> None:
        """Copies target positions `start`..`stop`-1 of a row onto another row."""
        self._self[:, :, target_row, :, start:stop] = self._self[:, :, source_row, :, start:stop]

    def inputs(self, num_rows: int, num_lanes: int) -> Iterator[tuple[str, npt.NDArray[Any]]]:
        """The decoder's cache inputs by name: views of the first rows and lanes, each one contiguous buffer."""
        for i in range(self._layers):
            yield names.past_key_self(i), self._self[i, KEY, :num_rows]
            yield names.past_value_self(i), self._self[i, VALUE, :num_rows]
            yield names.cross_key(i), self._cross[i, KEY, :num_lanes]
            yield names.cross_value(i), self._cross[i, VALUE, :num_lanes]

    def outputs(self, num_rows: int, num_lanes: int) -> Iterator[tuple[str, npt.NDArray[Any]]]:
        """The decoder's cache outputs by name: the same buffers as the inputs, written in place."""
        for i in range(self._layers):
            yield names.present_key_self(i), self._self[i, KEY, :num_rows]
            yield names.present_value_self(i), self._self[i, VALUE, :num_rows]
            yield names.present_cross_key(i), self._cross[i, KEY, :num_lanes]
            yield names.present_cross_value(i), self._cross[i, VALUE, :num_lanes]
