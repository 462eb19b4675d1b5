"""ONNX Runtime through Optimum as a peer: runs in its own environment, over a model of `optimum_convert`.

    python -m benchmarks.peers.optimum_peer    # speaks benchmarks.peers.protocol

`generate` of Transformers drives the graphs. Sentences of like length make a batch.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable

import onnxruntime
import torch
from optimum.onnxruntime import ORTModelForSeq2SeqLM

from benchmarks.peers.protocol import Load, Request, serve

PAD_ID, UNK_ID, BOS_ID, EOS_ID = range(4)


class Optimum:
    """Graphs with their `generate`; see `protocol.Translator`."""

    def __init__(self, load: Load) -> None:
        if load.workers != 1 or load.precision != "float32":
            raise ValueError("Optimum must have one worker and float32 here.")
        self.version = (
            f"Optimum ONNX {importlib.metadata.version('optimum-onnx')}, ONNX Runtime {onnxruntime.__version__}"
        )
        torch.set_num_threads(load.threads)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = load.threads
        self._model = ORTModelForSeq2SeqLM.from_pretrained(load.model, session_options=options)

    def prepare(self, request: Request) -> Callable[[], list[list[int]]]:
        """The batches, padded."""
        order = sorted(range(len(request.sources)), key=lambda index: -len(request.sources[index]))
        batches = [order[first : first + request.batch_size] for first in range(0, len(order), request.batch_size)]
        inputs = []
        for batch in batches:
            longest = max(len(request.sources[index]) for index in batch)
            source_ids = torch.full((len(batch), longest), PAD_ID)  # [B,S]
            for row, index in enumerate(batch):
                source_ids[row, : len(request.sources[index])] = torch.tensor(request.sources[index])
            inputs.append((batch, source_ids, (source_ids != PAD_ID).long()))
        options = {
            "num_beams": request.beam_size,
            "do_sample": False,
            "length_penalty": 1.0,
            "early_stopping": request.beam_size > 1,
            "max_new_tokens": request.max_target_tokens,
        }
        if request.is_forced:
            options["min_new_tokens"] = request.max_target_tokens

        def run() -> list[list[int]]:
            targets: list[list[int]] = [[] for _ in request.sources]
            for batch, source_ids, mask in inputs:
                output = self._model.generate(input_ids=source_ids, attention_mask=mask, **options)  # [B,1+T]
                for index, target in zip(batch, output[:, 1:].tolist(), strict=True):
                    targets[index] = target
            return targets

        return run

    def targets(self, result: list[list[int]]) -> list[list[int]]:
        """What stands before the end of sentence and the padding after it."""
        return [target[: target.index(EOS_ID)] if EOS_ID in target else target for target in result]


if __name__ == "__main__":
    serve(Optimum)
