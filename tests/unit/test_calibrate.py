"""What activations are like, beside a graph whose activations are known."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from export.calibrate import INSIDE, calibrate_encoder
from service.tokenizer import PAD_ID

WIDTH, TOKENS = 4, 50


def encoder() -> onnx.ModelProto:
    """ids -> a table whose row i is ±i -> MatMul -> ReLU -> MatMul; padding's row is huge."""
    table = np.arange(TOKENS, dtype=np.float32)[:, None] * np.array([1, -1, 0.5, 0], np.float32)
    table[PAD_ID] = 1e6
    nodes = [
        helper.make_node("Gather", ["table", "source_ids"], ["embedded"]),
        helper.make_node("MatMul", ["embedded", "doubling"], ["doubled"]),
        helper.make_node("Relu", ["doubled"], ["active"]),
        helper.make_node("MatMul", ["active", "doubling"], ["outputs"]),
        helper.make_node("Cast", ["source_lengths"], ["lengths"], to=TensorProto.FLOAT),
    ]
    graph = helper.make_graph(
        nodes,
        "encoder",
        [
            helper.make_tensor_value_info("source_ids", TensorProto.INT64, ["B", "S"]),
            helper.make_tensor_value_info("source_lengths", TensorProto.INT32, ["B"]),
        ],
        [
            helper.make_tensor_value_info("outputs", TensorProto.FLOAT, ["B", "S", WIDTH]),
            helper.make_tensor_value_info("lengths", TensorProto.FLOAT, ["B"]),
        ],
        [
            numpy_helper.from_array(table, "table"),
            numpy_helper.from_array(np.diag([2.0, 3.0, 2.0, 2.0]).astype(np.float32), "doubling"),
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def test_the_range_holds_nearly_all_positions_and_no_padding() -> None:
    generator = np.random.default_rng(0)
    sources = [generator.integers(4, TOKENS, generator.integers(1, 30)).tolist() for _ in range(70)]
    ids = np.concatenate(sources).astype(np.float32)
    found = calibrate_encoder(encoder(), sources).ranges
    assert list(found) == ["embedded", "active"]
    assert found["embedded"] == pytest.approx(np.quantile(ids, INSIDE))
    assert found["active"] == pytest.approx(np.quantile(2 * ids, INSIDE))  # the 3 is of the negative ones


def test_rare_large_values_do_not_widen_the_range() -> None:
    sources = [[5] * 20] * 20
    assert calibrate_encoder(encoder(), sources).ranges["embedded"] == 5
    assert calibrate_encoder(encoder(), [*sources, [49]]).ranges["embedded"] == 5
    assert calibrate_encoder(encoder(), [[49]]).ranges["embedded"] == 49


def test_moments_are_the_mean_products_of_channels_without_padding() -> None:
    sources = [[4, 6, 9], [5]]
    found = calibrate_encoder(encoder(), sources).moments
    table = np.array([[i, -i, i / 2, 0] for i in (4, 6, 9, 5)])
    np.testing.assert_allclose(found["embedded"], table.T @ table / 4)
    doubled = np.maximum(table @ np.diag([2, 3, 2, 2]), 0)
    np.testing.assert_allclose(found["active"], doubled.T @ doubled / 4)
