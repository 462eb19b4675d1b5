"""Turns the linear layers and embeddings of an fp32 graph to int8, in a recipe that keeps every row to itself.

A weight matrix has one scale for each output, s = max|w| / 127, and is stored as round(w / s). A row of activations x
has one scale too, found when it is multiplied: a = max|x|, and its bytes are round(63 x / a) + 64. Their product is
summed in int32 and multiplied by s · a / 63. No row's scale depends on another row: the bits of a translation do not
depend on its company, as they would with the one activation scale of `quantize_dynamic`.

An embedding has one scale for each token; the projection that is tied to it has the very same bytes, laid out for the
product. Biases, norms and positions stay fp32.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

BITS = 8
LARGEST = 127
"""Weights are stored as -127..127."""
LARGEST_ACTIVATION = 63
"""Activations take 7 bits, -63..63. With 8, the sum of two products passes 16 bits, and processors without VNNI, which
add in pairs, would cut it off and give other numbers; BLEU did not tell the two apart (docs/decisions)."""
ACTIVATION_ZERO = 64
"""Activations are unsigned bytes, 1..127, with their zero here: the processors multiply unsigned by signed bytes."""
LEAST_ACTIVATION = 1e-20
"""Stands for the largest activation of a row of zeros, so that nothing is divided by 0."""
OPERATOR = "MatMulIntegerToFloat"
MICROSOFT = "com.microsoft"


class QuantizeError(ValueError):
    """A graph that cannot be turned to int8."""


@dataclass(frozen=True, kw_only=True)
class QuantizedWeight:
    """A matrix [N,K] with one scale a row."""

    data: npt.NDArray[np.int8]
    """[N,K]."""
    scales: npt.NDArray[np.float32]
    """[N]."""

    def dequantize(self) -> npt.NDArray[np.float32]:
        """The matrix [N,K] that the bytes stand for."""
        matrix: npt.NDArray[np.float32] = self.data.astype(np.float32) * self.scales[:, None]
        return matrix


def quantize_matrix(matrix: npt.NDArray[np.float32]) -> QuantizedWeight:
    """A matrix [N,K] row by row, rounded to the nearest; the error is at most half the row's scale."""
    scales = (np.abs(matrix).max(axis=1) / np.float32(LARGEST)).astype(np.float32)  # [N]
    divisors = np.where(scales > 0, scales, np.float32(1))[:, None]
    data = np.clip(np.rint(matrix / divisors), -LARGEST, LARGEST).astype(np.int8)
    return QuantizedWeight(data=data, scales=scales)


def quantize(model: onnx.ModelProto) -> onnx.ModelProto:
    """An int8 copy of an fp32 graph: every product with a constant matrix, and every embedding but the positions.

    A table is an embedding when its rows are gathered and then multiplied by a constant (√D), which is taken into the
    scales. Raises QuantizeError if a product is not a plain one.
    """
    quantized = onnx.ModelProto()
    quantized.CopyFrom(model)
    _Pass(quantized.graph).run()
    if all(entry.domain != MICROSOFT for entry in quantized.opset_import):
        quantized.opset_import.append(helper.make_opsetid(MICROSOFT, 1))
    return quantized


