"""CTranslate2 as a peer: runs in its own environment, over a model of `benchmarks.peers.ctranslate2_convert`.

    python -m benchmarks.peers.ctranslate2_peer    # speaks benchmarks.peers.protocol

`translate_batch` gets all sentences at once: it sorts them by length and deals the batches out to its workers. Each
worker gets its share of the batch, so that as many sentences are decoded at a time as elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ctranslate2

from benchmarks.peers.ctranslate2_convert import SPECIAL, token, token_id
from benchmarks.peers.protocol import Load, Request, serve

NEVER_PREDICTED = SPECIAL[0]
"""Padding: its bias in the projection keeps it out."""


class CTranslate2:
    """A translator; see `protocol.Translator`."""

    def __init__(self, load: Load) -> None:
        self.version = f"CTranslate2 {ctranslate2.__version__}"
        self._workers = load.workers
        self._translator = ctranslate2.Translator(
            load.model,
            device="cpu",
            compute_type=load.precision,
            inter_threads=load.workers,
            intra_threads=load.threads,
        )
        if self._translator.compute_type not in (load.precision, f"{load.precision}_float32"):
            raise ValueError(f"The model must be computed in {load.precision}, not {self._translator.compute_type}.")

    def prepare(self, request: Request) -> Callable[[], Any]:
        """The ids as tokens."""
        sources = [[token(i) for i in source] for source in request.sources]
        options: dict[str, Any] = {
            "beam_size": request.beam_size,
            "max_batch_size": -(-request.batch_size // self._workers),
            "max_decoding_length": request.max_target_tokens,
            "max_input_length": 0,  # nothing is cut
        }
        if request.is_forced:
            options["end_token"] = NEVER_PREDICTED
        return lambda: self._translator.translate_batch(sources, **options)

    def targets(self, result: Any) -> list[list[int]]:
        """The best hypotheses."""
        return [[token_id(name) for name in one.hypotheses[0]] for one in result]


if __name__ == "__main__":
    serve(CTranslate2)
