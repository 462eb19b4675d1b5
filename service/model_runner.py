"""Runs a bundle's graphs: the only file of the service that touches ONNX Runtime.

Both graphs read and write buffers that NumPy owns, bound once for every number of rows, so a decoding step copies three
short vectors in and nothing out. Axes: B rows, S source positions, L decoder layers, H heads, K width per head,
V vocabulary.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence as Ids
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime

from service import graph_signature as names
from service.bundle import Bundle
from service.candidates import best_candidates
from service.kv_cache import KeyValueSlab, round_up
from service.runner import Candidates, EncodedBatch, EncodedSource
from service.tokenizer import PAD_ID

PROVIDERS = {"cpu": "CPUExecutionProvider"}
MAX_PADDED_TOKENS_PER_RUN = 4096


class ModelRunnerError(RuntimeError):
    """A bundle whose graphs cannot be run as asked. The message names every problem."""


class OnnxModelRunner:
    """A bundle's encoder and decoder over a fixed slab; see `service.runner.Runner`. Used by one thread at a time."""

    def __init__(
        self,
        bundle: Bundle,
        *,
        max_rows: int,
        max_source_tokens: int,
        max_target_tokens: int,
        num_threads: int,
        provider: str = "cpu",
        allow_spinning: bool = False,
    ) -> None:
        """Args:
            bundle: verified files.
            max_rows: rows of the slab.
            max_source_tokens: the longest source, end of sentence included.
            max_target_tokens: the most target tokens of a row, end of sentence included.
            num_threads: of the runtime's pool, the caller's own included.
            provider: "cpu".
            allow_spinning: whether the pool's threads look out for more work for a moment before they sleep. Off:
                where callers share the cores it cost up to 1.8 times the CPU time of a step, and each session has a
                pool of its own, so the encoder's threads would spin against the decoder's.

        Raises:
            ModelRunnerError: naming every argument out of bounds, or every difference between the graphs and their
                signature.
        """
        architecture = bundle.architecture
        problems = [
            f"`{name}` must be between 1 and {most}, but is {value}."
            for name, value, most in (
                ("max_rows", max_rows, 4096),
                ("max_source_tokens", max_source_tokens, architecture.max_positions),
                ("max_target_tokens", max_target_tokens, architecture.max_positions),
                ("num_threads", num_threads, 1024),
            )
            if not 1 <= value <= most
        ]
        if provider not in PROVIDERS:
            problems.append(f"`provider` must be one of {sorted(PROVIDERS)}, but is {provider!r}.")
        if problems:
            raise ModelRunnerError(" ".join(problems))
        self._architecture = architecture
        self._max_rows = max_rows
        self._max_source_tokens = max_source_tokens
        self._max_target_tokens = max_target_tokens

        self._encoder = _open(bundle.encoder_path, provider, num_threads=num_threads, allow_spinning=allow_spinning)
        self._decoder = _open(bundle.decoder_path, provider, num_threads=num_threads, allow_spinning=allow_spinning)
        problems = [
            *bundle.signature.check_encoder(self._encoder.get_inputs(), self._encoder.get_outputs()),
            *bundle.signature.check_decoder(self._decoder.get_inputs(), self._decoder.get_outputs()),
        ]
        if problems:
            raise ModelRunnerError("The graphs must have the signature of the manifest: " + " ".join(problems))

        self._slab = KeyValueSlab(
            architecture,
            max_rows=max_rows,
            max_source_tokens=max_source_tokens,
            max_target_tokens=max_target_tokens,
        )
        self._target_ids = np.zeros((max_rows, 1), np.int64)  # [R,1]
        self._past_lengths = np.zeros(max_rows, np.int32)  # [R]
        self._source_lengths = np.ones(max_rows, np.int32)  # [R]
        self._log_probabilities = np.empty((max_rows, architecture.target_vocabulary), np.float32)  # [R,V]
        self._bindings: dict[int, Any] = {}

    @property
    def max_rows(self) -> int:
        """Rows of the slab."""
        return self._max_rows

    @property
    def max_source_tokens(self) -> int:
        """The longest source a row holds, end of sentence included."""
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
    def slab_bytes(self) -> int:
        """Address space of the key/value slab; memory is taken as rows come into use."""
        return self._slab.num_bytes

    def padded_length(self, source_length: int) -> int:
        """Tokens the encoder computes for a source of that length: the length, rounded up."""
        return round_up(source_length)

    def encode(self, sources: Ids[Ids[int]]) -> EncodedBatch:
        """Encodes sources, those of one rounded length together, so that a source's padding depends on itself alone.

        Args:
            sources: token ids, each of 1..max_source_tokens.
        """
        by_length: dict[int, list[int]] = defaultdict(list)
        for index, source in enumerate(sources):
            by_length[round_up(len(source))].append(index)
        encoded: dict[int, EncodedSource] = {}
        num_padded = 0
        for padded_length, indices in by_length.items():
            num_padded += padded_length * len(indices)
            most = max(1, MAX_PADDED_TOKENS_PER_RUN // padded_length)
            for start in range(0, len(indices), most):
                chosen = indices[start : start + most]
                cross = self._encode_run([sources[index] for index in chosen], padded_length)  # [L,2,B,H,S,K]
                for position, index in enumerate(chosen):
                    encoded[index] = EncodedSource(
                        source_length=len(sources[index]), payload=cross[:, :, position]
                    )  # [L,2,H,S,K]
        return EncodedBatch(
            sources=[encoded[index] for index in range(len(sources))],
            num_tokens=sum(len(source) for source in sources),
            num_padded_tokens=num_padded,
        )

    def _encode_run(self, sources: list[Ids[int]], padded_length: int) -> npt.NDArray[np.float32]:
        """Cross keys and values [L,2,B,H,S,K] of sources of one rounded length."""
        architecture = self._architecture
        num_rows = len(sources)
        source_ids = np.full((num_rows, padded_length), PAD_ID, np.int64)  # [B,S]
        for row, source in enumerate(sources):
            source_ids[row, : len(source)] = source
        source_lengths = np.array([len(source) for source in sources], np.int32)  # [B]
        layers, heads, head_width = architecture.decoder_layers, architecture.heads, architecture.head_width
        cross = np.empty((layers, 2, num_rows, heads, padded_length, head_width), np.float32)
        binding = self._encoder.io_binding()
        _bind_input(binding, "source_ids", source_ids)
        _bind_input(binding, "source_lengths", source_lengths)
        for i in range(layers):
            _bind_output(binding, names.cross_key(i), cross[i, 0])
            _bind_output(binding, names.cross_value(i), cross[i, 1])
        self._encoder.run_with_iobinding(binding)
        return cross

    def place(self, row: int, encoded: EncodedSource) -> None:
        """Makes `row` ready to decode that source from its first token."""
        self._slab.place(row, encoded.payload, encoded.source_length)

    def move_row(self, source_row: int, target_row: int, *, past_length: int, source_length: int) -> None:
        """Copies a row's cache, `past_length` target and `source_length` source positions, onto another row."""
        self._slab.move_row(source_row, target_row, past_length=past_length, source_length=source_length)

    def decode_step(
        self, target_ids: Ids[int], past_lengths: Ids[int], source_lengths: Ids[int], num_candidates: int
    ) -> Candidates:
        """One step of rows 0..B-1; see `service.runner.Runner.decode_step`."""
        num_rows = len(target_ids)
        self._target_ids[:num_rows, 0] = target_ids
        self._past_lengths[:num_rows] = past_lengths
        self._source_lengths[:num_rows] = source_lengths
        binding = self._bindings.get(num_rows)
        if binding is None:
            binding = self._bindings[num_rows] = self._bind_decoder(num_rows)
        self._decoder.run_with_iobinding(binding)
        return best_candidates(self._log_probabilities[:num_rows], num_candidates)

    def _bind_decoder(self, num_rows: int) -> Any:
        """The decoder's inputs and outputs on the first `num_rows` rows of the buffers, which never move."""
        binding = self._decoder.io_binding()
        _bind_input(binding, "target_ids", self._target_ids[:num_rows])
        _bind_input(binding, "past_lengths", self._past_lengths[:num_rows])
        _bind_input(binding, "source_lengths", self._source_lengths[:num_rows])
        for name, buffer in self._slab.inputs(num_rows):
            _bind_input(binding, name, buffer)
        _bind_output(binding, "log_probabilities", self._log_probabilities[:num_rows])
        for name, buffer in self._slab.outputs(num_rows):
            _bind_output(binding, name, buffer)
        return binding


def runtime_version() -> str:
    """ONNX Runtime's version."""
    return str(onnxruntime.__version__)


def _open(path: Path, provider: str, *, num_threads: int, allow_spinning: bool) -> Any:
    """A session with the service's options.

    Raises:
        ModelRunnerError: when the runtime cannot load the graph.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_threads
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "1" if allow_spinning else "0")
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=[PROVIDERS[provider]])
    except Exception as error:  # the runtime's exceptions have no common base but Exception
        raise ModelRunnerError(
            f"{path.name} must be a graph that ONNX Runtime can load, but is not: {error}"
        ) from error


def _bind_input(binding: Any, name: str, buffer: npt.NDArray[Any]) -> None:
    binding.bind_input(name, "cpu", 0, buffer.dtype.type, buffer.shape, buffer.ctypes.data)


def _bind_output(binding: Any, name: str, buffer: npt.NDArray[Any]) -> None:
    binding.bind_output(name, "cpu", 0, buffer.dtype.type, buffer.shape, buffer.ctypes.data)
