"""Int8: the numbers of a block, and the operators that replace products and embeddings, beside a plain reference."""

from __future__ import annotations

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

from export.quantize import QuantizeError, block_sizes, choose_block_size, quantize, quantize_matrix

Floats = npt.NDArray[np.float32]
WIDTH, ROWS, HIDDEN = 64, 24, 96


@given(
    hnp.arrays(np.float32, (3, 64), elements=st.floats(-8, 8, width=32)),
    st.sampled_from([32, 64]),
)
def test_a_weight_is_off_by_half_a_scale_at_most(matrix: Floats, block_size: int) -> None:
    weight = quantize_matrix(matrix, block_size)
    assert weight.data.shape == (3, 64 // block_size, block_size)
    error = np.abs(weight.dequantize() - matrix).reshape(weight.data.shape).max(axis=-1)
    assert (error <= weight.scales * 0.5001 + 1e-7).all()


def test_the_largest_weight_of_a_block_is_exact_and_zero_stays_zero() -> None:
    matrix = np.zeros((2, 64), np.float32)
    matrix[0, 3], matrix[0, 40] = -127.0, 2.54
    weight = quantize_matrix(matrix, 32)
    assert weight.data[0, 0, 3] == 1  # 128 - 127
    assert weight.dequantize()[0, 3] == -127.0
    assert weight.dequantize()[0, 40] == pytest.approx(2.54)
    np.testing.assert_array_equal(weight.dequantize()[1], 0.0)
    assert np.count_nonzero(weight.dequantize()) == 2


def test_blocks_are_64_or_32_and_nothing_else() -> None:
    assert [choose_block_size(width) for width in (64, 192, 512, 32, 96, 160)] == [64, 64, 64, 32, 32, 32]
    with pytest.raises(QuantizeError, match="multiple of 32 for int8, but is 48"):
        choose_block_size(48)


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
    initializers.append(numpy_helper.from_array(np.float32(8.0), "factor"))
    graph = helper.make_graph(
        nodes,
        "tied",
        [
            helper.make_tensor_value_info("ids", TensorProto.INT64, ["B"]),
            helper.make_tensor_value_info("ids_position", TensorProto.INT64, ["B"]),
        ],
        [
            helper.make_tensor_value_info("embedded", TensorProto.FLOAT, ["B", WIDTH]),
            helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["B", ROWS]),
        ],
        initializers,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), arrays


def run(model: onnx.ModelProto, ids: list[int]) -> list[Floats]:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    positions = [index % 5 for index in range(len(ids))]
    outputs: list[Floats] = session.run(None, {"ids": np.array(ids), "ids_position": np.array(positions)})
    return outputs


def test_products_and_embeddings_are_those_of_the_dequantized_weights() -> None:
    model, arrays = tied_graph()
    quantized = quantize(model)
    onnx.checker.check_model(quantized)
    ids = list(range(ROWS))
    embedded, logits = run(quantized, ids)

    def dequantized(matrix: Floats) -> Floats:
        return quantize_matrix(matrix, choose_block_size(matrix.shape[1])).dequantize()

    table = dequantized(arrays["embedding"])
    wanted = table[ids] * 8 + arrays["positions"][np.arange(ROWS) % 5]
    np.testing.assert_allclose(embedded, wanted, rtol=1e-6, atol=1e-6)
    hidden = np.maximum(wanted @ dequantized(arrays["inner"].T).T + arrays["inner_bias"], 0)
    wanted_logits = hidden @ dequantized(arrays["outer"].T).T @ table.T + arrays["logit_bias"]
    # what is left is the activations' own rounding to int8: 1/254 of the largest value of a block, three times over
    assert np.abs(logits - wanted_logits).max() < 0.02 * np.abs(wanted_logits).max()
    assert np.abs(logits - wanted_logits).max() > 0  # and it is int8 that multiplies


def test_the_embedding_shares_its_bytes_with_the_projection() -> None:
    quantized = quantize(tied_graph()[0])
    readers = {
        (node.op_type, list(node.input).index("embedding.int8"))
        for node in quantized.graph.node
        if "embedding.int8" in node.input
    }
    assert readers == {("GatherBlockQuantized", 0), ("MatMulNBits", 1)}
    sizes = {tensor.name: list(tensor.dims) for tensor in quantized.graph.initializer}
    assert sizes["embedding.int8"] == [ROWS, 1, WIDTH]
    matrices = [name for name, dims in sizes.items() if len(dims) == 2 and not name.endswith(".scales")]
    assert matrices == ["positions"]  # nothing else stays in fp32, and nothing is left over


def test_biases_are_taken_into_the_products() -> None:
    model, _ = tied_graph()
    quantized = quantize(model)
    operators = Counter(node.op_type for node in quantized.graph.node)
    assert operators["MatMulNBits"] == 3
    assert operators["Add"] == 1  # of the positions
    assert operators["Mul"] == operators["MatMul"] == operators["Gemm"] == 0
    biases = [node.input[5] for node in quantized.graph.node if node.op_type == "MatMulNBits" and len(node.input) > 5]
    assert biases == ["inner_bias", "logit_bias"]
    assert block_sizes(quantized) == {64, 32}
    assert [node.op_type for node in model.graph.node].count("MatMul") == 2  # the original is untouched


def test_a_sum_that_others_read_is_not_taken_for_a_bias() -> None:
    model, _ = tied_graph()
    model.graph.output.append(helper.make_tensor_value_info("product", TensorProto.FLOAT, ["B", HIDDEN]))
    model.graph.node.append(helper.make_node("Neg", ["product"], ["negative"]))
    quantized = quantize(model)
    assert "product" in {name for node in quantized.graph.node for name in node.output}
    assert Counter(node.op_type for node in quantized.graph.node)["Add"] == 2


def test_a_row_has_the_same_bits_alone_as_in_company() -> None:
    quantized = quantize(tied_graph()[0])
    ids = list(range(ROWS))
    together = run(quantized, ids)[1]
    for first in (0, 5, 10, 15):
        np.testing.assert_array_equal(run(quantized, ids[first : first + 5])[1], together[first : first + 5])
    np.testing.assert_array_equal(run(quantized, ids[:1])[1], together[:1])


def test_a_width_that_no_block_divides_is_refused() -> None:
    model, _ = tied_graph()
    for tensor in model.graph.initializer:
        if tensor.name == "inner":
            tensor.CopyFrom(numpy_helper.from_array(np.ones((48, HIDDEN), np.float32), "inner"))
    with pytest.raises(QuantizeError, match="but is 48"):
        quantize(model)


def test_a_product_with_factors_is_refused() -> None:
    model, _ = tied_graph()
    model.graph.node[-1].attribute.append(helper.make_attribute("alpha", 0.5))
    with pytest.raises(QuantizeError, match="plain product"):
        quantize(model)
