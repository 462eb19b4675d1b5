"""The slab: keys and values of every running row, one fixed block of memory for as long as the service runs.

Axes: R rows of the slab, B rows in use (0..B-1), L decoder layers, H heads, M target positions, S source positions,
K width per head. Keys and values of all layers lie in one array, so that placing or moving a row is one copy, while
each layer's first B rows are still one contiguous [B,H,M,K] buffer that a graph can read and write in place.

What a row held before is never cleared: attention reads a row's own positions and nothing after them.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from service import graph_signature as names
from service.graph_signature import SOURCE_MULTIPLE, Architecture

KEY, VALUE = 0, 1


def round_up(length: int, multiple: int = SOURCE_MULTIPLE) -> int:
    """The least multiple of `multiple` that is at least `length`."""
    return -(-length // multiple) * multiple


class KeyValueSlab:
    """Self- and cross-attention caches of `max_rows` rows, float32. Memory is taken as rows come into use."""

    def __init__(
        self, architecture: Architecture, *, max_rows: int, max_source_tokens: int, max_target_tokens: int
    ) -> None:
        layers, heads, head_width = architecture.decoder_layers, architecture.heads, architecture.head_width
        self._layers = layers
        # Not cleared: untouched pages cost nothing, which keeps an idle service small.
        self._self = np.empty(
            (layers, 2, max_rows, heads, round_up(max_target_tokens), head_width), np.float32
        )  # [L,2,R,H,M,K]
        self._cross = np.empty(
            (layers, 2, max_rows, heads, round_up(max_source_tokens), head_width), np.float32
        )  # [L,2,R,H,S,K]
        self._cross_last = np.empty((layers, 2, max_rows, 1, heads * head_width), np.float32)  # [L,2,R,1,H*K]

    @property
    def num_bytes(self) -> int:
        """Address space of the whole slab."""
        return self._self.nbytes + self._cross.nbytes + self._cross_last.nbytes

    def place(self, row: int, cross: npt.NDArray[np.float32], source_length: int) -> None:
        """Copies an encoded source into a row.

        Args:
            row: 0..R-1.
            cross: [L,2,H,s,K] keys and values, s >= source_length.
            source_length: source tokens; what lies after them in `cross` is padding and is left behind.
        """
        self._cross[:, :, row, :, :source_length] = cross[:, :, :, :source_length]
        last = cross[:, :, :, source_length - 1]  # [L,2,H,K]
        self._cross_last[:, :, row, 0] = last.reshape(self._layers, 2, -1)  # [L,2,H*K]

    def move_row(self, source_row: int, target_row: int, *, past_length: int, source_length: int) -> None:
        """Copies what a row holds, `past_length` target and `source_length` source positions, onto another row."""
        self._self[:, :, target_row, :, :past_length] = self._self[:, :, source_row, :, :past_length]
        self._cross[:, :, target_row, :, :source_length] = self._cross[:, :, source_row, :, :source_length]
        self._cross_last[:, :, target_row] = self._cross_last[:, :, source_row]

    def inputs(self, num_rows: int) -> Iterator[tuple[str, npt.NDArray[np.float32]]]:
        """The decoder's cache inputs by name: views of the first `num_rows` rows, each one contiguous buffer."""
        for i in range(self._layers):
            yield names.past_key_self(i), self._self[i, KEY, :num_rows]
            yield names.past_value_self(i), self._self[i, VALUE, :num_rows]
            yield names.cross_key(i), self._cross[i, KEY, :num_rows]
            yield names.cross_value(i), self._cross[i, VALUE, :num_rows]
            yield names.cross_key_last(i), self._cross_last[i, KEY, :num_rows]
            yield names.cross_value_last(i), self._cross_last[i, VALUE, :num_rows]

    def outputs(self, num_rows: int) -> Iterator[tuple[str, npt.NDArray[np.float32]]]:
        """The decoder's cache outputs by name: the same buffers as the inputs, written in place."""
        for i in range(self._layers):
            yield names.present_key_self(i), self._self[i, KEY, :num_rows]
            yield names.present_value_self(i), self._self[i, VALUE, :num_rows]
            yield names.present_cross_key(i), self._cross[i, KEY, :num_rows]
            yield names.present_cross_value(i), self._cross[i, VALUE, :num_rows]
