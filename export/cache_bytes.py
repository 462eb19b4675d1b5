"""Turns the cached keys and values of an fp32 encoder and decoder to bytes: a quarter of the memory that a step reads.

Each channel of a layer's keys or values has a range r of its own (`export.calibrate`); x is stored as round(127 x / r),
-128..127, and what lies outside is cut off. The decoder's attention is told the scales r / 127 and makes the numbers
from the bytes where it reads them (`com.microsoft.GroupQueryAttention`, PER_CHANNEL). It makes the bytes of the
target's keys and values, too. Those of the source come from the encoder: there the scales are part of the last
product's matrix and bias, so that what is left to do is to round.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from export.quantize import QuantizeError

BITS = 8
LARGEST = 127
"""What a channel's range is stored as."""
LEAST_RANGE = 1e-12
"""Stands for a range of 0, so that nothing is divided by 0."""
ATTENTION = "GroupQueryAttention"
PAST_KEY, PAST_VALUE, KEY_SCALE, VALUE_SCALE = 3, 4, 12, 13
"""Where the attention's inputs stand."""
SCALES = ".scales"
"""Ends the name of a cache's scales."""
PRESENT_KEY, PRESENT_VALUE = 1, 2
"""Where its outputs stand."""

Ranges = Mapping[str, npt.NDArray[np.float32]]
"""The range of each channel [D] by the name of the decoder's cache input."""


def decoder_with_byte_caches(decoder: onnx.ModelProto, ranges: Ranges) -> onnx.ModelProto:
    """A copy of a decoder's graph whose caches are bytes."""
    made = onnx.ModelProto()
    made.CopyFrom(decoder)
    graph = made.graph
    caches: set[str] = set()
    for node in graph.node:
        if node.op_type != ATTENTION:
            continue
        inputs = [*node.input, *[""] * (VALUE_SCALE + 1 - len(node.input))]
        for past, scale in ((PAST_KEY, KEY_SCALE), (PAST_VALUE, VALUE_SCALE)):
            inputs[scale] = inputs[past] + SCALES
            graph.initializer.append(numpy_helper.from_array(_scales(ranges[inputs[past]]), inputs[scale]))
        del node.input[:]
        node.input.extend(inputs)
        for name, value in (
            ("k_quant_type", "PER_CHANNEL"),
            ("v_quant_type", "PER_CHANNEL"),
            ("kv_cache_bit_width", BITS),
        ):
            node.attribute.append(helper.make_attribute(name, value))
        caches.update((inputs[PAST_KEY], inputs[PAST_VALUE], node.output[PRESENT_KEY], node.output[PRESENT_VALUE]))
    for tensor in (*graph.input, *graph.output):
        if tensor.name in caches:
            tensor.type.tensor_type.elem_type = onnx.TensorProto.INT8
    return made


def cache_scales(decoder: onnx.ModelProto) -> dict[str, npt.NDArray[np.float32]]:
    """What a byte's 1 stands for in each channel [D], by the decoder's cache input; empty where caches are no bytes."""
    caches = {value.name for value in decoder.graph.input if value.type.tensor_type.elem_type == onnx.TensorProto.INT8}
    return {
        tensor.name.removesuffix(SCALES): numpy_helper.to_array(tensor)
        for tensor in decoder.graph.initializer
        if tensor.name.endswith(SCALES) and tensor.name.removesuffix(SCALES) in caches
    }


def encoder_with_byte_caches(encoder: onnx.ModelProto, ranges: Ranges) -> onnx.ModelProto:
    """A copy of an encoder's graph that puts out bytes.

    Raises:
        QuantizeError: when its outputs are not one product with a bias, reshaped, transposed and split.
    """
    made = onnx.ModelProto()
    made.CopyFrom(encoder)
    graph = made.graph
    producers = {name: node for node in graph.node for name in node.output}
    constants = {tensor.name: tensor for tensor in graph.initializer}
    outputs = [value.name for value in graph.output]
    found = [producers[outputs[0]]]
    for wanted in ("Split", "Transpose", "Reshape", "Add", "MatMul"):
        node = found[-1]
        if node.op_type != wanted:
            raise QuantizeError(
                f"`{outputs[0]}` must come from a {wanted}, but `{node.output[0]}` is a {node.op_type}."
            )
        found.append(next((producers[name] for name in node.input if name in producers), node))
    split, _, reshape, addition, product = found[:5]
    if list(split.output) != outputs:
        raise QuantizeError(f"All of {outputs} must come from one Split, but it makes {list(split.output)}.")
    scales = np.concatenate([_scales(ranges[name]) for name in outputs]).astype(np.float64)  # [2*L*D]
    bias = next(name for name in addition.input if name in constants)
    for name in (product.input[1], bias):
        values = numpy_helper.to_array(constants[name]) / scales  # [D,2*L*D] or [2*L*D]
        constants[name].CopyFrom(numpy_helper.from_array(values.astype(np.float32), name))
    graph.initializer.append(numpy_helper.from_array(np.array(1, np.float32), "caches.scale"))
    graph.initializer.append(numpy_helper.from_array(np.array(0, np.int8), "caches.zero"))
    rounded = f"{addition.output[0]}.caches"
    round_node = helper.make_node(
        "QuantizeLinear", [addition.output[0], "caches.scale", "caches.zero"], [rounded], name=rounded
    )
    reshape.input[0] = rounded
    graph.node.insert(list(graph.node).index(reshape), round_node)
    for value in graph.output:
        value.type.tensor_type.elem_type = onnx.TensorProto.INT8
    return made


def _scales(ranges: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """What a byte's 1 stands for in each channel [D]."""
    scales: npt.NDArray[np.float32] = np.maximum(ranges, LEAST_RANGE).astype(np.float32) / np.float32(LARGEST)
    return scales
