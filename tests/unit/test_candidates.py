"""The best tokens of each row, against a plain sort."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from service.candidates import best_candidates


def log_probabilities(num_rows: int, vocabulary_size: int = 8000) -> npt.NDArray[np.float32]:
    values = np.random.default_rng(7).standard_normal((num_rows, vocabulary_size)) * 4
    values -= np.log(np.exp(values).sum(axis=1, keepdims=True))
    return values.astype(np.float32)


@pytest.mark.parametrize("num_candidates", [1, 2, 8])
def test_equals_a_stable_sort(num_candidates: int) -> None:
    values = log_probabilities(5)
    order = np.argsort(-values, axis=1, kind="stable")[:, :num_candidates]
    wanted = np.take_along_axis(values, order, axis=1)
    found = best_candidates(values, num_candidates)
    np.testing.assert_array_equal(found.token_ids, order)
    np.testing.assert_array_equal(found.log_probabilities, wanted)
    assert found.log_probabilities.dtype == np.float32


@pytest.mark.parametrize("num_candidates", [1, 3])
def test_leaves_its_input_as_it_was(num_candidates: int) -> None:
    values = log_probabilities(4, 64)
    before = values.copy()
    best_candidates(values, num_candidates)
    np.testing.assert_array_equal(values, before)


def test_equal_candidates_come_in_the_order_of_their_ids() -> None:
    values = np.full((2, 16), -3.0, np.float32)
    values[1, [11, 3, 7]] = -1.0
    assert best_candidates(values, 4).token_ids.tolist() == [[0, 1, 2, 3], [3, 7, 11, 0]]


def test_broken_numbers_stay_in_their_row() -> None:
    values = log_probabilities(3)
    wanted = best_candidates(values, 1)
    values[1, 17] = np.nan
    found = best_candidates(values, 1)
    assert np.isnan(found.log_probabilities[1, 0])
    for row in (0, 2):
        assert found.token_ids[row] == wanted.token_ids[row]
        assert found.log_probabilities[row] == wanted.log_probabilities[row]


def test_a_row_of_nothing_possible_is_broken_too() -> None:
    assert not np.isfinite(best_candidates(np.full((1, 8), -np.inf, np.float32), 1).log_probabilities[0, 0])


@pytest.mark.parametrize("num_candidates", [0, 9])
def test_a_number_that_cannot_be_is_refused(num_candidates: int) -> None:
    with pytest.raises(ValueError, match="between 1 and 8"):
        best_candidates(np.zeros((1, 8), np.float32), num_candidates)
