"""Int8: the numbers of weights and activations, and the graph they make, beside integers in NumPy."""

from __future__ import annotations

import re
from collections import Counter

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from onnx import TensorProto, helper, numpy_helper

from export.quantize import (
    ACTIVATION_ZERO,
    LARGEST_ACTIVATION,
    LARGEST_BYTE,
    MICROSOFT,
    OPERATOR,
    QuantizeError,
    product_inputs,
    quantize,
)
from export.rounding import LARGEST_PAIR, quantize_in_pairs, quantize_matrix
from tests.unit.test_rounding import sums_of_pairs

Floats = npt.NDArray[np.float32]
WIDTH, ROWS, HIDDEN = 64, 24, 96


# The reference: the recipe in NumPy, with the bytes that a graph must have and sums in integers.


def activation_bytes(x: Floats, largest: float) -> npt.NDArray[np.uint8]:
    """The bytes of activations of the range ±largest."""
    return np.clip(np.rint(x / np.float32(largest / 127)) + 128, 0, 255).astype(np.uint8)


def weight_bytes(matrix: Floats) -> tuple[npt.NDArray[np.int8], Floats]:
    """The bytes of an embedding as [D,V], and the scale of each token [V]."""
    scales = np.abs(matrix).max(axis=0) / np.float32(127)  # [V]
    return np.rint(matrix / np.where(scales > 0, scales, 1)).astype(np.int8), scales


def integer_product(data: npt.NDArray[np.uint8], zero: int, scale: float, matrix: Floats, bias: Floats) -> Floats:
    """Bytes [...,K] times a matrix [K,N], in the recipe's integers."""
    weight = quantize_in_pairs(np.ascontiguousarray(matrix.T))
    sums = (data.astype(np.int64) - zero) @ weight.data.T.astype(np.int64)
    wanted: Floats = (sums * (weight.scales.astype(np.float64) * scale) + bias).astype(np.float32)
    return wanted


def assert_close(found: Floats, wanted: Floats) -> None:
    """Within 1e-5 of the largest value of a row."""
    assert found.shape == wanted.shape
    assert (np.abs(found - wanted) <= 1e-5 * np.abs(wanted).max(axis=-1, keepdims=True) + 1e-30).all()


def constants(model: onnx.ModelProto) -> dict[str, npt.NDArray[np.generic]]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def open_session(model: onnx.ModelProto, num_threads: int = 1) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_threads
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


# One product.


