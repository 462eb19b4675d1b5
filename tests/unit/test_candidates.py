"""Best tokens and their log-probabilities, against a plain reference in float64."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from service.candidates import best_candidates


def logits(num_rows: int, vocabulary_size: int = 8000, scale: float = 4.0) -> npt.NDArray[np.float32]:
    rng = np.random.default_rng(7)
    return (rng.standard_normal((num_rows, vocabulary_size)) * scale).astype(np.float32)


def reference(values: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """Log-probabilities as the definition says."""
    wide = values.astype(np.float64)
    wide -= wide.max(axis=1, keepdims=True)
    return np.asarray(wide - np.log(np.exp(wide).sum(axis=1, keepdims=True)))


@pytest.mark.parametrize("num_candidates", [1, 2, 8])
@pytest.mark.parametrize("scale", [0.01, 4.0, 300.0])
def test_equals_the_reference(num_candidates: int, scale: float) -> None:
    values = logits(5, scale=scale)
    wanted = reference(values)
    order = np.argsort(-wanted, axis=1, kind="stable")[:, :num_candidates]
    found = best_candidates(values, num_candidates)
    np.testing.assert_array_equal(found.token_ids, order)
    np.testing.assert_allclose(found.log_probabilities, np.take_along_axis(wanted, order, axis=1), rtol=2e-6, atol=2e-6)
    assert found.log_probabilities.dtype == np.float32


def test_equal_candidates_come_in_the_order_of_their_ids() -> None:
    values = np.zeros((2, 16), np.float32)
    values[1, [11, 3, 7]] = 2.0
    found = best_candidates(values, 4)
    assert found.token_ids.tolist() == [[0, 1, 2, 3], [3, 7, 11, 0]]
    np.testing.assert_allclose(found.log_probabilities[0], -np.log(16), rtol=1e-6)


@pytest.mark.parametrize("vocabulary_size", [8, 504, 8000, 32000])
def test_a_row_has_the_same_bits_in_any_company(vocabulary_size: int) -> None:
    buffer = np.empty((64, vocabulary_size), np.float32)
    values = logits(64, vocabulary_size)
    alone = []
    for row in range(64):
        buffer[:1] = values[row]
        alone.append(best_candidates(buffer[:1], 2).log_probabilities.tobytes())
    for num_rows in (2, 3, 7, 16, 33, 64):
        buffer[:num_rows] = values[64 - num_rows :]
        together = best_candidates(buffer[:num_rows], 2).log_probabilities
        assert [row.tobytes() for row in together] == alone[64 - num_rows :]


@pytest.mark.parametrize("broken", [np.nan, np.inf])
def test_broken_numbers_stay_in_their_row(broken: float) -> None:
    values = logits(3)
    wanted = best_candidates(values.copy(), 1)
    values[1, 17] = broken
    found = best_candidates(values, 1)
    assert not np.isfinite(found.log_probabilities[1, 0])
    for row in (0, 2):
        assert found.token_ids[row] == wanted.token_ids[row]
        assert found.log_probabilities[row].tobytes() == wanted.log_probabilities[row].tobytes()


def test_a_row_of_nothing_possible_is_broken_too() -> None:
    assert not np.isfinite(best_candidates(np.full((1, 8), -np.inf, np.float32), 1).log_probabilities[0, 0])


@pytest.mark.parametrize("num_candidates", [0, 9])
def test_a_number_that_cannot_be_is_refused(num_candidates: int) -> None:
    with pytest.raises(ValueError, match="between 1 and 8"):
        best_candidates(np.zeros((1, 8), np.float32), num_candidates)
