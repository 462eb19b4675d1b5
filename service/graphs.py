"""Opens a bundle's graphs: the only file of the service that imports ONNX Runtime."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import onnxruntime

from service.bundle import CANDIDATES_NAME, DECODER_NAME, ENCODER_NAME, GREEDY_NAME, Bundle

PROVIDERS = {"cpu": "CPUExecutionProvider"}
_EXTERNAL_DATA_SUFFIX = ".onnx.data"


class ModelRunnerError(RuntimeError):
    """A bundle whose graphs cannot be run as asked. The message names every problem."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Graphs:
    """A bundle's graphs, opened: weights and no state, so that runners in several threads may share them."""

    encoder: Any
    """Session of ONNX Runtime."""
    decoder: Any
    candidates: Any
    greedy: Any = None
    """None where the bundle has no such graph, or none is to be run."""


def open_graphs(bundle: Bundle, *, num_threads: int, provider: str = "cpu", allow_spinning: bool = False) -> Graphs:
    """Opens a bundle's graphs from the bytes that were verified; nothing is read from its directory.

    Args:
        bundle: verified files.
        num_threads: of the runtime's pools, the caller's own included; runners that share the graphs share the pools.
        provider: "cpu".
        allow_spinning: whether the pools' threads look out for more work for a moment before they sleep. Off: where
            callers share the cores it cost up to 1.8 times the CPU time of a step, and each session has a pool of its
            own, so the encoder's threads would spin against the decoder's.

    Raises:
        ModelRunnerError: naming every argument out of bounds, or every difference between the graphs and their
            signature.
    """
    problems = []
    if not 1 <= num_threads <= 1024:
        problems.append(f"`num_threads` must be between 1 and 1024, but is {num_threads}.")
    if provider not in PROVIDERS:
        problems.append(f"`provider` must be one of {sorted(PROVIDERS)}, but is {provider!r}.")
    if problems:
        raise ModelRunnerError(" ".join(problems))

    def opened(name: str, *, num_threads: int = num_threads, allow_spinning: bool = allow_spinning) -> Any:
        return _open_session(bundle, name, provider, num_threads=num_threads, allow_spinning=allow_spinning)

    graphs = Graphs(
        encoder=opened(ENCODER_NAME),
        decoder=opened(DECODER_NAME),
        # A step's candidates take a tenth of a millisecond: nothing to share out among threads.
        candidates=opened(CANDIDATES_NAME, num_threads=1, allow_spinning=False),
        greedy=opened(GREEDY_NAME) if bundle.manifest.greedy_steps > 1 else None,
    )
    problems = [
        *bundle.signature.check_encoder(graphs.encoder.get_inputs(), graphs.encoder.get_outputs()),
        *bundle.signature.check_decoder(graphs.decoder.get_inputs(), graphs.decoder.get_outputs()),
        *bundle.signature.check_candidates(graphs.candidates.get_inputs(), graphs.candidates.get_outputs()),
    ]
    if graphs.greedy is not None:
        problems += bundle.signature.check_greedy(graphs.greedy.get_inputs(), graphs.greedy.get_outputs())
    if problems:
        raise ModelRunnerError("The graphs must have the signature of the manifest: " + " ".join(problems))
    return graphs


def runtime_version() -> str:
    """ONNX Runtime's version."""
    return str(onnxruntime.__version__)


def _open_session(bundle: Bundle, name: str, provider: str, *, num_threads: int, allow_spinning: bool) -> Any:
    """A session with the service's options.

    Raises:
        ModelRunnerError: when the runtime cannot load the graph.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_threads
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "1" if allow_spinning else "0")
    # Weights that are stored apart come from the bundle's own files, or the graph is refused: never from a disk.
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", os.devnull)
    apart = {path: content for path, content in bundle.files.items() if path.endswith(_EXTERNAL_DATA_SUFFIX)}
    if apart:
        sizes = [len(content) for content in apart.values()]
        options.add_external_initializers_from_files_in_memory(list(apart), list(apart.values()), sizes)
    try:
        return onnxruntime.InferenceSession(bundle.files[name], options, providers=[PROVIDERS[provider]])
    except Exception as error:  # the runtime's exceptions have no common base but Exception
        raise ModelRunnerError(f"{name} must be a graph that ONNX Runtime can load, but is not: {error}") from error
