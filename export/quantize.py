"""Turns the linear layers and embeddings of an fp32 graph to int8, and keeps every row to itself.

A weight matrix has one scale s for each output, and that of the logits one for all; weights are stored as round(w / s)
(`export.rounding`). The activations of a product have a constant range r (`export.calibrate`): x is stored as
round(127 x / r) + 128, and what a ReLU puts out as round(255 x / r), which does the ReLU's work too. What lies outside
the range is cut off there, by the ends of a byte. The products are summed in int32 and multiplied by both scales.

The range being constant, the bits of a translation do not depend on its company, as they would with the one activation
scale that `quantize_dynamic` finds for a whole batch (docs/decisions/0004 and 0007).

An embedding has one scale for each token; a projection that is tied to it has bytes of its own. Biases, norms and
positions stay fp32.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from export.rounding import quantize_in_pairs, quantize_matrix

BITS = 8
LARGEST_ACTIVATION = 127
"""Largest activation, above or below its zero."""
ACTIVATION_ZERO = 128
"""Activations are unsigned bytes with their zero here: the processors multiply unsigned by signed bytes."""
LARGEST_BYTE = 255
"""Largest activation after a ReLU, where 0 is stored as 0."""
LEAST_ACTIVATION = 1e-20
"""Stands for a range of 0, so that nothing is divided by 0."""
OPERATOR = "MatMulIntegerToFloat"
FUSED_ATTENTION = "QAttention"
"""What `Attention` becomes: its projection is a product."""
MICROSOFT = "com.microsoft"
_PLAIN_GEMM = {"transA": 0, "alpha": 1.0, "beta": 1.0}
"""What leaves a `Gemm` a product and a sum; whether its matrix is transposed does not matter."""


class QuantizeError(ValueError):
    """A graph that cannot be turned to int8."""


def quantize(
    model: onnx.ModelProto,
    ranges: Mapping[str, float],
    moments: Mapping[str, npt.NDArray[np.float64]] | None = None,
) -> onnx.ModelProto:
    """An int8 copy of an fp32 graph: every product with a constant matrix, and every embedding but the positions.

    `ranges` are the largest absolute values of activations by their names, at least those of `product_inputs`.
    `moments` [K,K] by the same names are the mean products of their channels, by which the errors of rounding are made
    up for (`export.rounding`); without them they are not. A table is an embedding when its rows are gathered and then
    multiplied by a constant (√D), which is taken into the scales.

    Raises QuantizeError, naming every product that has no range or is not a plain one.
    """
    quantized = onnx.ModelProto()
    quantized.CopyFrom(model)
    walk = _Pass(quantized.graph, ranges, moments or {})
    problems = walk.problems()
    if problems:
        raise QuantizeError(" ".join(problems))
    walk.run()
    if all(entry.domain != MICROSOFT for entry in quantized.opset_import):
        quantized.opset_import.append(helper.make_opsetid(MICROSOFT, 1))
    return quantized


def product_inputs(model: onnx.ModelProto) -> list[str]:
    """Names of the activations that a graph multiplies by constant matrices, each once and in the graph's order."""
    graph = _Pass(model.graph, {}, {})
    return list(dict.fromkeys(node.input[0] for node in model.graph.node if graph.is_product(node)))


def _attributes(node: onnx.NodeProto) -> dict[str, Any]:
    return {entry.name: helper.get_attribute_value(entry) for entry in node.attribute}


