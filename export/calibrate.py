"""What activations are like on real sentences: the ranges and moments that `export.quantize` takes.

Axes: B sentences run together, S source positions, M target positions, D width.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
from onnx import helper

from export.quantize import product_inputs
from service import graph_signature as names
from service.graph_signature import LEAST_SLOTS, SOURCE_MULTIPLE
from service.lane_layout import LaneLayout
from service.runner import StepInputs
from service.tokenizer import PAD_ID

INSIDE = 0.99
"""Share of the positions of which every activation lies within the range. A wider one would make all steps coarser for
the sake of a few values; those that lie outside are cut off at its ends. Measured in docs/decisions/0004 and 0007."""
INSIDE_CHANNEL = 0.999
"""Share of the positions at which a channel lies within its own range."""
CACHE_HEADROOM = 1.2
"""What cached keys and values are given beyond the largest that was seen: other sentences have larger ones, and they
bear coarser steps better than being cut off (docs/decisions/0009)."""
MAX_ROWS = 32
"""Sentences that are run together."""

Pair = tuple[Sequence[int], Sequence[int]]
"""Source ids, end of sentence included, and the target ids that the decoder reads: the begin of sentence first."""
Arrays = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """What the activations that a graph multiplies by constant matrices are like, by their names."""

    ranges: dict[str, float]
    """`INSIDE` of the positions lie inside ±range."""
    moments: dict[str, npt.NDArray[np.float64]]
    """[D,D] mean products of the channels."""


def calibrate_encoder(encoder: onnx.ModelProto, sources: Iterable[Sequence[int]]) -> Calibration:
    """The activations of the fp32 encoder.

    `sources` are the ids of sentences, end of sentence included; there must be at least one. Padding is left out: it is
    masked, so nothing depends on its activations. One thread, so that the ranges do not depend on the machine's cores.
    """
    return _calibration(_encoder_activations(encoder, sources))


def calibrate_decoder(encoder: onnx.ModelProto, decoder: onnx.ModelProto, pairs: Iterable[Pair]) -> Calibration:
    """The same of the fp32 decoder, which reads the target of every pair token by token; there must be at least one."""
    return _calibration(_decoder_activations(encoder, decoder, product_inputs(decoder), pairs))


def decoder_channel_ranges(
    encoder: onnx.ModelProto, decoder: onnx.ModelProto, pairs: Iterable[Pair]
) -> dict[str, npt.NDArray[np.float32]]:
    """The range of every channel [D] of the decoder's activations, by name. All are held: a few hundred pairs do."""
    return _channel_ranges(_decoder_activations(encoder, decoder, product_inputs(decoder), pairs), INSIDE_CHANNEL)


