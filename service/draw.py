"""Random draws of tokens: one hypothesis, one stream of random numbers, whatever goes on beside it.

docs/decoding.md defines sampling. Axes: V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from service.options import Sampling

_FIRST_LOOK = 64
"""Tokens that are sorted first in search of a nucleus; it is seldom larger."""


def stream(seed: int, hypothesis: int, source_ids: Sequence[int]) -> np.random.Generator:
    """The random numbers of a hypothesis: decided by seed, number and source alone."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, hypothesis, *source_ids])))


def draw(adjusted: npt.NDArray[np.float64], sampling: Sampling, number: float) -> int:
    """A token id.

    Args:
        adjusted: [V] adjusted log-probabilities, at least one of them finite.
        sampling: what to draw from.
        number: random, in [0, 1).
    """
    scaled = adjusted / sampling.temperature  # [V]
    weights = np.exp(scaled - scaled.max())  # [V]
    if sampling.top_k == 0 and sampling.top_p >= 1:
        return _pick(np.arange(weights.size), weights, number)
    count = weights.size if sampling.top_k == 0 else min(sampling.top_k, weights.size)
    if sampling.top_p >= 1:
        chosen = _largest(weights, count)
        return _pick(chosen, weights[chosen], number)
    whole = weights.sum() if count == weights.size else weights[_largest(weights, count)].sum()
    wanted = sampling.top_p * whole
    look = min(_FIRST_LOOK, count)
    while True:
        chosen = _largest(weights, look)
        sums = np.cumsum(weights[chosen])
        if sums[-1] >= wanted or look == count:
            break
        look = count
    size = min(int(np.searchsorted(sums, wanted)) + 1, look)
    return _pick(chosen[:size], weights[chosen[:size]], number)


def _largest(weights: npt.NDArray[np.float64], count: int) -> npt.NDArray[np.intp]:
    """The ids of the `count` largest weights, largest first; equal ones in the order of their ids."""
    if count < weights.size:
        least = np.partition(weights, -count)[-count]
        ids = np.flatnonzero(weights >= least)
    else:
        ids = np.arange(weights.size)
    order = np.argsort(-weights[ids], kind="stable")
    return ids[order][:count]


def _pick(ids: npt.NDArray[np.intp], weights: npt.NDArray[np.float64], number: float) -> int:
    """The id at `number` of the way through the weights."""
    sums = np.cumsum(weights)
    place = int(np.searchsorted(sums, number * sums[-1], side="right"))
    place = min(place, ids.size - 1)
    while weights[place] == 0 and place > 0:  # rounding must not choose what cannot be
        place -= 1
    return int(ids[place])
