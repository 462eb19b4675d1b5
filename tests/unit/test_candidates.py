"""The best tokens of each row, by NumPy for one and by the candidates' graph for several, against a plain sort."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnxruntime
import pytest

from export.candidates_graph import LARGEST_GROUP, candidates_to_onnx, group_size
from service.candidates import best_tokens
from service.graph_signature import Architecture, GraphSignature

Found = tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]


def log_probabilities(num_rows: int, vocabulary_size: int = 8000) -> npt.NDArray[np.float32]:
    values = np.random.default_rng(7).standard_normal((num_rows, vocabulary_size)) * 4
    values -= np.log(np.exp(values).sum(axis=1, keepdims=True))
    return values.astype(np.float32)


def by_graph(values: npt.NDArray[np.float32], num_candidates: int) -> Found:
    architecture = Architecture(
        width=8,
        heads=1,
        feed_forward=8,
        encoder_layers=1,
        decoder_layers=1,
        source_vocabulary=8,
        target_vocabulary=values.shape[1],
        target_tokens=values.shape[1],
        max_positions=8,
    )
    signature = GraphSignature.of(architecture)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        candidates_to_onnx(signature, 18).SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    assert signature.check_candidates(session.get_inputs(), session.get_outputs()) == []
    ids, best = session.run(
        ["candidate_ids", "candidate_log_probabilities"],
        {"log_probabilities": values, "num_candidates": np.array([num_candidates], np.int64)},
    )
    return ids, best


def by_sort(values: npt.NDArray[np.float32], num_candidates: int) -> Found:
    order = np.argsort(-values, axis=1, kind="stable")[:, :num_candidates]
    return order, np.take_along_axis(values, order, axis=1)


def check(found: Found, values: npt.NDArray[np.float32], num_candidates: int) -> None:
    ids, best = by_sort(values, num_candidates)
    np.testing.assert_array_equal(found[0], ids)
    np.testing.assert_array_equal(found[1], best)
    assert found[1].dtype == np.float32


def test_one_equals_a_stable_sort() -> None:
    values = log_probabilities(5)
    values[3, [70, 20]] = values[3].max() + 1
    before = values.copy()
    check(best_tokens(values), values, 1)
    np.testing.assert_array_equal(values, before)


@pytest.mark.parametrize("vocabulary_size", [8, 16, 312, 1000, 8 * 1009, 8000, 16384])
def test_several_equal_a_stable_sort(vocabulary_size: int) -> None:
    values = log_probabilities(5, vocabulary_size)
    for num_candidates in (1, 2, 3, 8, 16, 33, 48, 500):
        if num_candidates <= vocabulary_size:
            check(by_graph(values, num_candidates), values, num_candidates)


@pytest.mark.parametrize("vocabulary_size", [16, 312, 8000])
@pytest.mark.parametrize("num_levels", [1, 2, 5, 40])
def test_equal_candidates_come_in_the_order_of_their_ids(vocabulary_size: int, num_levels: int) -> None:
    levels = np.random.default_rng(num_levels).integers(0, num_levels, (6, vocabulary_size))
    values = -levels.astype(np.float32)
    values[-1] = -np.sort(levels[-1])[::-1]  # the best stand last
    for num_candidates in (1, 2, 4, 9, 16):
        check(by_graph(values, num_candidates), values, num_candidates)
    check(best_tokens(values), values, 1)


def test_a_group_holds_several_of_the_best() -> None:
    values = log_probabilities(3)
    size = group_size(8000)
    values[0, size * 5 : size * 6] += 100  # the best are all of one group
    values[1, [size - 1, size, 2 * size - 1, 2 * size]] += 100  # and at the edges of groups
    check(by_graph(values, 40), values, 40)


@pytest.mark.parametrize(("vocabulary_size", "size"), [(8000, 64), (8, 8), (312, 52), (8 * 1009, 8), (16384, 64)])
def test_groups_divide_the_vocabulary(vocabulary_size: int, size: int) -> None:
    assert group_size(vocabulary_size) == size <= LARGEST_GROUP
    assert vocabulary_size % size == 0


@pytest.mark.parametrize("num_candidates", [1, 2, 16])
def test_broken_numbers_stay_in_their_row(num_candidates: int) -> None:
    """A log-softmax makes a whole row NaN, or takes it to minus infinity."""
    values = log_probabilities(4)
    broken = values.copy()
    broken[1] = np.nan
    broken[3] = -np.inf
    ids, best = best_tokens(broken) if num_candidates == 1 else by_graph(broken, num_candidates)
    assert not np.isfinite(best[[1, 3], 0]).any()
    wanted_ids, wanted = by_sort(values, num_candidates)
    np.testing.assert_array_equal(ids[[0, 2]], wanted_ids[[0, 2]])
    np.testing.assert_array_equal(best[[0, 2]], wanted[[0, 2]])
    assert ((ids >= 0) & (ids < 8000)).all()


def test_one_value_that_is_no_number_shows() -> None:
    values = log_probabilities(3)
    values[1, 17] = np.nan
    _, best = best_tokens(values)
    assert np.isnan(best[1, 0])
    assert np.isfinite(best[[0, 2], 0]).all()