def product_model(matrix: Floats, bias: Floats | None = None, *, axes: int = 3) -> onnx.ModelProto:
    """fp32: y = x W (+ b), of an x with `axes` axes."""
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y" if bias is None else "xw"])]
    initializers = [numpy_helper.from_array(matrix, "w")]
    if bias is not None:
        nodes.append(helper.make_node("Add", ["xw", "b"], ["y"]))
        initializers.append(numpy_helper.from_array(bias, "b"))
    leading = ["B", "S"][: axes - 1]
    graph = helper.make_graph(
        nodes,
        "product",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [*leading, matrix.shape[0]])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [*leading, matrix.shape[1]])],
        initializers,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def with_bytes(model: onnx.ModelProto) -> onnx.ModelProto:
    """A graph that also puts out the bytes of its activations."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for node in copy.graph.node:
        if node.op_type == OPERATOR:
            copy.graph.output.append(helper.make_tensor_value_info(node.input[0], TensorProto.UINT8, None))
    return copy


def random_floats(*shape: int, seed: int = 0) -> Floats:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize(("width", "outputs"), [(64, 96), (192, 24), (48, 17), (7, 5), (1, 1)])
def test_a_product_is_the_one_of_the_integers(width: int, outputs: int) -> None:
    matrix, bias, x = random_floats(width, outputs), random_floats(outputs, seed=1), random_floats(2, 9, width, seed=2)
    quantized = quantize(product_model(matrix, bias), {"x": 2.54})
    onnx.checker.check_model(quantized)
    found, data = open_session(with_bytes(quantized)).run(None, {"x": x})
    np.testing.assert_array_equal(data, activation_bytes(x, 2.54))
    assert_close(found, integer_product(data, 128, 0.02, matrix, bias))
    np.testing.assert_array_equal(open_session(quantized).run(None, {"x": x})[0], found)
    (without,) = open_session(quantize(product_model(matrix), {"x": 2.54})).run(None, {"x": x})
    assert_close(without, integer_product(data, 128, 0.02, matrix, np.zeros(outputs, np.float32)))


@pytest.fixture(scope="module")
def session_of_8() -> onnxruntime.InferenceSession:
    return open_session(with_bytes(quantize(product_model(random_floats(8, 3), axes=2), {"x": 3.0})))


@given(
    x=hnp.arrays(np.float32, (4, 8), elements=st.floats(-4, 4, width=32) | st.floats(-(2.0**100), 2.0**100, width=32))
)
def test_an_activation_is_off_by_half_a_step_inside_the_range(
    session_of_8: onnxruntime.InferenceSession, x: Floats
) -> None:
    _, data = session_of_8.run(None, {"x": x})
    found, step = data.astype(np.int64) - ACTIVATION_ZERO, 3.0 / LARGEST_ACTIVATION  # [4,8]
    is_inside = np.abs(x) <= 3.0
    assert (np.abs(found * step - x)[is_inside] <= step * 0.5001).all()
    assert (found[x == 0] == 0).all()
    assert (found[x > 3.0] >= LARGEST_ACTIVATION).all()
    assert (found[x < -3.0] <= -LARGEST_ACTIVATION).all()


@pytest.mark.parametrize("has_bias", [True, False])
def test_rows_of_zeros_give_the_bias_and_no_nan(has_bias: bool) -> None:
    matrix, x = random_floats(WIDTH, HIDDEN), random_floats(2, 5, WIDTH, seed=1)
    matrix[:, 7] = 0  # of the weights: an output
    x[1, 3] = 0
    bias = random_floats(HIDDEN, seed=2) if has_bias else None
    found, data = open_session(with_bytes(quantize(product_model(matrix, bias), {"x": 3.0}))).run(None, {"x": x})
    assert np.isfinite(found).all()
    assert (data[1, 3] == ACTIVATION_ZERO).all()
    wanted = bias if bias is not None else np.zeros(HIDDEN, np.float32)
    np.testing.assert_array_equal(found[1, 3], wanted)
    np.testing.assert_array_equal(found[..., 7], np.broadcast_to(wanted[7], (2, 5)))
    assert (found[1, 2] != wanted).sum() == HIDDEN - 1  # and only there


def test_what_lies_outside_the_range_is_cut_off_and_touches_no_other_row() -> None:
    matrix, x = random_floats(8, 3), np.zeros((4, 8), np.float32)
    x[0], x[2], x[3] = 1e30, -1e30, 0.5
    quantized = quantize(product_model(matrix, axes=2), {"x": 1.27})
    found, data = open_session(with_bytes(quantized)).run(None, {"x": x})
    assert [set(row.tolist()) for row in data] == [{255}, {128}, {0}, {178}]
    np.testing.assert_array_equal(found[3:], open_session(quantized).run(None, {"x": x[3:]})[0])


def test_no_pair_of_products_passes_16_bits() -> None:
    """Processors without VNNI add two products of an unsigned and a signed byte in 16 bits, and cut the sum off.

    Whatever the activations are, the ends of a byte bound them; the weights are bounded in pairs.
    """
    most, least = LARGEST_BYTE * LARGEST_PAIR, -LARGEST_BYTE * LARGEST_PAIR
    assert np.iinfo(np.int16).min <= least < most <= np.iinfo(np.int16).max
    quantized = quantize(product_model(np.tile(np.array([0.3, -0.3], np.float32), (256, 1)), axes=2), {"x": 1.0})
    assert sums_of_pairs(constants(quantized)["w.static.int8"].T.astype(np.int8)) == (LARGEST_PAIR, -LARGEST_PAIR)
    (found,) = open_session(quantized).run(None, {"x": np.full((1, 256), 1e9, np.float32)})
    np.testing.assert_allclose(found, [[76.8, -76.8]], rtol=0.02)  # 128 steps of 1/127 above the zero, 1 off in 127


def test_a_range_of_zero_gives_the_bias_and_divides_by_no_zero() -> None:
    matrix, bias = random_floats(8, 3), random_floats(3, seed=1)
    quantized = quantize(product_model(matrix, bias), {"x": 0.0})
    assert constants(quantized)["x.scale"] > 0
    found, data = open_session(with_bytes(quantized)).run(None, {"x": np.zeros((1, 2, 8), "f")})
    assert (data == ACTIVATION_ZERO).all()
    np.testing.assert_array_equal(found, np.broadcast_to(bias, (1, 2, 3)))


@pytest.mark.parametrize("is_read_elsewhere", [False, True])
def test_the_bytes_of_a_relu_do_its_work(is_read_elsewhere: bool) -> None:
    model, arrays = tied_graph()
    if not is_read_elsewhere:
        del model.graph.output[1]  # `active`
    quantized = quantize(model, RANGES | {"active": 5.1})
    onnx.checker.check_model(quantized)
    operators = Counter(node.op_type for node in quantized.graph.node)
    assert (operators["Relu"], operators["QuantizeLinear"]) == (int(is_read_elsewhere), 3)
    with_hidden = with_bytes(quantized)
    with_hidden.graph.output.append(helper.make_tensor_value_info("hidden", TensorProto.FLOAT, ["B", HIDDEN]))
    outputs = run(with_hidden, list(range(ROWS)))
    states, hidden = outputs[2 if is_read_elsewhere else 1], outputs[-1]
    data = np.clip(np.rint(np.maximum(hidden, 0) / np.float32(0.02)), 0, 255).astype(np.uint8)
    assert (hidden > 5.1).any()
    assert_close(states, integer_product(data, 0, 0.02, arrays["outer"], np.zeros(WIDTH, np.float32)))


def attention_model(width: int, heads: int, seed: int = 0) -> tuple[onnx.ModelProto, Floats, Floats]:
    """`Attention` over x [B,S,D] of some lengths [B], with its matrix [D,3*D] and bias [3*D]."""
    matrix, bias = random_floats(width, 3 * width, seed=seed), random_floats(3 * width, seed=seed + 1)
    node = helper.make_node(
        "Attention", ["x", "w", "b", "lengths"], ["y"], domain=MICROSOFT, num_heads=heads, mask_filter_value=-1e9
    )
    graph = helper.make_graph(
        [node],
        "attention",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, ["B", "S", width]),
            helper.make_tensor_value_info("lengths", TensorProto.INT32, ["B"]),
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["B", "S", width])],
        [numpy_helper.from_array(matrix, "w"), numpy_helper.from_array(bias, "b")],
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid(MICROSOFT, 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10), matrix, bias


@pytest.mark.parametrize(("width", "heads"), [(64, 2), (96, 4), (24, 3)])
def test_attention_is_the_one_of_the_integers(width: int, heads: int) -> None:
    model, matrix, bias = attention_model(width, heads)
    x, lengths = random_floats(3, 16, width, seed=5), np.array([16, 9, 1], np.int32)
    (found,) = open_session(quantize(model, {"x": 2.54})).run(None, {"x": x, "lengths": lengths})
    data = activation_bytes(x, 2.54)
    projected = integer_product(data, 128, 0.02, matrix, bias).astype(np.float64)  # [B,S,3*D]
    for row, length in enumerate(lengths):
        query, key, value = projected[row].reshape(16, 3, heads, -1).transpose(1, 2, 0, 3)  # each [H,S,K]
        scores = query @ key.transpose(0, 2, 1)[:, :, :length] / np.sqrt(width / heads)  # [H,S,length]
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        weights /= weights.sum(axis=-1, keepdims=True)
        wanted = (weights @ value[:, :length]).transpose(1, 0, 2).reshape(16, width)  # [S,D]
        np.testing.assert_allclose(found[row], wanted, atol=2e-5 * np.abs(projected).max(), rtol=1e-4)


# A graph of them.

RANGES = {"embedded": 30.0, "active": 220.0, "states": 200.0}
"""Of `tied_graph`: all that it holds, or nearly."""


def tied_graph(seed: int = 0) -> tuple[onnx.ModelProto, dict[str, Floats]]:
    """ids -> embedding × 8 -> MatMul + bias -> ReLU -> MatMul -> projection by the embedding's own weights."""
    generator = np.random.default_rng(seed)
    weights = {
        "embedding": generator.standard_normal((ROWS, WIDTH)),
        "inner": generator.standard_normal((WIDTH, HIDDEN)),
        "inner_bias": generator.standard_normal(HIDDEN),
        "outer": generator.standard_normal((HIDDEN, WIDTH)) / 8,
        "logit_bias": generator.standard_normal(ROWS),
        "positions": generator.standard_normal((5, WIDTH)),
    }
    arrays = {name: array.astype(np.float32) for name, array in weights.items()}
    nodes = [
        helper.make_node("Gather", ["embedding", "ids"], ["gathered"]),
        helper.make_node("Mul", ["gathered", "factor"], ["scaled"]),
        helper.make_node("Gather", ["positions", "ids_position"], ["position"]),
        helper.make_node("Add", ["scaled", "position"], ["embedded"]),
        helper.make_node("MatMul", ["embedded", "inner"], ["product"]),
        helper.make_node("Add", ["inner_bias", "product"], ["hidden"]),
        helper.make_node("Relu", ["hidden"], ["active"]),
        helper.make_node("MatMul", ["active", "outer"], ["states"]),
        helper.make_node("Gemm", ["states", "embedding", "logit_bias"], ["logits"], transB=1),
    ]
    initializers = [numpy_helper.from_array(array, name) for name, array in arrays.items()]
    initializers.append(numpy_helper.from_array(np.array(8.0, np.float32), "factor"))
    graph = helper.make_graph(
        nodes,
        "tied",
        [
            helper.make_tensor_value_info("ids", TensorProto.INT64, ["B"]),
            helper.make_tensor_value_info("ids_position", TensorProto.INT64, ["B"]),
        ],
        [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, ["B", width])
            for name, width in (("embedded", WIDTH), ("active", HIDDEN), ("states", WIDTH), ("logits", ROWS))
        ],
        initializers,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), arrays


