"""The bytes of a weight matrix: its scales, the bound on neighbours, and rounding that makes up for its own errors.

A row [K] of a matrix [N,K] is an output; it is stored as round(w / s), -127..127.

- **The bound** (docs/decisions/0004): no two weights of one sign among four in a row come to more than LARGEST_PAIR, so
  that processors without VNNI, which add two products in 16 bits, agree with the others.
- **Making up** (docs/decisions/0007): the weights of an output are rounded one after the other, and what rounding one
  of them does to the output is taken off the ones that are left, as far as the activations go together. It needs to
  know how they do (their second moments), and costs nothing at run time (GPTQ, Frantar et al. 2022).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

LARGEST = 127
"""Weights are stored as -127..127."""
LARGEST_PAIR = 128
"""Most that two weights of one sign among four in a row may come to: 2 products of any two bytes of activations and
such weights, 255 · 128 = 32,640 together, stay inside 16 bits."""
GROUP = 4
"""Weights of an output that a processor multiplies at once; it adds their products in pairs."""
DAMPING = 0.05
"""Share of the mean moment that is added to every channel's own, so that channels that hardly vary do no harm."""

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class QuantizedWeight:
    """A matrix [N,K] with one scale a row."""

    data: npt.NDArray[np.int8]
    """[N,K]."""
    scales: Floats
    """[N]."""

    def dequantize(self) -> Floats:
        """The matrix [N,K] that the bytes stand for."""
        matrix: Floats = self.data.astype(np.float32) * self.scales[:, None]
        return matrix


def quantize_matrix(matrix: Floats) -> QuantizedWeight:
    """A matrix [N,K] row by row, rounded to the nearest; the error is at most half the row's scale."""
    scales = (np.abs(matrix).max(axis=1) / np.float32(LARGEST)).astype(np.float32)  # [N]
    data = np.clip(np.rint(matrix / _divisors(scales)[:, None]), -LARGEST, LARGEST).astype(np.int8)
    return QuantizedWeight(data=data, scales=scales)


def quantize_in_pairs(
    matrix: Floats, *, moments: npt.NDArray[np.float64] | None = None, has_one_scale: bool = False
) -> QuantizedWeight:
    """A matrix [N,K] row by row, such that no two entries of one sign among four in a row pass LARGEST_PAIR together.

    Args:
        matrix: [N,K].
        moments: [K,K] mean products of the channels of the activations; None: each weight is rounded to the nearest,
            and its error is at most half the row's scale.
        has_one_scale: whether all rows take the largest scale of any.

    A scale is the least that allows for the bound: between 1 and 2 times that of `quantize_matrix`, and for most
    matrices nearer to 1.
    """
    outputs, width = matrix.shape
    groups = np.zeros((outputs, -(-width // GROUP), GROUP), matrix.dtype)
    groups.reshape(outputs, -1)[:, :width] = matrix
    ordered = np.sort(groups, axis=-1)  # [N,K/4,4]
    highest = np.maximum(ordered[..., -2:], 0).sum(axis=-1).max(axis=1)  # [N]
    lowest = np.maximum(-ordered[..., :2], 0).sum(axis=-1).max(axis=1)  # [N]
    largest = np.abs(matrix).max(axis=1) / np.float32(LARGEST)  # [N]
    # two roundings may add 1/2 each, hence the 1
    scales = np.maximum(largest, np.maximum(highest, lowest) / np.float32(LARGEST_PAIR - 1)).astype(np.float32)
    if has_one_scale:
        scales = np.full_like(scales, scales.max())
    if moments is None:
        moments = np.eye(width)  # channels that have nothing to do with each other: nothing can be made up for
    return QuantizedWeight(data=_rounded(matrix, scales, moments), scales=scales)


def _rounded(matrix: Floats, scales: Floats, moments: npt.NDArray[np.float64]) -> npt.NDArray[np.int8]:
    """The bytes [N,K]: channel by channel, each error taken off the channels that are left."""
    rest = matrix / _divisors(scales).astype(np.float64)[:, None]  # [N,K]
    mean = float(np.trace(moments)) / len(moments)
    damped = moments + np.eye(len(moments)) * (DAMPING * mean or 1.0)
    # row k: how the errors of channel k are best shared out among those after it
    shares = np.linalg.cholesky(np.linalg.inv(damped)).T  # [K,K], upper
    data = np.zeros(matrix.shape, np.int8)
    highest = lowest = np.zeros(len(matrix))
    for channel in range(matrix.shape[1]):
        if channel % GROUP == 0:
            highest = lowest = np.zeros(len(matrix))  # [N] of the group so far
        most = np.minimum(LARGEST, LARGEST_PAIR - highest)
        least = np.maximum(-LARGEST, -LARGEST_PAIR - lowest)
        chosen = np.clip(np.rint(rest[:, channel]), least, most)  # [N]
        highest, lowest = np.maximum(highest, chosen), np.minimum(lowest, chosen)
        data[:, channel] = chosen
        errors = (rest[:, channel] - chosen) / shares[channel, channel]
        rest[:, channel + 1 :] -= errors[:, None] * shares[channel, channel + 1 :]
    return data


def _divisors(scales: Floats) -> Floats:
    return np.where(scales > 0, scales, np.float32(1))
