"""Exports the graphs of encoder and decoder through `torch.onnx.export`, with the names and axes of the signature."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import onnx
import torch
from torch import Tensor, nn

from export.decoder_graph import DecoderGraph
from export.encoder_graph import EncoderGraph
from service.graph_signature import SOURCE_MULTIPLE, Architecture, GraphSignature, TensorSignature
from training.model import Transformer

OPSET = 23
"""ONNX opset of both graphs: the first with RMSNormalization."""

_EXAMPLE_SIZES = {"B": 3, "S": 2 * SOURCE_MULTIPLE, "M": 10}
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
    return _export(EncoderGraph(model), signature.encoder_inputs, signature.encoder_outputs, num_plain_inputs=2)


def decoder_to_onnx(model: Transformer, architecture: Architecture) -> onnx.ModelProto:
    """The decoder's graph in fp32."""
    signature = GraphSignature.of(architecture)
    graph = DecoderGraph(model, architecture)
    return _export(graph, signature.decoder_inputs, signature.decoder_outputs, num_plain_inputs=3)


def _export(
    graph: nn.Module,
    inputs: Sequence[TensorSignature],
    outputs: Sequence[TensorSignature],
    num_plain_inputs: int,
) -> onnx.ModelProto:
    """One graph; inputs after the first `num_plain_inputs` are handed over as one tuple."""
    graph = graph.eval()
    dynamic = {letter: torch.export.Dim(letter, min=1, max=2**20) for letter in _EXAMPLE_SIZES}
    examples = [_example(tensor) for tensor in inputs]
    axes = [{i: dynamic[axis] for i, axis in enumerate(t.axes) if isinstance(axis, str)} for t in inputs]
    arguments: tuple[Any, ...] = tuple(examples[:num_plain_inputs])
    shapes: tuple[Any, ...] = tuple(axes[:num_plain_inputs])
    if examples[num_plain_inputs:]:
        arguments = (*arguments, tuple(examples[num_plain_inputs:]))
        shapes = (*shapes, tuple(axes[num_plain_inputs:]))
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter warns of its own deprecations and of axes named twice
        program = torch.onnx.export(
            graph,
            arguments,
            dynamo=True,
            opset_version=OPSET,
            input_names=[tensor.name for tensor in inputs],
            output_names=[tensor.name for tensor in outputs],
            dynamic_shapes=shapes,
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