def run(model: onnx.ModelProto, ids: list[int], num_threads: int = 1) -> list[Floats]:
    positions = [index % 5 for index in ids]
    feeds = {"ids": np.array(ids), "ids_position": np.array(positions)}
    outputs: list[Floats] = open_session(model, num_threads).run(None, feeds)
    return outputs


def test_products_and_embeddings_are_those_of_the_integers() -> None:
    model, arrays = tied_graph()
    quantized = quantize(model, RANGES)
    onnx.checker.check_model(quantized)
    ids = list(range(ROWS))
    embedded, active, states, logits, *data = run(with_bytes(quantized), ids)
    # each step is compared on what the graph itself put in, so that no rounding of one flips a byte of the next
    table, scales = weight_bytes(arrays["embedding"].T)  # [D,V], [V]
    wanted = table.T[ids] * (scales[ids] * np.float32(8))[:, None] + arrays["positions"][np.arange(ROWS) % 5]
    assert_close(embedded, wanted)
    steps = {name: largest / 127 for name, largest in RANGES.items()} | {"active": RANGES["active"] / 255}
    hidden = integer_product(data[0], 128, steps["embedded"], arrays["inner"], arrays["inner_bias"])
    assert_close(active, np.maximum(hidden, 0))
    no_bias = np.zeros(WIDTH, np.float32)
    assert_close(states, integer_product(data[1], 0, steps["active"], arrays["outer"], no_bias))
    projected = integer_product(data[2], 128, steps["states"], arrays["embedding"].T, arrays["logit_bias"])
    assert_close(logits, projected)
    np.testing.assert_array_equal(data[0], activation_bytes(embedded, RANGES["embedded"]))
    np.testing.assert_array_equal(data[1], np.clip(np.rint(active / np.float32(steps["active"])), 0, 255))
    np.testing.assert_array_equal(data[2], activation_bytes(states, RANGES["states"]))
    fp32 = run(model, ids)[-1]
    assert 1e-3 < np.abs(logits - fp32).max() / np.abs(fp32).max() < 0.05  # it is int8, and near enough


