"""Which query slot of which lane each row is in a step: what the decoder's cross-attention is told.

The inputs are described in `service.graph_signature` (`LANE_INPUTS`). They lie in buffers that never move, and stay as
they are for as long as no row joins or leaves.
Axes: R rows of the slab and its lanes, B rows, N lanes, Q query slots of a lane, P positions.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from service.graph_signature import LANE_INPUTS, LEAST_SLOTS, MASKED_SCORE, SPARE_POSITIONS
from service.lazy_memory import lazy_zeros
from service.runner import StepInputs

POSITIONS_MULTIPLE = 16
"""P is a multiple of this, so that it seldom changes; which multiple touches no bit."""


class LaneLayout:
    """The six lane inputs of a step. Used by one thread at a time."""

    def __init__(self, *, max_rows: int, slot_length: int) -> None:
        """`slot_length`: positions of a lane's slot, `SPARE_POSITIONS` after the longest source included."""
        self._slot_length = slot_length
        most_slots = max_rows * SPARE_POSITIONS
        # Not cleared where nothing relies on it: untouched pages cost nothing.
        self._slot_rows = np.zeros(most_slots * 2, np.int64)  # [R*16*2] every second number stays 0
        self._row_slots = np.zeros((max_rows, 1, 2), np.int64)  # [R,1,2]
        self._queries = np.zeros(max_rows, np.int32)  # [R]
        self._last_positions = np.zeros(max_rows, np.int32)  # [R]
        self._num_positions = np.zeros(1, np.int32)  # [1]
        self._bias = lazy_zeros((most_slots * slot_length,))  # [R*16*slot_length]
        both = np.repeat(np.array([0, MASKED_SCORE], np.float32), slot_length)
        # [S+1,S]: windows of one array; the one that begins at S-n has n positions without a bias.
        self._biases = np.lib.stride_tricks.sliding_window_view(both, slot_length)
        self._arranged = b""
        self._every_row = np.arange(max_rows)
        self._biased_lengths = np.zeros(max_rows, np.int32)  # [R] source length that a lane's bias is for; 0: none
        self._biased_shape = (0, 0)
        self.num_rows = 0
        """B."""
        self.num_lanes = 0
        """N."""
        self.num_slots = LEAST_SLOTS
        """Q."""
        self.num_positions = 0
        """P."""

    def arrange(self, inputs: StepInputs) -> None:
        """Makes the buffers say what `inputs` says.

        Raises:
            ValueError: when a lane has no row, or more than `SPARE_POSITIONS`.
        """
        lanes, places = inputs.row_lanes, inputs.row_places
        arranged = b"/".join(each.tobytes() for each in (lanes, places, inputs.source_lengths, inputs.rows_per_lane))
        if arranged == self._arranged:
            return
        self._arranged = b""
        num_rows, num_lanes = len(lanes), len(inputs.rows_per_lane)
        most, least = int(inputs.rows_per_lane.max()), int(inputs.rows_per_lane.min())
        if not 1 <= least <= most <= SPARE_POSITIONS:
            raise ValueError(
                f"A lane must have between 1 and {SPARE_POSITIONS} rows, but the lanes have {least} to {most}."
            )
        num_slots = max(LEAST_SLOTS, most)
        needed = int(inputs.source_lengths.max()) + num_slots
        num_positions = min(math.ceil(needed / POSITIONS_MULTIPLE) * POSITIONS_MULTIPLE, self._slot_length)
        self.num_rows, self.num_lanes, self.num_slots, self.num_positions = (
            num_rows,
            num_lanes,
            num_slots,
            num_positions,
        )

        rows = self._every_row[:num_rows]
        slot_rows = self._slot_rows[: num_lanes * num_slots * 2].reshape(num_lanes, num_slots, 2)
        slot_rows[lanes, :, 0] = rows[:, None]  # slots to spare: some row of the same lane
        if most > 1:
            slot_rows[lanes, places, 0] = rows
        self._row_slots[:num_rows, 0, 0] = lanes
        self._row_slots[:num_rows, 0, 1] = places
        self._queries[:num_lanes] = inputs.rows_per_lane
        self._last_positions[:num_lanes] = inputs.source_lengths + inputs.rows_per_lane - 1
        self._num_positions[0] = num_positions
        self._arrange_bias(inputs.source_lengths)
        self._arranged = arranged

    def _arrange_bias(self, source_lengths: npt.NDArray[np.int32]) -> None:
        """The bias of the lanes whose source length changed; of all when their shape did."""
        num_lanes = len(source_lengths)
        shape = (self.num_slots, self.num_positions)
        if shape != self._biased_shape:
            self._biased_shape = shape
            self._biased_lengths.fill(0)
        bias = self._bias[: num_lanes * math.prod(shape)].reshape(num_lanes, *shape)  # [N,Q,P]
        changed = (self._biased_lengths[:num_lanes] != source_lengths).nonzero()[0]
        for lane in changed.tolist():
            bias[lane] = self._biases[self._slot_length - source_lengths[lane], : self.num_positions]  # [P] -> [Q,P]
        self._biased_lengths[:num_lanes] = source_lengths

    def inputs(self) -> Iterator[tuple[str, npt.NDArray[Any]]]:
        """The six inputs by name: views of the buffers."""
        rows, lanes, slots, positions = self.num_rows, self.num_lanes, self.num_slots, self.num_positions
        views: tuple[npt.NDArray[Any], ...] = (
            self._slot_rows[: lanes * slots * 2].reshape(lanes, slots, 2),
            self._row_slots[:rows],
            self._queries[:lanes],
            self._last_positions[:lanes],
            self._num_positions,
            self._bias[: lanes * slots * positions].reshape(lanes, 1, slots, positions),
        )
        for tensor, view in zip(LANE_INPUTS, views, strict=True):
            yield tensor.name, view
