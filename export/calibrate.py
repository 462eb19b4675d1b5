"""The ranges of the encoder's activations, found on real sentences, for the static recipe of `export.quantize`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
from onnx import helper

from export.quantize import product_inputs
from service.graph_signature import SOURCE_MULTIPLE
from service.tokenizer import PAD_ID

INSIDE = 0.99
"""Share of the positions of which every activation lies within the range. A wider one would make all steps coarser for
the sake of a few values; those that lie outside are cut off at its ends. Measured in docs/decisions/0004."""
MAX_ROWS = 32
"""Sentences that are run together."""


def encoder_ranges(encoder: onnx.ModelProto, sources: Iterable[Sequence[int]]) -> dict[str, float]:
    """The range of every activation that the fp32 encoder multiplies by a constant matrix, by name.

    `sources` are the ids of sentences, end of sentence included; there must be at least one. Padding is left out: it is
    masked, so nothing depends on its activations. One thread, so that the ranges do not depend on the machine's cores.
    """
    names = product_inputs(encoder)
    graph = onnx.ModelProto()
    graph.CopyFrom(encoder)
    for name in names:
        graph.graph.output.append(helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(graph.SerializeToString(), options, providers=["CPUExecutionProvider"])
    largest: dict[str, list[npt.NDArray[np.float32]]] = {name: [] for name in names}
    for source_ids, source_lengths in _batches(sources):
        is_inside = np.arange(source_ids.shape[1]) < source_lengths[:, None]  # [B,S]
        outputs = session.run(names, {"source_ids": source_ids, "source_lengths": source_lengths})
        for name, activations in zip(names, outputs, strict=True):  # [B,S,...]
            largest[name].append(np.abs(activations[is_inside]).max(axis=-1))  # [positions]
    return {name: float(np.quantile(np.concatenate(found), INSIDE)) for name, found in largest.items()}


def _batches(sources: Iterable[Sequence[int]]) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.int32]]]:
    """Ids [B,S] and lengths [B], the shortest sentences first."""
    ordered = sorted(sources, key=len)
    for first in range(0, len(ordered), MAX_ROWS):
        rows = ordered[first : first + MAX_ROWS]
        width = -(-len(rows[-1]) // SOURCE_MULTIPLE) * SOURCE_MULTIPLE
        source_ids = np.full((len(rows), width), PAD_ID, np.int64)
        for row, ids in zip(source_ids, rows, strict=True):
            row[: len(ids)] = ids
        yield source_ids, np.array([len(ids) for ids in rows], np.int32)