def test_an_embedding_has_one_scale_a_token_and_a_projection_tied_to_it_bytes_of_its_own() -> None:
    model, arrays = tied_graph()
    stored = constants(quantize(model, RANGES))
    np.testing.assert_array_equal(stored["embedding.int8"], weight_bytes(arrays["embedding"].T)[0].T)
    scales = quantize_matrix(arrays["embedding"]).scales
    np.testing.assert_array_equal(stored["embedding.token_scales"][:, 0], scales * np.float32(8))
    projection = quantize_in_pairs(arrays["embedding"])
    np.testing.assert_array_equal(stored["embedding.T.static.int8"], projection.data.T)
    np.testing.assert_array_equal(stored["embedding.T.static.scales"], projection.scales)


def test_no_other_matrix_stays_in_fp32_and_nothing_is_left_over() -> None:
    model, _ = tied_graph()
    before = model.SerializeToString()
    quantized = quantize(model, RANGES)
    stored = constants(quantized)
    matrices = {name for name, array in stored.items() if array.dtype == np.float32 and min((*array.shape, 0)[:2]) > 1}
    assert matrices == {"positions"}
    assert set(stored) == {name for node in quantized.graph.node for name in node.input} & set(stored)
    assert not {"embedding", "inner", "outer", "factor"} & set(stored)
    assert model.SerializeToString() == before  # the original is untouched


