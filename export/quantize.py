"""Turns the linear layers and embeddings of an fp32 graph to int8, in a recipe that keeps every row to itself.

Weights are cut into blocks along the input axis; a block of w has one scale s = max|w| / 127 and is stored as bytes
round(w / s) + 128. `com.microsoft.MatMulNBits` with `accuracy_level=4` multiplies them with activations that it
quantises block by block of each row, so no row's scale depends on another row: the bits of a translation do not depend
on its company, as they would with the one activation scale of `quantize_dynamic`.

An embedding that shares its weights with the output projection shares its bytes too: `GatherBlockQuantized` reads the
rows that `MatMulNBits` multiplies by. Biases, norms and positions stay fp32.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

BITS = 8
BLOCK_SIZES = (64, 32)
"""Block sizes in order of preference; larger ones lost the equality of bits between a row alone and in company."""
ACCURACY_LEVEL = 4
ZERO_POINT = 128
MICROSOFT = "com.microsoft"


class QuantizeError(ValueError):
    """A graph that cannot be turned to int8."""


@dataclass(frozen=True, kw_only=True)
class QuantizedWeight:
    """A matrix [N,K] as MatMulNBits takes it."""

    data: npt.NDArray[np.uint8]
    """[N, K / block, block], zero at 128."""
    scales: npt.NDArray[np.float32]
    """[N, K / block]."""

    @property
    def block_size(self) -> int:
        """Weights that share one scale."""
        return int(self.data.shape[2])

    def dequantize(self) -> npt.NDArray[np.float32]:
        """The matrix [N,K] that the bytes stand for."""
        values = (self.data.astype(np.float32) - ZERO_POINT) * self.scales[..., None]  # [N,K/block,block]
        return values.reshape(len(self.data), -1)  # [N,K]


def choose_block_size(input_width: int) -> int:
    """The block size for matrices of `input_width` inputs. Raises QuantizeError if none divides it."""
    for block_size in BLOCK_SIZES:
        if input_width % block_size == 0:
            return block_size
    raise QuantizeError(
        f"The width of a layer's input must be a multiple of {BLOCK_SIZES[-1]} for int8, but is {input_width}."
    )


def quantize_matrix(matrix: npt.NDArray[np.float32], block_size: int) -> QuantizedWeight:
    """A matrix [N,K] in blocks along K, rounded to the nearest; the error is at most half a scale."""
    rows, width = matrix.shape
    blocks = matrix.reshape(rows, width // block_size, block_size)  # [N,K/block,block]
    scales = (np.abs(blocks).max(axis=-1) / np.float32(127)).astype(np.float32)  # [N,K/block]
    divisors = np.where(scales > 0, scales, np.float32(1))[..., None]
    data = np.clip(np.rint(blocks / divisors) + ZERO_POINT, 0, 255).astype(np.uint8)
    return QuantizedWeight(data=data, scales=scales)


def quantize(model: onnx.ModelProto) -> onnx.ModelProto:
    """An int8 copy of an fp32 graph: every product with a constant matrix, and every embedding but the positions.

    A table is an embedding when its rows are gathered and then multiplied by a constant (√D), which is taken into the
    scales. Raises QuantizeError if a matrix has a width that no block size divides.
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
            return [self._product(node, node.input[1], is_transposed=False, bias=self._take_bias(node))]
        if node.op_type == "Gemm" and self._is_matrix(node.input[1]):
            attributes = {entry.name: helper.get_attribute_value(entry) for entry in node.attribute}
            if attributes.get("transA", 0) or attributes.get("alpha", 1.0) != 1.0 or attributes.get("beta", 1.0) != 1.0:
                raise QuantizeError(f"A Gemm must be a plain product, but `{node.name}` has {attributes}.")
            bias = (node.input[2], node.output[0]) if len(node.input) > 2 and node.input[2] else None
            return [self._product(node, node.input[1], is_transposed=bool(attributes.get("transB", 0)), bias=bias)]
        if node.op_type == "Gather" and self._is_matrix(node.input[0]):
            factor = self._take_factor(node)
            if factor is not None:
                return self._gather(node, *factor)
        return [node]

    def _is_matrix(self, name: str) -> bool:
        tensor = self.constants.get(name)
        return tensor is not None and len(tensor.dims) == 2 and tensor.data_type == onnx.TensorProto.FLOAT

    def _rank(self, name: str) -> int:
        """Number of axes of an input of the graph."""
        for tensor in self.graph.input:
            if tensor.name == name:
                return len(tensor.type.tensor_type.shape.dim)
        raise QuantizeError(f"The ids of an embedding must be an input of the graph, but `{name}` is none.")

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

    def _quantized(self, name: str, is_transposed: bool) -> tuple[QuantizedWeight, str, str]:
        """The matrix `name` quantised, and the names of its bytes and scales; the same ones for the same matrix."""
        matrix = numpy_helper.to_array(self.constants[name])
        if not is_transposed:
            matrix = matrix.T
        weight = quantize_matrix(np.ascontiguousarray(matrix), choose_block_size(matrix.shape[1]))
        layout = "" if is_transposed else ".T"
        data_name, scales_name = f"{name}{layout}.int8", f"{name}{layout}.scales"
        self._add(data_name, weight.data)
        return weight, data_name, scales_name

    def _add(self, name: str, array: npt.NDArray[np.generic]) -> None:
        if name not in self.added:
            self.added[name] = numpy_helper.from_array(array, name)

    def _product(
        self, node: onnx.NodeProto, name: str, *, is_transposed: bool, bias: tuple[str, str] | None
    ) -> onnx.NodeProto:
        weight, data_name, scales_name = self._quantized(name, is_transposed)
        self._add(scales_name, weight.scales)
        inputs = [node.input[0], data_name, scales_name]
        output = node.output[0]
        if bias is not None:
            inputs += ["", "", bias[0]]  # no zero points, no group index
            output = bias[1]
        return helper.make_node(
            "MatMulNBits",
            inputs,
            [output],
            name=node.name,
            domain=MICROSOFT,
            N=weight.data.shape[0],
            K=weight.data.shape[1] * weight.block_size,
            bits=BITS,
            block_size=weight.block_size,
            accuracy_level=ACCURACY_LEVEL,
        )

    def _gather(self, node: onnx.NodeProto, factor: float, output: str) -> list[onnx.NodeProto]:
        weight, data_name, scales_name = self._quantized(node.input[0], is_transposed=True)
        scaled_name = f"{scales_name}.scaled"
        self._add(scaled_name, (weight.scales * np.float32(factor))[..., None])  # [V,D/block,1]
        shape_name = f"{node.output[0]}.shape"
        self._add(shape_name, np.array([0] * self._rank(node.input[1]) + [-1], dtype=np.int64))
        blocks = f"{node.output[0]}.blocks"
        return [
            helper.make_node(
                "GatherBlockQuantized",
                [data_name, node.input[1], scaled_name],
                [blocks],  # [B,T,D/block,block]
                name=node.name,
                domain=MICROSOFT,
                bits=BITS,
                block_size=weight.block_size,
                gather_axis=0,
                quantize_axis=2,
            ),
            helper.make_node("Reshape", [blocks, shape_name], [output], name=f"{node.name}.rows"),  # [B,T,D]
        ]


def block_sizes(model: onnx.ModelProto) -> set[int]:
    """Block sizes that an int8 graph's products use."""
    return {
        int(helper.get_attribute_value(entry))
        for node in model.graph.node
        if node.op_type == "MatMulNBits"
        for entry in node.attribute
        if entry.name == "block_size"
    }
