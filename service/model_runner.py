"""Runs a bundle's graphs over a slab of keys and values.

The graphs read and write buffers that NumPy owns, bound once for every size of a step, so that a decoding step copies
two short vectors in and nothing out. Axes: B rows, N lanes, Q query slots of a lane, P positions of a step's
cross-attention, C candidates, S source positions, L decoder layers, H heads, K width per head, V vocabulary.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence as Ids
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from service import graph_signature as names
from service.bundle import Bundle
from service.candidates import best_tokens
from service.graph_signature import SPARE_POSITIONS
from service.graphs import Graphs, ModelRunnerError, open_graphs
from service.kv_cache import KeyValueSlab, round_up
from service.lane_layout import LaneLayout
from service.lazy_memory import lazy_zeros
from service.runner import EncodedBatch, EncodedSource, GreedyOutputs, StepInputs, StepOutputs
from service.tokenizer import PAD_ID

MAX_PADDED_TOKENS_PER_RUN = 4096
MAX_ENCODER_BINDINGS = 32
MAX_KEPT_ENCODER_TOKENS = 256
"""Shapes of encoder runs whose buffers are kept: small ones, which are run again and again."""
MAX_BINDINGS = 512
"""Bindings kept of each graph: made anew they take 0.2 ms, a step of one row."""


@dataclass(slots=True)
class _EncoderBinding:
    """The encoder bound to buffers of one shape."""

    binding: Any
    """Of ONNX Runtime."""
    source_ids: npt.NDArray[np.int64]
    """[B,S]."""
    source_lengths: npt.NDArray[np.int32]
    """[B]."""
    cross: npt.NDArray[Any]
    """[L,2,B,H,S,K]."""


@dataclass(slots=True)
class _CandidatesBinding:
    """The candidates' graph bound for one number of rows and candidates."""

    binding: Any
    """Of ONNX Runtime."""
    num_candidates: npt.NDArray[np.int64]
    """[1]."""
    ids: npt.NDArray[np.int64]
    """[B,C]."""
    log_probabilities: npt.NDArray[np.float32]
    """[B,C]."""


@dataclass(slots=True)
class _GreedyBinding:
    """The graph of several greedy steps bound to the slab."""

    binding: Any
    """Of ONNX Runtime."""
    outputs: GreedyOutputs
    """Its buffers."""