def test_a_product_is_two_nodes_and_has_its_bias_inside() -> None:
    operators = Counter(node.op_type for node in quantize(tied_graph()[0], RANGES).graph.node)
    assert operators[OPERATOR] == operators["QuantizeLinear"] == 3
    assert operators["Cast"] == operators["Mul"] == 1  # the embedding's
    assert operators["Add"] == 1  # the positions
    assert operators["MatMul"] == operators["Gemm"] == 0


def test_the_inputs_of_products_are_named_in_order() -> None:
    assert product_inputs(tied_graph()[0]) == ["embedded", "active", "states"]
    assert product_inputs(attention_model(24, 3)[0]) == ["x"]


def test_the_matrix_that_makes_the_logits_has_one_scale() -> None:
    model, arrays = tied_graph()
    log_softmax = helper.make_node("LogSoftmax", ["logits"], ["log_probabilities"], axis=-1)
    for ends_in_it in (False, True):
        if ends_in_it:
            model.graph.node.append(log_softmax)
        stored = constants(quantize(model, RANGES))
        assert stored["inner.static.scales"].shape == (HIDDEN,)
        weight = quantize_in_pairs(arrays["embedding"], has_one_scale=ends_in_it)
        wanted = weight.scales.max() if ends_in_it else weight.scales
        np.testing.assert_array_equal(stored["embedding.T.static.scales"], wanted)
        np.testing.assert_array_equal(stored["embedding.T.static.int8"], weight.data.T)
    assert stored["embedding.T.static.scales"].shape == ()


