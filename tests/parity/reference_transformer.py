"""What a trained model says of the next token, in PyTorch and fp32: the whole prefix anew at every step, no cache.

Axes: B hypotheses asked about together, S, T, V, D, H, K as in `training.model`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from service.tokenizer import BOS_ID, PAD_ID
from tests.parity.reference_search import Ids, Prediction
from training.model import DecoderLayer, Transformer, padding_mask

MAX_POSITIONS_PER_RUN = 2048
"""Padded target positions decoded together."""


class ReferenceTransformer:
    """Answers `search` and `search_together`. What it says of a hypothesis depends on that hypothesis alone, up to the
    last bits of fp32."""

    def __init__(self, model: Transformer, *, target_tokens: int, alignment_layer: int) -> None:
        """Args:
        model: the trained model.
        target_tokens: tokens of the vocabulary; the model's V is that, rounded up.
        alignment_layer: the decoder layer whose cross-attention is reported, from 0; -1 is the last.
        """
        self._model = model.eval()
        self._target_tokens = target_tokens
        layer = model.decoder.layers[alignment_layer]
        assert isinstance(layer, DecoderLayer)
        self._attention = layer.cross_attention
        self._attention.register_forward_pre_hook(self._keep_queries)
        self._queries = torch.empty(0)
        self._encoded: dict[Ids, Tensor] = {}

    def __call__(self, source_ids: Ids, target_ids: Ids) -> Prediction:
        """The token after `target_ids`."""
        return self.predict([(source_ids, target_ids)])[0]

    @torch.inference_mode()
    def predict(self, questions: Sequence[tuple[Ids, Ids]]) -> list[Prediction]:
        """The tokens after many (source ids, target ids), those of like length computed together."""
        answers: dict[int, Prediction] = {}
        by_length = sorted(range(len(questions)), key=lambda index: len(questions[index][1]))
        while by_length:
            # the longest first: it says how many fit
            fitting = max(1, MAX_POSITIONS_PER_RUN // (len(questions[by_length[-1]][1]) + 1))
            chosen, by_length = by_length[-fitting:], by_length[:-fitting]
            answers.update(zip(chosen, self._predict([questions[index] for index in chosen]), strict=True))
        return [answers[index] for index in range(len(questions))]

    def _predict(self, questions: Sequence[tuple[Ids, Ids]]) -> list[Prediction]:
        encoded = [self._encode(source) for source, _ in questions]
        source_lengths = torch.tensor([len(source) for source, _ in questions])  # [B]
        last = torch.tensor([len(target) for _, target in questions])  # [B] bos stands before the target
        memory = torch.nn.utils.rnn.pad_sequence(encoded, batch_first=True)  # [B,S,D]
        inputs = torch.full((len(questions), int(last.max()) + 1), PAD_ID)  # [B,T]
        for row, (_, target) in enumerate(questions):
            inputs[row, : len(target) + 1] = torch.tensor([BOS_ID, *target])
        rows = torch.arange(len(questions))
        hidden = self._model.decode(inputs, memory, source_lengths)[rows, last]  # [B,T,D] -> [B,D]
        logits = self._model.project(hidden)  # [B,V]
        logits[:, [PAD_ID, BOS_ID]] = -math.inf
        logits[:, self._target_tokens :] = -math.inf
        log_probabilities = logits.log_softmax(dim=-1).numpy()
        attention = self._attention_of(self._queries[rows, last], memory, source_lengths).numpy()  # [B,S]
        return [
            Prediction(log_probabilities=log_probabilities[row], attention=attention[row, : len(source)])
            for row, (source, _) in enumerate(questions)
        ]

    def _encode(self, source: Ids) -> Tensor:
        """The encoder's output [S,D] of a source on its own."""
        if source not in self._encoded:
            self._encoded[source] = self._model.encode(torch.tensor([source]), torch.tensor([len(source)]))[0]
        return self._encoded[source]

    def _keep_queries(self, _: object, inputs: tuple[Tensor, ...]) -> None:
        self._queries = inputs[0]  # [B,T,D]

    def _attention_of(self, queries: Tensor, memory: Tensor, source_lengths: Tensor) -> Tensor:
        """Mean over the heads of softmax(QKᵀ / √K): queries [B,D], memory [B,S,D] -> [B,S]."""
        attention = self._attention
        split = attention.split_heads(attention.query(queries).unsqueeze(1))  # [B,H,1,K]
        keys = attention.split_heads(attention.key(memory))  # [B,H,S,K]
        scores = split @ keys.transpose(-1, -2) / math.sqrt(keys.size(-1))  # [B,H,1,S]
        scores = scores.masked_fill(~padding_mask(source_lengths, memory.size(1)), -math.inf)
        mean: Tensor = scores.softmax(dim=-1).mean(dim=1).squeeze(1)  # [B,H,1,S] -> [B,S]
        return mean
