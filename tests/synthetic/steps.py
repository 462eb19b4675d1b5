"""A step of a runner written down as a test thinks of it: which lane each row reads, what it is fed, and where."""

from __future__ import annotations

from collections.abc import Sequence as Row

import numpy as np

from service.runner import StepInputs


def step_inputs(
    lanes: Row[int],
    tokens: Row[int],
    positions: Row[int],
    source_lengths: Row[int],
    *,
    num_candidates: int = 1,
    with_attention: bool = False,
) -> StepInputs:
    """Rows that read `lanes`, numbered within each in the order they stand in.

    Args:
        lanes: [B] lane of each row.
        tokens: [B] previous token of each row.
        positions: [B] position of that token.
        source_lengths: [N] of each lane.
    """
    places = [list(lanes[:row]).count(lane) for row, lane in enumerate(lanes)]
    return StepInputs(
        target_ids=np.array(tokens, np.int64),
        past_lengths=np.array(positions, np.int32),
        row_lanes=np.array(lanes, np.int64),
        row_places=np.array(places, np.int64),
        source_lengths=np.array(source_lengths, np.int32),
        rows_per_lane=np.bincount(lanes, minlength=len(source_lengths)).astype(np.int32),
        num_candidates=num_candidates,
        with_attention=with_attention,
    )
