"""Exports the graphs of encoder and decoder through `torch.onnx.export`, with the names and axes of the signature."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import onnx
import torch
from torch import Tensor, nn

from export.decoder_graph import CACHES_PER_LAYER, DecoderGraph
from export.encoder_graph import EncoderGraph
from service.graph_signature import (
    LANE_INPUTS,
    SOURCE_MULTIPLE,
    Architecture,
    GraphSignature,
    TensorSignature,
)
from training.model import Transformer

OPSET = 23
"""ONNX opset of the graphs: the first with RMSNormalization."""

_EXAMPLE_SIZES = {"B": 3, "N": 2, "Q": 4, "P": 12, "S": 2 * SOURCE_MULTIPLE, "M": 10}
_DTYPES = {"int64": torch.int64, "int32": torch.int32, "float32": torch.float32}


def architecture_of(model: Transformer, target_tokens: int) -> Architecture:
    """The numbers of a model's graphs; `target_tokens` is the size of the tokenizer's target side."""
    config = model.config
    return Architecture(
        width=config.width,
        heads=config.heads,
        feed_forward=config.feed_forward,
        encoder_layers=config.encoder_layers,
        decoder_layers=config.decoder_layers,
        source_vocabulary=config.source_vocab_size,
        target_vocabulary=config.target_vocab_size,
        target_tokens=target_tokens,
        max_positions=config.max_positions,
    )


def encoder_to_onnx(model: Transformer, architecture: Architecture) -> onnx.ModelProto:
    """The encoder's graph in fp32."""
    signature = GraphSignature.of(architecture)
    return _export(EncoderGraph(model), signature.encoder_inputs, signature.encoder_outputs, groups=())


def decoder_to_onnx(model: Transformer, architecture: Architecture, alignment_layer: int) -> onnx.ModelProto:
    """The decoder's graph in fp32, which puts out the cross-attention of `alignment_layer`, 0 being the first."""
    signature = GraphSignature.of(architecture)
    graph = DecoderGraph(model, architecture, alignment_layer)
    groups = (len(LANE_INPUTS), CACHES_PER_LAYER * architecture.decoder_layers)
    return _export(graph, signature.decoder_inputs, signature.decoder_outputs, groups=groups)


def _export(
    graph: nn.Module,
    inputs: Sequence[TensorSignature],
    outputs: Sequence[TensorSignature],
    groups: tuple[int, ...],
) -> onnx.ModelProto:
    """One graph. The last inputs are handed over in tuples of `groups` tensors, those before one by one."""
    graph = graph.eval()
    dynamic = {letter: torch.export.Dim(letter, min=1, max=2**20) for letter in _EXAMPLE_SIZES}
    examples = [_example(tensor) for tensor in inputs]
    axes = [{i: dynamic[axis] for i, axis in enumerate(t.axes) if isinstance(axis, str)} for t in inputs]
    first = len(inputs) - sum(groups)
    arguments: list[Any] = examples[:first]
    shapes: list[Any] = axes[:first]
    for size in groups:
        arguments.append(tuple(examples[first : first + size]))
        shapes.append(tuple(axes[first : first + size]))
        first += size
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter warns of its own deprecations and of axes named twice
        program = torch.onnx.export(
            graph,
            tuple(arguments),
            dynamo=True,
            opset_version=OPSET,
            input_names=[tensor.name for tensor in inputs],
            output_names=[tensor.name for tensor in outputs],
            dynamic_shapes=tuple(shapes),
            optimize=True,
            verbose=False,
        )
    assert program is not None
    model: onnx.ModelProto = program.model_proto
    _strip(model)
    onnx.checker.check_model(model)
    return model


def _strip(model: onnx.ModelProto) -> None:
    """Takes out what only describes the export: stack traces with paths of the machine, and inferred shapes."""
    graph = model.graph
    for item in (model, graph, *graph.node, *graph.input, *graph.output, *graph.initializer):
        item.ClearField("metadata_props")
        item.ClearField("doc_string")
    graph.ClearField("value_info")


def _example(tensor: TensorSignature) -> Tensor:
    """A small tensor of the signature's shape."""
    shape = [_EXAMPLE_SIZES[axis] if isinstance(axis, str) else axis for axis in tensor.axes]
    return torch.ones(shape, dtype=_DTYPES[tensor.dtype])
