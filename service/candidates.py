"""From logits to the best next tokens and their log-probabilities, the same bits for a row whatever rows lie beside it.

In NumPy, not in the graph: on the CPU ONNX Runtime's ArgMax, TopK and ReduceLogSumExp took several times as long.
Axes: B rows, N candidates, V vocabulary.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from service.runner import Candidates


def best_candidates(logits: npt.NDArray[np.float32], num_candidates: int) -> Candidates:
    """The `num_candidates` most probable tokens of each row, best first, equal ones in the order of their ids.

    A row with a logit that is no number, or infinitely large, gets log-probabilities that are no numbers; the other
    rows do not notice.

    Args:
        logits: [B,V] contiguous; overwritten, which saves a second buffer of that size.
        num_candidates: N, at least 1 and at most V.

    Raises:
        ValueError: when `num_candidates` is not between 1 and V.
    """
    num_rows, vocabulary_size = logits.shape
    if not 1 <= num_candidates <= vocabulary_size:
        raise ValueError(f"`num_candidates` must be between 1 and {vocabulary_size}, but is {num_candidates}.")
    rows = np.arange(num_rows)  # [B]
    token_ids = np.empty((num_rows, num_candidates), np.int64)
    values = np.empty((num_rows, num_candidates), np.float32)
    for n in range(num_candidates):
        best = logits.argmax(axis=1)  # [B] the first of equal ones
        token_ids[:, n] = best
        values[:, n] = logits[rows, best]
        if n + 1 < num_candidates:
            logits[rows, best] = -np.inf
    for n in range(num_candidates - 1):
        logits[rows, token_ids[:, n]] = values[:, n]
    with np.errstate(all="ignore"):
        highest = values[:, :1].copy()  # [B,1]
        np.subtract(logits, highest, out=logits)
        np.exp(logits, out=logits)
        # Adds up each row by itself, in one order. einsum takes a third of the time, but cuts long rows (from 8192 on)
        # differently in different company; so may a BLAS.
        totals = np.add.reduce(logits, axis=1, keepdims=True)  # [B,1]
        values -= highest
        values -= np.log(totals)
    return Candidates(token_ids=token_ids, log_probabilities=values)
