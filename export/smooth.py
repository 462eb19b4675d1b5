"""Moves scale between the channels of a norm's output and the matrix that reads it, so that both suffer less from int8.

The activations of a product have one range for all channels (`export.quantize`), and few channels need most of it. A
norm multiplies each channel by a factor anyway: with s times the factor, and the matrix's row of that channel divided
by s, the product is the same, and so is the number of nodes. With s = √(largest weight / range of the activations) of
the channel both are equally large (SmoothQuant, Xiao et al. 2023). What it gains is in docs/decisions/0007.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

LEAST = 1e-5
"""Channels that are nearly always 0, and rows of zeros, count as this large."""


def smooth(model: onnx.ModelProto, channels: Mapping[str, npt.NDArray[np.float32]]) -> onnx.ModelProto:
    """A copy of an fp32 graph whose products after an `RMSNormalization` are smoothed; others stay as they are.

    `channels` holds the range of every channel [K] by the names of the products' inputs.
    """
    smoothed = onnx.ModelProto()
    smoothed.CopyFrom(model)
    graph = smoothed.graph
    producers = {name: node for node in graph.node for name in node.output}
    constants = {tensor.name: tensor for tensor in graph.initializer}
    num_readers: dict[str, int] = {}
    for node in graph.node:
        for name in node.input:
            num_readers[name] = num_readers.get(name, 0) + 1

    for node in graph.node:
        if node.op_type not in ("MatMul", "Gemm") or node.input[0] not in channels:
            continue
        norm, is_only_reader = producers[node.input[0]], num_readers[node.input[0]] == 1
        if norm.op_type == "Squeeze":
            is_only_reader &= num_readers[norm.input[0]] == 1
            norm = producers[norm.input[0]]
        if norm.op_type != "RMSNormalization" or not is_only_reader or num_readers[node.input[1]] > 1:
            continue
        is_transposed = any(entry.name == "transB" and entry.i for entry in node.attribute)
        stored = numpy_helper.to_array(constants[node.input[1]])
        matrix = stored.T if is_transposed else stored  # [K,N]
        largest = np.maximum(np.abs(matrix).max(axis=1), LEAST).astype(np.float64)  # [K]
        factors = np.sqrt(largest / np.maximum(channels[node.input[0]], LEAST))  # [K]
        divided = (matrix / factors[:, None]).astype(np.float32)
        constants[node.input[1]].CopyFrom(
            numpy_helper.from_array(np.ascontiguousarray(divided.T if is_transposed else divided), node.input[1])
        )
        own = numpy_helper.to_array(constants[norm.input[1]])  # norms may share a constant: each gets one of its own
        name = f"{norm.output[0]}.factors"
        graph.initializer.append(numpy_helper.from_array((own * factors).astype(np.float32), name))
        norm.input[1] = name
    read = {name for node in graph.node for name in node.input}
    kept = [tensor for tensor in graph.initializer if tensor.name in read]
    del graph.initializer[:]
    graph.initializer.extend(kept)
    return smoothed