def test_what_rounding_does_is_made_up_for_where_the_moments_are_known() -> None:
    generator = np.random.default_rng(4)
    mixed = (generator.standard_normal((400, 6)) @ generator.standard_normal((6, 64))).astype(np.float32)
    x = mixed + random_floats(400, 64, seed=5) / 10  # channels that go together
    matrix = random_floats(64, 24, seed=6)
    errors = []
    for moments in ({}, {"x": x.T.astype(np.float64) @ x / len(x)}):
        quantized = quantize(product_model(matrix, axes=2), {"x": float(np.abs(x).max())}, moments)
        data = constants(quantized)["w.static.int8"].astype(np.float32)
        scales = constants(quantized)["w.static.scales"]
        errors.append(float(np.square(x @ (data * scales) - x @ matrix).mean()))
    assert errors[1] < 0.5 * errors[0]


def test_a_gemm_may_be_laid_out_either_way_and_have_no_bias() -> None:
    matrix, x = random_floats(WIDTH, HIDDEN), random_floats(4, WIDTH, seed=1)
    for is_transposed in (False, True):
        model = product_model(matrix.T.copy() if is_transposed else matrix, axes=2)
        model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = HIDDEN
        model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = WIDTH
        model.graph.node[0].CopyFrom(helper.make_node("Gemm", ["x", "w"], ["y"], transB=int(is_transposed)))
        (found,) = open_session(quantize(model, {"x": 2.54})).run(None, {"x": x})
        no_bias = np.zeros(HIDDEN, np.float32)
        assert_close(found, integer_product(activation_bytes(x, 2.54), 128, 0.02, matrix, no_bias))


def test_a_product_that_others_read_keeps_its_name() -> None:
    model, arrays = tied_graph()
    model.graph.output.append(helper.make_tensor_value_info("negative", TensorProto.FLOAT, ["B", HIDDEN]))
    model.graph.node.append(helper.make_node("Neg", ["product"], ["negative"]))
    quantized = quantize(model, RANGES)
    onnx.checker.check_model(quantized)
    embedded, active, *_, negative = run(quantized, [3, 1])
    data, step = activation_bytes(embedded, RANGES["embedded"]), RANGES["embedded"] / 127
    assert_close(-negative, integer_product(data, 128, step, arrays["inner"], np.zeros(HIDDEN, np.float32)))
    hidden = integer_product(data, 128, step, arrays["inner"], arrays["inner_bias"])
    assert_close(active, np.maximum(hidden, 0))


@pytest.mark.parametrize("num_threads", [1, 2])
def test_a_row_has_the_same_bits_alone_as_in_company(num_threads: int) -> None:
    quantized = quantize(tied_graph()[0], RANGES)
    together = run(quantized, list(range(ROWS)), num_threads)
    for ids in ([0], [23], [7, 3], list(range(5)), list(range(10, 23)), list(range(ROWS))[::-1]):
        for found, wanted in zip(run(quantized, ids, num_threads), together, strict=True):
            np.testing.assert_array_equal(found, wanted[ids])


@pytest.mark.parametrize(("attribute", "value"), [("alpha", 0.5), ("beta", 2.0), ("transA", 1)])
def test_a_product_with_factors_is_refused(attribute: str, value: float) -> None:
    model, _ = tied_graph()
    model.graph.node[-1].attribute.append(helper.make_attribute(attribute, value))
    with pytest.raises(QuantizeError, match=f"plain product, but `logits` has .*'{attribute}': {value}"):
        quantize(model, RANGES)


def test_all_that_has_no_range_is_named_at_once() -> None:
    model, _ = tied_graph()
    model.graph.node[-1].attribute.append(helper.make_attribute("alpha", 0.5))
    with pytest.raises(QuantizeError) as refused:
        quantize(model, {"active": 50.0, "hidden": 50.0})
    assert "these have none: `product` (of `embedded`), `logits` (of `states`)." in str(refused.value)
    assert "`logits` has" in str(refused.value)  # beside the other fault
    with pytest.raises(QuantizeError, match=re.escape("none: `y` (of `x`).")):
        quantize(attention_model(24, 3)[0], {"y": 1.0})
