"""PyTorch as a peer: the trained model with a key/value cache, fp32.

python -m benchmarks.peers.pytorch_peer    # speaks benchmarks.peers.protocol
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.peers.protocol import Load, Request, serve
from benchmarks.peers.pytorch_generation import Generation, generate
from service.tokenizer import EOS_ID
from training.checkpoint import load_model

NO_TOKEN = -1


class PyTorch:
    """A checkpoint's model; see `protocol.Translator`."""

    def __init__(self, load: Load) -> None:
        if load.workers != 1 or load.precision != "float32":
            raise ValueError("PyTorch must have one worker and float32 here.")
        self.version = f"PyTorch {torch.__version__}"
        torch.set_num_threads(load.threads)
        self._model, tokenizer, _ = load_model(Path(load.model))
        self._num_tokens = tokenizer.target_vocab_size

    def prepare(self, request: Request) -> Callable[[], list[list[int]]]:
        """The search's options."""
        generation = Generation(
            beam_size=request.beam_size,
            max_tokens=request.max_target_tokens,
            end_id=NO_TOKEN if request.is_forced else EOS_ID,
            num_tokens=self._num_tokens,
        )
        return lambda: generate(self._model, request.sources, generation, batch_size=request.batch_size)

    def targets(self, result: list[list[int]]) -> list[list[int]]:
        """As they are."""
        return result


if __name__ == "__main__":
    serve(PyTorch)