class _Pass:
    """One walk over a graph's nodes."""

    def __init__(
        self, graph: onnx.GraphProto, ranges: Mapping[str, float], moments: Mapping[str, npt.NDArray[np.float64]]
    ) -> None:
        self.graph = graph
        self.ranges = ranges
        self.moments = moments
        self.producers = {name: node for node in graph.node for name in node.output}
        self.constants = {tensor.name: tensor for tensor in graph.initializer}
        self.readers: dict[str, list[onnx.NodeProto]] = {}
        for node in graph.node:
            for name in node.input:
                self.readers.setdefault(name, []).append(node)
        self.added: dict[str, onnx.TensorProto] = {}
        self.dropped: set[str] = set()  # output names of nodes that another node has taken in

    def problems(self) -> list[str]:
        """What stands in the way of int8, one sentence each."""
        found = []
        products = [node for node in self.graph.node if self.is_product(node)]
        without = [
            f"`{node.output[0]}` (of `{node.input[0]}`)" for node in products if node.input[0] not in self.ranges
        ]
        if without:
            found.append(
                f"Every product must have the range of its activations, but these have none: {', '.join(without)}."
            )
        for node in products:
            attributes = _attributes(node)
            factors = {name: attributes.get(name, plain) for name, plain in _PLAIN_GEMM.items()}
            if node.op_type == "Gemm" and factors != _PLAIN_GEMM:
                found.append(f"A Gemm must be a plain product, but `{node.output[0]}` has {factors}.")
        return found

    def run(self) -> None:
        nodes = []
        for node in self.graph.node:
            if node.output[0] in self.dropped:
                continue
            nodes += self._replace(node)
        nodes = self._without_unread(nodes)
        read = {name for node in nodes for name in node.input}
        kept = [tensor for tensor in self.constants.values() if tensor.name in read]
        del self.graph.node[:]
        self.graph.node.extend(nodes)
        del self.graph.initializer[:]
        self.graph.initializer.extend([*kept, *self.added.values()])

    def is_product(self, node: onnx.NodeProto) -> bool:
        """Whether a node multiplies activations by a constant matrix."""
        return node.op_type in ("MatMul", "Gemm", "Attention") and self._is_matrix(node.input[1])

    def _without_unread(self, nodes: list[onnx.NodeProto]) -> list[onnx.NodeProto]:
        """Leaves out what nobody reads any more: a ReLU whose work is done where its output becomes bytes."""
        read = {output.name for output in self.graph.output}
        kept = []
        for node in reversed(nodes):
            if read.intersection(node.output):
                read.update(node.input)
                kept.append(node)
        return kept[::-1]

    def _replace(self, node: onnx.NodeProto) -> list[onnx.NodeProto]:
        if node.op_type == "Gather" and self._is_matrix(node.input[0]):
            factor = self._take_factor(node)
            if factor is not None:
                return self._gather(node, *factor)
        if not self.is_product(node):
            return [node]
        if node.op_type == "Attention":
            return self._attention(node)
        if node.op_type == "MatMul":
            return self._product(node, node.input[1], is_transposed=False, bias=self._take_bias(node))
        bias = (node.input[2], node.output[0]) if len(node.input) > 2 and node.input[2] else None
        return self._product(node, node.input[1], is_transposed=bool(_attributes(node).get("transB", 0)), bias=bias)

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

    def _matrix(self, name: str, *, is_transposed: bool) -> npt.NDArray[np.float32]:
        """The constant matrix `name`, [N,K] when `is_transposed` and [K,N] when not, as [N,K]."""
        matrix = numpy_helper.to_array(self.constants[name])
        return np.ascontiguousarray(matrix if is_transposed else matrix.T)

    def _add(self, name: str, array: npt.NDArray[np.generic] | np.generic) -> str:
        """A constant of the int8 graph; the same one for the same name."""
        if name not in self.added:
            self.added[name] = numpy_helper.from_array(np.asarray(array), name)
        return name

    def _bytes(self, node: onnx.NodeProto) -> tuple[onnx.NodeProto, str, str]:
        """The node that makes the bytes of a product's activations, and the names of their scale and zero."""
        x = node.input[0]
        largest = max(self.ranges[x], LEAST_ACTIVATION)
        producer = self.producers.get(x)
        if producer is not None and producer.op_type == "Relu":
            source, zero, scale = producer.input[0], 0, largest / LARGEST_BYTE
        else:
            source, zero, scale = x, ACTIVATION_ZERO, largest / LARGEST_ACTIVATION
        scale_name = self._add(f"{x}.scale", np.array(scale, np.float32))
        zero_name = self._add(f"int8.zero_{zero}", np.array(zero, np.uint8))
        data = f"{node.output[0]}.int8"
        return (
            helper.make_node("QuantizeLinear", [source, scale_name, zero_name], [data], name=data),
            scale_name,
            zero_name,
        )

    def _weight(self, x: str, name: str, *, is_transposed: bool, has_one_scale: bool = False) -> tuple[str, str]:
        """Names of a weight's bytes [K,N] and scales, [N] or one, for activations `x`."""
        weight = quantize_in_pairs(
            self._matrix(name, is_transposed=is_transposed), moments=self.moments.get(x), has_one_scale=has_one_scale
        )
        layout = ".T" if is_transposed else ""
        return (
            self._add(f"{name}{layout}.static.int8", np.ascontiguousarray(weight.data.T)),
            self._add(f"{name}{layout}.static.scales", weight.scales.max() if has_one_scale else weight.scales),
        )

    def _product(
        self, node: onnx.NodeProto, name: str, *, is_transposed: bool, bias: tuple[str, str] | None
    ) -> list[onnx.NodeProto]:
        """x W + b: the bytes, and their product with scales and bias."""
        quantize_node, scale, zero = self._bytes(node)
        output = node.output[0] if bias is None else bias[1]
        are_logits = any(reader.op_type == "LogSoftmax" for reader in self.readers.get(output, []))
        weight, weight_scales = self._weight(node.input[0], name, is_transposed=is_transposed, has_one_scale=are_logits)
        inputs = [quantize_node.output[0], weight, scale, weight_scales, zero]
        if bias is not None:
            inputs += ["", bias[0]]
        return [quantize_node, helper.make_node(OPERATOR, inputs, [output], name=output, domain=MICROSOFT)]

    def _attention(self, node: onnx.NodeProto) -> list[onnx.NodeProto]:
        """Self-attention with its projection of queries, keys and values."""
        x, name, bias, lengths = node.input
        quantize_node, scale, zero = self._bytes(node)
        weight, weight_scales = self._weight(x, name, is_transposed=False)
        inputs = [quantize_node.output[0], weight, bias, scale, weight_scales, lengths, zero]
        output = node.output[0]
        return [
            quantize_node,
            helper.make_node(FUSED_ATTENTION, inputs, [output], name=output, domain=MICROSOFT, **_attributes(node)),
        ]

    def _gather(self, node: onnx.NodeProto, factor: float, output: str) -> list[onnx.NodeProto]:
        """Rows of a table: their bytes, times their scales, √D included."""
        name, ids = node.input
        weight = quantize_matrix(self._matrix(name, is_transposed=True))
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
