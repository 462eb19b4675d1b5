"""The bytes of a weight matrix: how far off they are, the bound on neighbours, errors that make up for others."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from export.rounding import GROUP, LARGEST, LARGEST_PAIR, quantize_in_pairs, quantize_matrix

Floats = npt.NDArray[np.float32]
small_matrices = hnp.arrays(
    np.float32, st.tuples(st.integers(1, 3), st.integers(1, 18)), elements=st.floats(-8, 8, width=32)
)


def sums_of_pairs(data: npt.NDArray[np.int8]) -> tuple[int, int]:
    """The highest and the lowest sum of two bytes of one sign among any four in a row of a matrix [N,K]."""
    highest = lowest = 0
    for row in data.astype(int).tolist():
        for first in range(0, len(row), GROUP):
            group = sorted([*row[first : first + GROUP], 0, 0])
            highest, lowest = max(highest, sum(group[-2:])), min(lowest, sum(group[:2]))
    return highest, lowest


def correlated(positions: int, channels: int, seed: int = 0) -> npt.NDArray[np.float64]:
    """Activations [positions,channels] of which a few directions hold nearly all."""
    generator = np.random.default_rng(seed)
    few = generator.standard_normal((positions, 4)) @ generator.standard_normal((4, channels))
    return few + 0.05 * generator.standard_normal((positions, channels))


@given(hnp.arrays(np.float32, (3, 64), elements=st.floats(-8, 8, width=32)))
def test_a_weight_is_off_by_half_a_scale_at_most(matrix: Floats) -> None:
    weight = quantize_matrix(matrix)
    assert weight.data.shape == (3, 64)
    assert weight.scales.shape == (3,)
    error = np.abs(weight.dequantize() - matrix).max(axis=1)
    assert (error <= weight.scales * 0.5001 + 1e-30).all()
    assert np.abs(weight.data.astype(int)).max() <= LARGEST


def test_the_largest_weight_of_a_row_is_exact_and_zero_stays_zero() -> None:
    matrix = np.zeros((3, 64), np.float32)
    matrix[0, 3], matrix[0, 40] = -127.0, 2.54
    matrix[1, 5] = 0.5
    weight = quantize_matrix(matrix)
    assert (weight.data[0, 3], weight.data[0, 40], weight.data[1, 5]) == (-127, 3, 127)
    assert weight.dequantize()[0, 3] == -127.0
    assert weight.dequantize()[1, 5] == pytest.approx(0.5, rel=1e-6)
    assert np.count_nonzero(weight.data) == 3
    np.testing.assert_array_equal(weight.dequantize()[2], 0.0)  # no NaN where all is zero


@given(small_matrices)
def test_no_two_of_four_weights_pass_the_largest_pair(matrix: Floats) -> None:
    weight = quantize_in_pairs(matrix)
    highest, lowest = sums_of_pairs(weight.data)
    assert highest <= LARGEST_PAIR
    assert lowest >= -LARGEST_PAIR
    assert (np.abs(weight.dequantize() - matrix).max(axis=1) <= weight.scales * 0.5001 + 1e-30).all()
    plain = quantize_matrix(matrix).scales
    assert (weight.scales >= plain).all()
    assert (weight.scales <= plain * 2.0001).all()


@given(small_matrices, st.booleans(), st.integers(0, 100))
def test_the_bound_holds_when_errors_are_made_up_for(matrix: Floats, has_one_scale: bool, seed: int) -> None:
    x = 10 * correlated(30, matrix.shape[1], seed)
    weight = quantize_in_pairs(matrix, moments=x.T @ x / len(x), has_one_scale=has_one_scale)
    highest, lowest = sums_of_pairs(weight.data)
    assert highest <= LARGEST_PAIR
    assert lowest >= -LARGEST_PAIR
    assert np.abs(weight.data.astype(int)).max() <= LARGEST


def test_the_scale_of_pairs_is_no_larger_than_it_must_be() -> None:
    matrix = np.zeros((3, 8), np.float32)
    matrix[0, [0, 5]] = 1.27, 1.27  # in two groups: as precise as ever
    matrix[1, [1, 3]] = 1.27, -1.27  # of two signs, which never add up
    matrix[2, [4, 7]] = -1.27, -1.27
    weight = quantize_in_pairs(matrix)
    np.testing.assert_allclose(weight.scales, [0.01, 0.01, 0.02], rtol=1e-6)
    assert weight.data[0, [0, 5]].tolist() == [127, 127]
    assert weight.data[1, [1, 3]].tolist() == [127, -127]
    assert weight.data[2, [4, 7]].tolist() == [-64, -64]


def test_one_scale_is_the_largest_of_all() -> None:
    matrix = np.random.default_rng(1).standard_normal((5, 12)).astype(np.float32)
    matrix[3] *= 9
    weight, each = quantize_in_pairs(matrix, has_one_scale=True), quantize_in_pairs(matrix)
    np.testing.assert_array_equal(weight.scales, np.full(5, each.scales[3]))
    np.testing.assert_array_equal(weight.data[3], each.data[3])
    assert np.abs(weight.dequantize() - matrix).max() <= each.scales[3] * 0.5001


def test_errors_are_made_up_for_where_channels_go_together_and_only_there() -> None:
    matrix = np.random.default_rng(2).standard_normal((16, 48)).astype(np.float32)
    plain = quantize_in_pairs(matrix)
    x = correlated(500, 48)
    made_up = quantize_in_pairs(matrix, moments=x.T @ x / len(x))
    np.testing.assert_array_equal(made_up.scales, plain.scales)
    errors = [float(np.square(x @ (weight.dequantize() - matrix).T).mean()) for weight in (made_up, plain)]
    assert errors[0] < 0.2 * errors[1]
    apart = quantize_in_pairs(matrix, moments=np.diag(np.arange(1.0, 49.0)))
    np.testing.assert_array_equal(apart.data, plain.data)


def test_channels_that_are_always_zero_do_no_harm() -> None:
    matrix = np.random.default_rng(3).standard_normal((4, 8)).astype(np.float32)
    for moments in (np.zeros((8, 8)), np.diag([1.0, 0, 0, 2, 0, 0, 0, 1])):
        np.testing.assert_array_equal(quantize_in_pairs(matrix, moments=moments).data, quantize_in_pairs(matrix).data)
