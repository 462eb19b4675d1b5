"""Lanes in a row store and the outputs of a step, without an engine or a runner."""

from __future__ import annotations

from collections.abc import Sequence as Row

import numpy as np
import numpy.typing as npt

from service.lane import Lane
from service.options import DecodingOptions
from service.request import Sequence
from service.rows import RowStore
from service.runner import StepOutputs
from service.tokenizer import BOS_ID, EOS_ID


def new_store(*, max_rows: int = 16, max_target_tokens: int = 40) -> RowStore:
    """An empty store."""
    return RowStore(max_rows=max_rows, max_target_tokens=max_target_tokens, bos_id=BOS_ID)


def enter(
    store: RowStore,
    options: DecodingOptions,
    *,
    source_ids: tuple[int, ...] = (5, 6, EOS_ID),
    limit: int | None = None,
) -> Lane:
    """A lane that has entered `store` and started, limited to `limit` tokens or to what the store holds."""
    lane = Lane(
        Sequence(source_ids=source_ids, options=options),
        store.max_target_tokens if limit is None else limit,
        eos_id=EOS_ID,
    )
    store.enter(lane, options.num_rows, lane.limit)
    lane.start(lane.rows)
    return lane


def step_outputs(
    log_probabilities: npt.ArrayLike | Row[dict[int, float]],
    *,
    num_candidates: int,
    vocabulary_size: int = 20,
    attention: npt.NDArray[np.float32] | None = None,
) -> StepOutputs:
    """What a runner computes of rows with these log-probabilities.

    Args:
        log_probabilities: [B,V], or for each row its few probable tokens; the others are at -50.
        num_candidates: C.
        vocabulary_size: V, where only few tokens are given.
        attention: [B,S].
    """
    if isinstance(log_probabilities, list) and log_probabilities and isinstance(log_probabilities[0], dict):
        values = np.full((len(log_probabilities), vocabulary_size), -50.0, np.float32)
        for row, tokens in enumerate(log_probabilities):
            for token_id, value in tokens.items():
                values[row, token_id] = value
    else:
        values = np.asarray(log_probabilities, np.float32)
    broken_first = np.where(np.isfinite(values), -values, -np.inf)
    order = np.argsort(broken_first, axis=1, kind="stable")[:, :num_candidates]  # [B,C]
    return StepOutputs(
        candidate_ids=order,
        candidate_log_probabilities=np.take_along_axis(values, order, axis=1),
        log_probabilities=values,
        attention=attention,
    )