class _Pass:
    """One walk over a graph's nodes."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self.graph = graph
        self.constants = {tensor.name: tensor for tensor in graph.initializer}
        self.readers: dict[str, list[onnx.NodeProto]] = {}
        for node in graph.node:
            for name in node.input:
                self.readers.setdefault(name, []).append(node)
        self.added: dict[str, onnx.TensorProto] = {}
        self.dropped: set[str] = set()  # output names of nodes that another node has taken in

    def run(self) -> None:
        nodes = []
        for node in self.graph.node:
            if node.output[0] in self.dropped:
                continue
            nodes += self._replace(node)
        read = {name for node in nodes for name in node.input}
        kept = [tensor for tensor in self.constants.values() if tensor.name in read]
        del self.graph.node[:]
        self.graph.node.extend(nodes)
        del self.graph.initializer[:]
        self.graph.initializer.extend([*kept, *self.added.values()])

    def _replace(self, node: onnx.NodeProto) -> list[onnx.NodeProto]:
        if node.op_type == "MatMul" and self._is_matrix(node.input[1]):
            return self._product(node, node.input[1], is_transposed=False, bias=self._take_bias(node))
        if node.op_type == "Gemm" and self._is_matrix(node.input[1]):
            attributes = {entry.name: helper.get_attribute_value(entry) for entry in node.attribute}
            if attributes.get("transA", 0) or attributes.get("alpha", 1.0) != 1.0 or attributes.get("beta", 1.0) != 1.0:
                raise QuantizeError(f"A Gemm must be a plain product, but `{node.name}` has {attributes}.")
            bias = (node.input[2], node.output[0]) if len(node.input) > 2 and node.input[2] else None
            return self._product(node, node.input[1], is_transposed=bool(attributes.get("transB", 0)), bias=bias)
        if node.op_type == "Gather" and self._is_matrix(node.input[0]):
            factor = self._take_factor(node)
            if factor is not None:
                return self._gather(node, *factor)
        return [node]

    def _is_matrix(self, name: str) -> bool:
        tensor = self.constants.get(name)
        return tensor is not None and len(tensor.dims) == 2 and tensor.data_type == onnx.TensorProto.FLOAT

    def _only_reader(self, node: onnx.NodeProto, op_type: str) -> onnx.NodeProto | None:
        readers = self.readers.get(node.output[0], [])
        return readers[0] if len(readers) == 1 and readers[0].op_type == op_type else None

    def _take_bias(self, node: onnx.NodeProto) -> tuple[str, str] | None:
        """The bias that is added to a product and nothing else, and the name of the sum; drops the addition."""
        addition = self._only_reader(node, "Add")
        if addition is None:
            return None
        others = [name for name in addition.input if name != node.output[0]]
        if len(others) != 1 or others[0] not in self.constants or len(self.constants[others[0]].dims) != 1:
            return None
        self.dropped.add(addition.output[0])
        return others[0], addition.output[0]

    def _take_factor(self, node: onnx.NodeProto) -> tuple[float, str] | None:
        """The constant that gathered rows are multiplied by, and the product's name; drops the multiplication."""
        product = self._only_reader(node, "Mul")
        if product is None:
            return None
        others = [name for name in product.input if name != node.output[0]]
        if len(others) != 1 or others[0] not in self.constants or list(self.constants[others[0]].dims):
            return None
        self.dropped.add(product.output[0])
        return float(numpy_helper.to_array(self.constants[others[0]])), product.output[0]

    def _quantized(self, name: str, *, is_transposed: bool) -> QuantizedWeight:
        """The constant matrix `name`, [N,K] when `is_transposed` and [K,N] when not, as [N,K]."""
        matrix = numpy_helper.to_array(self.constants[name])
        return quantize_matrix(np.ascontiguousarray(matrix if is_transposed else matrix.T))

    def _add(self, name: str, array: npt.NDArray[np.generic]) -> str:
        """A constant of the int8 graph; the same one for the same name."""
        if name not in self.added:
            self.added[name] = numpy_helper.from_array(array, name)
        return name

    def _product(
        self, node: onnx.NodeProto, name: str, *, is_transposed: bool, bias: tuple[str, str] | None
    ) -> list[onnx.NodeProto]:
        """x W + b: the row's largest activation, its bytes, their product, and the scales and bias."""
        weight = self._quantized(name, is_transposed=is_transposed)
        layout = ".T" if is_transposed else ""
        product = node.output[0]
        nodes: list[onnx.NodeProto] = []

        def compute(op_type: str, inputs: list[str], output: str, **attributes: Any) -> str:
            nodes.append(helper.make_node(op_type, inputs, [output], name=output, **attributes))
            return output

        x = node.input[0]
        size = compute("Abs", [x], f"{product}.size")
        last_axis = self._add("int8.last_axis", np.array([-1], np.int64))
        found = compute("ReduceMax", [size, last_axis], f"{product}.found", keepdims=1)  # [...,1]
        least = self._add("int8.least", np.array(LEAST_ACTIVATION, np.float32))
        largest = compute("Max", [found, least], f"{product}.largest")
        # One multiplication, one addition and the cast's cutting off round to the nearest; there is no need for Round.
        factor = compute(
            "Div", [self._add("int8.range", np.array(LARGEST_ACTIVATION, np.float32)), largest], f"{product}.factor"
        )
        scaled = compute("Mul", [x, factor], f"{product}.scaled")
        half_up = self._add("int8.half_up", np.array(ACTIVATION_ZERO + 0.5, np.float32))
        shifted = compute("Add", [scaled, half_up], f"{product}.shifted")
        data = compute("Cast", [shifted], f"{product}.int8", to=onnx.TensorProto.UINT8)
        unscaled = compute(
            OPERATOR,
            [
                data,
                self._add(f"{name}{layout}.int8", np.ascontiguousarray(weight.data.T)),  # [K,N]
                self._add("int8.one", np.array(1, np.float32)),
                self._add(f"{name}{layout}.scales", weight.scales / np.float32(LARGEST_ACTIVATION)),  # [N]
                self._add("int8.zero", np.array(ACTIVATION_ZERO, np.uint8)),
            ],
            f"{product}.unscaled",
            domain=MICROSOFT,
        )
        if bias is None:
            compute("Mul", [unscaled, largest], product)
        else:
            compute("Add", [compute("Mul", [unscaled, largest], f"{product}.product"), bias[0]], bias[1])
        return nodes

    def _gather(self, node: onnx.NodeProto, factor: float, output: str) -> list[onnx.NodeProto]:
        """Rows of a table: their bytes, times their scales, √D included."""
        name, ids = node.input
        weight = self._quantized(name, is_transposed=True)
        data = self._add(f"{name}.int8", weight.data)  # [V,D]
        scales = self._add(f"{name}.token_scales", (weight.scales * np.float32(factor))[:, None])  # [V,1]
        found = node.output[0]
        return [
            helper.make_node("Gather", [data, ids], [f"{found}.int8"], name=f"{node.name}.Gather"),
            helper.make_node(
                "Cast", [f"{found}.int8"], [f"{found}.data"], name=f"{node.name}.Cast", to=onnx.TensorProto.FLOAT
            ),
            helper.make_node("Gather", [scales, ids], [f"{found}.scales"], name=f"{node.name}.Scales"),
            helper.make_node("Mul", [f"{found}.data", f"{found}.scales"], [output], name=f"{node.name}.Mul"),
        ]
