"""Scale that is moved from activations to weights: the product stays, and both ends come to be equally large."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from export.smooth import smooth

WIDTH, OUTPUTS = 6, 5


def graph() -> onnx.ModelProto:
    """x -> norm -> MatMul; x -> another norm of the same factors -> Squeeze -> Gemm; x -> MatMul."""
    generator = np.random.default_rng(0)
    matrices = {
        name: generator.standard_normal(shape).astype(np.float32)
        for name, shape in (("w", (WIDTH, OUTPUTS)), ("table", (OUTPUTS, WIDTH)), ("plain", (WIDTH, OUTPUTS)))
    }
    constants: dict[str, npt.NDArray[Any]] = {"factors": np.full(WIDTH, 2, np.float32), **matrices}
    constants["axis"] = np.array([1])
    nodes = [
        helper.make_node("RMSNormalization", ["x", "factors"], ["first"], epsilon=1e-5),
        helper.make_node("MatMul", ["first", "w"], ["y"]),
        helper.make_node("RMSNormalization", ["x", "factors"], ["second"], epsilon=1e-5),
        helper.make_node("Squeeze", ["second", "axis"], ["flat"]),
        helper.make_node("Gemm", ["flat", "table"], ["z"], transB=1),
        helper.make_node("Relu", ["x"], ["active"]),
        helper.make_node("MatMul", ["active", "plain"], ["v"]),
    ]
    made = helper.make_graph(
        nodes,
        "norms",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["B", 1, WIDTH])],
        [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, ["B", None, None][:axes])
            for name, axes in (("y", 3), ("z", 2), ("v", 3))
        ],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 23)], ir_version=10)


def constants_of(model: onnx.ModelProto) -> dict[str, npt.NDArray[Any]]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def outputs_of(model: onnx.ModelProto, x: npt.NDArray[np.float32]) -> list[npt.NDArray[np.float32]]:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    outputs: list[npt.NDArray[np.float32]] = session.run(None, {"x": x})
    return outputs


CHANNELS = {name: np.array([4, 1, 0.25, 9, 1, 0], np.float32) for name in ("first", "flat", "active")}


def test_the_outputs_stay_and_so_does_the_original() -> None:
    model = graph()
    before = model.SerializeToString()
    smoothed = smooth(model, CHANNELS)
    onnx.checker.check_model(smoothed)
    x = np.random.default_rng(1).standard_normal((3, 1, WIDTH)).astype(np.float32)
    for found, wanted in zip(outputs_of(smoothed, x), outputs_of(model, x), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)
    assert model.SerializeToString() == before
    assert [node.op_type for node in smoothed.graph.node] == [node.op_type for node in model.graph.node]


@pytest.mark.parametrize(("norm", "name", "weight"), [("first", "first", "w"), ("second", "flat", "table")])
def test_activations_and_weights_of_a_channel_come_to_be_equally_large(norm: str, name: str, weight: str) -> None:
    model = graph()
    stored, found = constants_of(model), constants_of(smooth(model, CHANNELS))
    factors = found[f"{norm}.factors"] / stored["factors"]  # [K]
    matrix = found[weight].T if weight == "table" else found[weight]  # [K,N]
    largest = np.abs(matrix).max(axis=1)
    np.testing.assert_allclose((CHANNELS[name] * factors)[:-1], largest[:-1], rtol=1e-5)
    assert np.isfinite(factors).all()  # of a channel that is always 0, too


def test_what_comes_from_no_norm_or_has_no_range_stays() -> None:
    model = graph()
    stored = constants_of(model)
    np.testing.assert_array_equal(constants_of(smooth(model, CHANNELS))["plain"], stored["plain"])
    untouched = constants_of(smooth(model, {}))
    assert untouched.keys() == stored.keys()
    for name, array in untouched.items():
        np.testing.assert_array_equal(array, stored[name])


def test_a_norm_that_others_read_stays() -> None:
    model = graph()
    model.graph.node.append(helper.make_node("Neg", ["first"], ["negative"]))
    found = constants_of(smooth(model, CHANNELS))
    np.testing.assert_array_equal(found["w"], constants_of(model)["w"])
    assert "first.factors" not in found
    assert "second.factors" in found