class OnnxModelRunner:
    """A bundle's encoder and decoder over a fixed slab; see `service.runner.Runner`. Used by one thread at a time."""

    def __init__(
        self,
        bundle: Bundle,
        *,
        max_rows: int,
        max_source_tokens: int,
        max_target_tokens: int,
        graphs: Graphs | None = None,
        num_threads: int = 1,
    ) -> None:
        """Args:
            bundle: verified files.
            max_rows: rows of the slab.
            max_source_tokens: the longest source, end of sentence included.
            max_target_tokens: the most target tokens of a row, end of sentence included.
            graphs: the bundle's, opened; None: opened here for this runner alone.
            num_threads: of graphs that are opened here, as for `open_graphs`.

        Raises:
            ModelRunnerError: naming every argument out of bounds, or as `open_graphs`.
        """
        architecture = bundle.architecture
        problems = [
            f"`{name}` must be between 1 and {most}, but is {value}."
            for name, value, most in (
                ("max_rows", max_rows, 4096),
                ("max_source_tokens", max_source_tokens, architecture.max_positions),
                ("max_target_tokens", max_target_tokens, architecture.max_positions),
            )
            if not 1 <= value <= most
        ]
        if problems:
            raise ModelRunnerError(" ".join(problems))
        self._architecture = architecture
        self._max_rows = max_rows
        self._max_source_tokens = max_source_tokens
        self._max_target_tokens = max_target_tokens
        if graphs is None:
            graphs = open_graphs(bundle, num_threads=num_threads)
        self._encoder, self._decoder, self._candidates = graphs.encoder, graphs.decoder, graphs.candidates
        self._greedy = graphs.greedy
        self._greedy_steps = 1 if graphs.greedy is None else bundle.manifest.greedy_steps
        self._cache_dtype = np.dtype(bundle.signature.cache_dtype)
        self._slab = KeyValueSlab(
            architecture,
            max_rows=max_rows,
            max_source_tokens=max_source_tokens,
            max_target_tokens=max_target_tokens,
            dtype=self._cache_dtype,
        )
        slot_length = self._slab.source_slot_length
        self._layout = LaneLayout(max_rows=max_rows, slot_length=slot_length)
        self._target_ids = np.zeros((max_rows, 1), np.int64)  # [R,1]
        self._past_lengths = np.zeros((max_rows, 1), np.int32)  # [R,1]
        self._num_target_positions = np.array([self._slab.target_slot_length], np.int32)  # [1]
        self._log_probabilities = np.empty((max_rows, architecture.target_vocabulary), np.float32)  # [R,V]
        self._attention = lazy_zeros((max_rows * architecture.heads * SPARE_POSITIONS * slot_length,))
        self._bindings: dict[tuple[int, int, int, int, bool], Any] = {}
        self._encoder_bindings: dict[tuple[int, int], _EncoderBinding] = {}
        self._candidates_bindings: dict[tuple[int, int], _CandidatesBinding] = {}
        self._greedy_bindings: dict[tuple[int, int, int, int], _GreedyBinding] = {}

    @property
    def max_rows(self) -> int:
        """Rows of the slab, and its lanes."""
        return self._max_rows

    @property
    def max_source_tokens(self) -> int:
        """The longest source a lane holds, end of sentence included."""
        return self._max_source_tokens

    @property
    def max_target_tokens(self) -> int:
        """The most target tokens a row's cache holds, end of sentence included."""
        return self._max_target_tokens

    @property
    def source_vocabulary_size(self) -> int:
        """Source token ids are 0..source_vocabulary_size-1."""
        return self._architecture.source_vocabulary

    @property
    def target_vocabulary_size(self) -> int:
        """V: target token ids are 0..target_vocabulary_size-1."""
        return self._architecture.target_vocabulary

    @property
    def greedy_steps(self) -> int:
        """T: steps that `decode_greedy` makes; 1: there is no graph for it."""
        return self._greedy_steps

    @property
    def slab_bytes(self) -> int:
        """Address space of the key/value slab; memory is taken as rows and lanes come into use."""
        return self._slab.num_bytes

    def padded_length(self, source_length: int) -> int:
        """Tokens the encoder computes for a source of that length: the length, rounded up."""
        return round_up(source_length)

    def encode(self, sources: Ids[Ids[int]]) -> EncodedBatch:
        """Encodes sources, those of one rounded length together, so that a source's padding depends on itself alone.

        Args:
            sources: token ids, each of 1..max_source_tokens.
        """
        lengths = [len(source) for source in sources]
        by_length: defaultdict[int, list[int]] = defaultdict(list)
        for index, length in enumerate(lengths):
            by_length[round_up(length)].append(index)
        encoded: list[Any] = [None] * len(sources)
        num_padded = 0
        for padded_length, indices in by_length.items():
            num_padded += padded_length * len(indices)
            most = max(1, MAX_PADDED_TOKENS_PER_RUN // padded_length)
            for start in range(0, len(indices), most):
                chosen = indices[start : start + most]
                is_first = start == 0  # later ones of the same shape must not write over it
                cross = self._encode_run([sources[index] for index in chosen], padded_length, may_keep=is_first)
                for position, index in enumerate(chosen):
                    encoded[index] = EncodedSource(lengths[index], cross[:, :, position])  # [L,2,H,S,K]
        return EncodedBatch(sources=encoded, num_tokens=sum(lengths), num_padded_tokens=num_padded)

    def _encode_run(self, sources: list[Ids[int]], padded_length: int, *, may_keep: bool) -> npt.NDArray[Any]:
        """Cross keys and values [L,2,B,H,S,K] of sources of one rounded length.

        With `may_keep` they may lie in buffers that the next call of `encode` writes over.
        """
        shape = (len(sources), padded_length)
        bound = self._encoder_bindings.get(shape) if may_keep else None
        if bound is None:
            bound = self._bind_encoder(*shape)
            if may_keep and math.prod(shape) <= MAX_KEPT_ENCODER_TOKENS:
                if len(self._encoder_bindings) >= MAX_ENCODER_BINDINGS:
                    self._encoder_bindings.clear()
                self._encoder_bindings[shape] = bound
        bound.source_ids.fill(PAD_ID)
        for row, source in enumerate(sources):
            bound.source_ids[row, : len(source)] = source
        bound.source_lengths[:] = [len(source) for source in sources]
        self._encoder.run_with_iobinding(bound.binding)
        return bound.cross

    def _bind_encoder(self, num_rows: int, padded_length: int) -> _EncoderBinding:
        """The encoder on new buffers."""
        architecture = self._architecture
        layers, heads, head_width = architecture.decoder_layers, architecture.heads, architecture.head_width
        bound = _EncoderBinding(
            binding=self._encoder.io_binding(),
            source_ids=np.empty((num_rows, padded_length), np.int64),
            source_lengths=np.empty(num_rows, np.int32),
            cross=np.empty((layers, 2, num_rows, heads, padded_length, head_width), self._cache_dtype),
        )
        _bind_input(bound.binding, "source_ids", bound.source_ids)
        _bind_input(bound.binding, "source_lengths", bound.source_lengths)
        for i in range(layers):
            _bind_output(bound.binding, names.cross_key(i), bound.cross[i, 0])
            _bind_output(bound.binding, names.cross_value(i), bound.cross[i, 1])
        return bound

    def place(self, lane: int, encoded: EncodedSource) -> None:
        """Makes `lane` ready: its rows can decode that source from their first token."""
        self._slab.place(lane, encoded.payload, encoded.source_length)

    def copy_lane(self, source_lane: int, target_lane: int, *, source_length: int) -> None:
        """Copies a lane's encoded source of `source_length` tokens onto another lane."""
        self._slab.copy_lane(source_lane, target_lane, source_length=source_length)

    def copy_row(self, source_row: int, target_row: int, *, start: int, stop: int) -> None:
        """Copies target positions `start`..`stop`-1 of a row's cache onto another row, which holds the rest already."""
        self._slab.copy_row(source_row, target_row, start=start, stop=stop)

    def decode_step(self, inputs: StepInputs) -> StepOutputs:
        """One step of rows 0..B-1; see `service.runner.Runner.decode_step`.

        A row whose numbers are broken may break others of its own lane, and no row of another.

        Raises:
            ValueError: when a lane has no row or more than `SPARE_POSITIONS`, or `num_candidates` is not within 1..V.
        """
        num_rows, num_candidates = len(inputs.target_ids), inputs.num_candidates
        if not 1 <= num_candidates <= self.target_vocabulary_size:
            raise ValueError(
                f"`num_candidates` must be between 1 and {self.target_vocabulary_size}, but is {num_candidates}."
            )
        self._take(inputs)
        self._decoder.run_with_iobinding(self._step_binding(inputs.with_attention))
        log_probabilities = self._log_probabilities[:num_rows]
        if num_candidates == 1:
            ids, best = best_tokens(log_probabilities)
        else:
            found = self._candidates_binding(num_rows, num_candidates)
            self._candidates.run_with_iobinding(found.binding)
            ids, best = found.ids, found.log_probabilities
        return StepOutputs(
            candidate_ids=ids,
            candidate_log_probabilities=best,
            log_probabilities=log_probabilities,
            attention=self._attention_by_row(inputs) if inputs.with_attention else None,
        )

    def decode_greedy(self, inputs: StepInputs) -> GreedyOutputs:
        """Several steps of rows 0..B-1; see `service.runner.Runner.decode_greedy`.

        Raises:
            ValueError: when the bundle has no graph for it, when a lane has no row or more than `SPARE_POSITIONS`, or
                when more is asked for than the best tokens.
        """
        if self._greedy is None or inputs.num_candidates != 1 or inputs.with_attention:
            raise ValueError(
                "Several steps in one run must be in the bundle, and give the best tokens and nothing else."
            )
        self._take(inputs)
        bound = self._greedy_binding()
        self._greedy.run_with_iobinding(bound.binding)
        return bound.outputs

    def _take(self, inputs: StepInputs) -> None:
        """Makes the buffers say what a step is to read."""
        num_rows = len(inputs.target_ids)
        self._target_ids[:num_rows, 0] = inputs.target_ids
        self._past_lengths[:num_rows, 0] = inputs.past_lengths
        self._layout.arrange(inputs)

    def _greedy_binding(self) -> _GreedyBinding:
        """The graph of several steps on the buffers, which never move, as large as the layout says."""
        layout = self._layout
        rows, lanes = layout.num_rows, layout.num_lanes
        key = (rows, lanes, layout.num_slots, layout.num_positions)
        bound = self._greedy_bindings.get(key)
        if bound is None:
            if len(self._greedy_bindings) >= MAX_BINDINGS:
                self._greedy_bindings.clear()
            shape = (rows, self._greedy_steps)
            bound = self._greedy_bindings[key] = _GreedyBinding(
                binding=self._greedy.io_binding(),
                outputs=GreedyOutputs(np.empty(shape, np.int64), np.empty(shape, np.float32)),
            )
            self._bind_inputs(bound.binding, rows, lanes)
            _bind_output(bound.binding, names.GREEDY_IDS, bound.outputs.token_ids)
            _bind_output(bound.binding, names.GREEDY_LOG_PROBABILITIES, bound.outputs.log_probabilities)
            for step in range(self._greedy_steps):
                for name, buffer in self._slab.outputs(rows, lanes):
                    _bind_output(bound.binding, names.at_step(name, step), buffer)
        return bound

    def _step_binding(self, with_attention: bool) -> Any:
        """The decoder's inputs and outputs on the buffers, which never move, as large as the layout says."""
        layout = self._layout
        key = (layout.num_rows, layout.num_lanes, layout.num_slots, layout.num_positions, with_attention)
        binding = self._bindings.get(key)
        if binding is None:
            if len(self._bindings) >= MAX_BINDINGS:
                self._bindings.clear()
            binding = self._bindings[key] = self._decoder.io_binding()
            self._bind_inputs(binding, layout.num_rows, layout.num_lanes)
            _bind_output(binding, names.LOG_PROBABILITIES, self._log_probabilities[: layout.num_rows])
            for name, buffer in self._slab.outputs(layout.num_rows, layout.num_lanes):
                _bind_output(binding, name, buffer)
            if with_attention:
                _bind_output(binding, "attention", self._attention_by_slot())
        return binding

    def _bind_inputs(self, binding: Any, num_rows: int, num_lanes: int) -> None:
        """What the decoder reads in a step, and the graph of several steps in its first."""
        _bind_input(binding, "target_ids", self._target_ids[:num_rows])
        _bind_input(binding, "past_lengths", self._past_lengths[:num_rows])
        _bind_input(binding, "num_target_positions", self._num_target_positions)
        for name, buffer in self._slab.inputs(num_rows, num_lanes):
            _bind_input(binding, name, buffer)
        for name, buffer in self._layout.inputs():
            _bind_input(binding, name, buffer)

    def _attention_by_slot(self) -> npt.NDArray[np.float32]:
        """The attention's buffer, [N,H,Q,P]."""
        layout = self._layout
        shape = (layout.num_lanes, self._architecture.heads, layout.num_slots, layout.num_positions)
        return self._attention[: math.prod(shape)].reshape(shape)

    def _attention_by_row(self, inputs: StepInputs) -> npt.NDArray[np.float32]:
        """The attention of every row, the mean of the heads [B,S']; S' is the longest source."""
        longest = int(inputs.source_lengths.max())
        by_slot = np.add.reduce(self._attention_by_slot(), axis=1)[..., :longest]  # [N,Q,S']
        by_row: npt.NDArray[np.float32] = by_slot[inputs.row_lanes, inputs.row_places]  # [B,S']
        by_row /= self._architecture.heads
        return by_row

    def _candidates_binding(self, num_rows: int, num_candidates: int) -> _CandidatesBinding:
        """The candidates' graph on the first `num_rows` rows of the log-probabilities."""
        key = (num_rows, num_candidates)
        found = self._candidates_bindings.get(key)
        if found is None:
            if len(self._candidates_bindings) >= MAX_BINDINGS:
                self._candidates_bindings.clear()
            found = self._candidates_bindings[key] = _CandidatesBinding(
                binding=self._candidates.io_binding(),
                num_candidates=np.array([num_candidates], np.int64),
                ids=np.empty(key, np.int64),
                log_probabilities=np.empty(key, np.float32),
            )
            _bind_input(found.binding, names.LOG_PROBABILITIES, self._log_probabilities[:num_rows])
            _bind_input(found.binding, "num_candidates", found.num_candidates)
            _bind_output(found.binding, "candidate_ids", found.ids)
            _bind_output(found.binding, "candidate_log_probabilities", found.log_probabilities)
        return found


def _bind_input(binding: Any, name: str, buffer: npt.NDArray[Any]) -> None:
    binding.bind_input(name, "cpu", 0, buffer.dtype.type, buffer.shape, buffer.ctypes.data)


def _bind_output(binding: Any, name: str, buffer: npt.NDArray[Any]) -> None:
    binding.bind_output(name, "cpu", 0, buffer.dtype.type, buffer.shape, buffer.ctypes.data)