def cache_ranges(
    encoder: onnx.ModelProto, decoder: onnx.ModelProto, pairs: Iterable[Pair]
) -> dict[str, npt.NDArray[np.float32]]:
    """The range of every channel [D] of cached keys and values, by the decoder's cache inputs."""
    held = list(pairs)
    found = _channel_ranges(_encoded(encoder, (source for source, _ in held)), 1.0)
    projections = {  # queries, keys and values [3*D] of the target's self-attention, by its layer
        i: node.input[0]
        for node in decoder.graph.node
        for i in range(len(found) // 2)
        if node.op_type == "GroupQueryAttention" and node.input[3] == names.past_key_self(i)
    }
    projected = _channel_ranges(_decoder_activations(encoder, decoder, list(projections.values()), held), 1.0)
    for i, name in projections.items():
        _, found[names.past_key_self(i)], found[names.past_value_self(i)] = np.split(projected[name], 3)
    return {name: largest * np.float32(CACHE_HEADROOM) for name, largest in found.items()}


def _channel_ranges(batches: Iterable[Arrays], inside: float) -> dict[str, npt.NDArray[np.float32]]:
    """What the share `inside` of the positions of every channel [D] lie within."""
    found: dict[str, list[npt.NDArray[np.float32]]] = {}
    for activations in batches:
        for name, values in activations.items():
            found.setdefault(name, []).append(np.abs(values))
    return {
        name: np.quantile(np.concatenate(values), inside, axis=0).astype(np.float32) for name, values in found.items()
    }


def _calibration(batches: Iterable[Arrays]) -> Calibration:
    largest: dict[str, list[npt.NDArray[np.float32]]] = {}
    products: dict[str, npt.NDArray[np.float64]] = {}
    for activations in batches:
        for name, values in activations.items():  # [positions,D]
            largest.setdefault(name, []).append(np.abs(values).max(axis=-1))  # [positions]
            exact = values.astype(np.float64)
            products[name] = products.get(name, 0.0) + exact.T @ exact
    ordered = {name: np.concatenate(found) for name, found in largest.items()}
    return Calibration(
        ranges={name: float(np.quantile(found, INSIDE)) for name, found in ordered.items()},
        moments={name: products[name] / len(found) for name, found in ordered.items()},
    )


def _encoder_activations(encoder: onnx.ModelProto, sources: Iterable[Sequence[int]]) -> Iterator[Arrays]:
    """The activations before the products of a batch, [positions,D] by name."""
    watched = _Watched(encoder, product_inputs(encoder))
    for batch in _batches((source, ()) for source in sources):
        source_ids, source_lengths = _padded(batch)
        is_inside = np.arange(source_ids.shape[1]) < source_lengths[:, None]  # [B,S]
        yield watched.run([], {"source_ids": source_ids, "source_lengths": source_lengths}, is_inside)[0]


def _encoded(encoder_model: onnx.ModelProto, sources: Iterable[Sequence[int]]) -> Iterator[Arrays]:
    """What the encoder puts out for a batch, [positions,D] by name."""
    encoder = _open(encoder_model)
    outputs = [output.name for output in encoder.get_outputs()]
    for batch in _batches((source, ()) for source in sources):
        source_ids, source_lengths = _padded(batch)
        is_inside = np.arange(source_ids.shape[1]) < source_lengths[:, None]  # [B,S]
        found = encoder.run(outputs, {"source_ids": source_ids, "source_lengths": source_lengths})  # [B,H,S,K]
        by_position = [values.transpose(0, 2, 1, 3)[is_inside] for values in found]  # [positions,H,K]
        yield {name: values.reshape(len(values), -1) for name, values in zip(outputs, by_position, strict=True)}


def _decoder_activations(
    encoder_model: onnx.ModelProto, decoder: onnx.ModelProto, wanted: Sequence[str], pairs: Iterable[Pair]
) -> Iterator[Arrays]:
    """The `wanted` activations of one step of a batch, [positions,D] by name."""
    encoder, watched = _open(encoder_model), _Watched(decoder, wanted)
    layers = range(len(encoder.get_outputs()) // 2)
    for batch in _batches(pairs):
        source_ids, source_lengths = _padded(batch)
        encoded = encoder.run(None, {"source_ids": source_ids, "source_lengths": source_lengths})
        target_lengths = np.array([len(target) for _, target in batch])  # [B]
        longest = int(target_lengths.max())
        feeds = _lanes(source_lengths, source_ids.shape[1] + LEAST_SLOTS) | _caches(encoded, longest)
        feeds["num_target_positions"] = np.array([longest], np.int32)
        past = [name for i in layers for name in (names.past_key_self(i), names.past_value_self(i))]
        present = [name for i in layers for name in (names.present_key_self(i), names.present_value_self(i))]
        for position in range(longest):
            ids = [target[min(position, len(target) - 1)] for _, target in batch]
            feeds["target_ids"] = np.array(ids, np.int64)[:, None]  # [B,1]
            feeds["past_lengths"] = np.full((len(batch), 1), position, np.int32)
            activations, caches = watched.run(present, feeds, position < target_lengths)
            feeds |= zip(past, caches, strict=True)
            yield activations


class _Watched:
    """An fp32 graph that also tells some of its activations."""

    def __init__(self, model: onnx.ModelProto, wanted: Sequence[str]) -> None:
        self._names = wanted
        graph = onnx.ModelProto()
        graph.CopyFrom(model)
        for name in self._names:
            graph.graph.output.append(helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
        self._session = _open(graph)

    def run(
        self, outputs: Sequence[str], feeds: Mapping[str, Any], is_inside: npt.NDArray[np.bool_]
    ) -> tuple[Arrays, list[Any]]:
        """Runs the graph; `is_inside` are the positions that count, by the leading axes of activations.

        Returns the activations [positions,D] by name, and `outputs`.
        """
        found = self._session.run([*self._names, *outputs], feeds)
        count = len(self._names)
        activations = {
            name: values[is_inside].reshape(-1, values.shape[-1])
            for name, values in zip(self._names, found[:count], strict=True)
        }
        return activations, found[count:]


def _open(model: onnx.ModelProto) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def _batches(pairs: Iterable[Pair]) -> Iterator[list[Pair]]:
    """Those of like length together, the shortest sources first."""
    ordered = sorted(pairs, key=lambda pair: (len(pair[0]), len(pair[1])))
    for first in range(0, len(ordered), MAX_ROWS):
        yield ordered[first : first + MAX_ROWS]


def _padded(batch: Sequence[Pair]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int32]]:
    """Source ids [B,S] and lengths [B]."""
    lengths = np.array([len(source) for source, _ in batch], np.int32)  # [B]
    width = -(-int(lengths.max()) // SOURCE_MULTIPLE) * SOURCE_MULTIPLE
    source_ids = np.full((len(batch), width), PAD_ID, np.int64)
    for row, (source, _) in zip(source_ids, batch, strict=True):
        row[: len(source)] = source
    return source_ids, lengths


def _lanes(source_lengths: npt.NDArray[np.int32], slot_length: int) -> Arrays:
    """The lane inputs of one row a lane, in slots of `slot_length` positions."""
    rows = np.arange(len(source_lengths))
    layout = LaneLayout(max_rows=len(rows), slot_length=slot_length)
    layout.arrange(
        StepInputs(
            target_ids=np.zeros(len(rows), np.int64),
            past_lengths=np.zeros(len(rows), np.int32),
            row_lanes=rows,
            row_places=np.zeros(len(rows), np.int64),
            source_lengths=source_lengths,
            rows_per_lane=np.ones(len(rows), np.int32),
            num_candidates=1,
            with_attention=False,
        )
    )
    return dict(layout.inputs())


def _caches(encoded: Sequence[npt.NDArray[np.float32]], num_target_positions: int) -> Arrays:
    """Empty caches of the target, and the encoder's keys and values [B,H,S,K] with room for a lane's queries."""
    feeds: Arrays = {}
    for i in range(len(encoded) // 2):
        keys, values = encoded[2 * i : 2 * i + 2]
        rows, heads, _, head_width = keys.shape
        room = ((0, 0), (0, 0), (0, LEAST_SLOTS), (0, 0))
        feeds[names.cross_key(i)], feeds[names.cross_value(i)] = np.pad(keys, room), np.pad(values, room)
        empty = np.zeros((rows, heads, num_target_positions, head_width), np.float32)
        feeds[names.past_key_self(i)] = feeds[names.past_value_self(i)] = empty
    return feeds
