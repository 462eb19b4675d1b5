"""Dragoman as a peer: engines in this process over a shipped bundle, as many side by side as the service would have.

    python -m benchmarks.peers.dragoman_peer    # speaks benchmarks.peers.protocol

Engines of one thread share the graphs, as in `service.models`. The sentences are dealt out longest first, so that the
engines end at about the same time. There is no server, no gRPC and no text here: ids in, ids out.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from benchmarks.peers.protocol import Load, Request, serve
from service.bundle import load_bundle
from service.engine import Engine
from service.graphs import open_graphs, runtime_version
from service.model_runner import OnnxModelRunner
from service.options import DecodingOptions
from service.request import FinishReason, Sequence

NO_TOKEN = -1
"""An end of sentence that no model predicts."""


class Dragoman:
    """Engines over one bundle; see `protocol.Translator`."""

    def __init__(self, load: Load) -> None:
        self.version = f"ONNX Runtime {runtime_version()}"
        self._bundle = load_bundle(load.model)
        if self._bundle.manifest.precision != load.precision.replace("float", "fp"):
            raise ValueError(f"The bundle must be {load.precision}, but is {self._bundle.manifest.precision}.")
        shared = open_graphs(self._bundle, num_threads=load.threads)
        self._graphs = [
            shared if worker == 0 or load.threads == 1 else open_graphs(self._bundle, num_threads=load.threads)
            for worker in range(load.workers)
        ]
        self._pool = ThreadPoolExecutor(load.workers)
        self._size = (0, 0, 0)
        self._runners: list[OnnxModelRunner] = []

    def prepare(self, request: Request) -> Callable[[], list[Sequence]]:
        """Slabs for the batch, and the sentences dealt out."""
        workers = len(self._graphs)
        rows = -(-request.batch_size // workers) * request.beam_size
        longest = max(len(source) for source in request.sources)
        if self._size != (rows, longest, request.max_target_tokens):
            self._size = (rows, longest, request.max_target_tokens)
            self._runners = [
                OnnxModelRunner(
                    self._bundle,
                    max_rows=rows,
                    max_source_tokens=longest,
                    max_target_tokens=request.max_target_tokens,
                    graphs=graphs,
                )
                for graphs in self._graphs
            ]
        options = DecodingOptions(
            beam_size=request.beam_size, max_target_tokens=request.max_target_tokens, guards_repetition=False
        )
        sequences = [Sequence(source_ids=tuple(source), options=options) for source in request.sources]
        ordered = sorted(sequences, key=lambda sequence: -len(sequence.source_ids))
        engines = [Engine.over(runner) for runner in self._runners]
        if request.is_forced:
            engines = [Engine(engine.runner, engine.scheduler, eos_id=NO_TOKEN) for engine in engines]

        def run() -> list[Sequence]:
            work = [
                self._pool.submit(engine.run_to_completion, ordered[index::workers])
                for index, engine in enumerate(engines)
            ]
            for each in work:
                each.result()
            return sequences

        return run

    def targets(self, result: list[Sequence]) -> list[list[int]]:
        """The best hypotheses.

        Raises:
            RuntimeError: when a sentence failed.
        """
        failed = [sequence for sequence in result if not sequence.hypotheses]
        if failed:
            raise RuntimeError(f"{len(failed)} of {len(result)} sequences failed, the first with {failed[0].error!r}.")
        best = [sequence.hypotheses[0] for sequence in result]
        return [one.target_ids[:-1] if one.finish_reason is FinishReason.STOP else one.target_ids for one in best]


if __name__ == "__main__":
    serve(Dragoman)
