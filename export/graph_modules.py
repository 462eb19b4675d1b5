"""What the encoder's and the decoder's graphs share: the trained model's own weights, laid out for ONNX Runtime.

The modules of `export.encoder_graph` and `export.decoder_graph` compute what `training.model` computes, in a form that
the runtime is quick with; each says where its form differs. Axes: `training.model`.
"""

from __future__ import annotations

import math
import typing
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from training.model import DecoderLayer, EncoderLayer, FeedForward, Transformer


class Linear(nn.Module):
    """x W + b with W stored [in, out], the layout of ONNX's MatMul; several nn.Linear of one input side by side."""

    def __init__(self, linears: Sequence[nn.Linear], scales: Sequence[float] = ()) -> None:
        """`scales` multiply weights and biases of the linear layers one by one; none leaves them as they are."""
        super().__init__()
        factors = scales or [1.0] * len(linears)
        weights = [layer.weight.detach() * factor for layer, factor in zip(linears, factors, strict=True)]
        biases = [layer.bias.detach() * factor for layer, factor in zip(linears, factors, strict=True)]
        self.weight = nn.Parameter(torch.cat(weights).t().contiguous(), requires_grad=False)
        self.bias = nn.Parameter(torch.cat(biases).contiguous(), requires_grad=False)

    def forward(self, states: Tensor) -> Tensor:
        """[..., in] -> [..., out]."""
        return torch.matmul(states, self.weight) + self.bias


class Embedding(nn.Module):
    """Embedding × √D; the positions are added by the graph."""

    def __init__(self, embedding: nn.Embedding) -> None:
        super().__init__()
        self.weight = nn.Parameter(embedding.weight.detach(), requires_grad=False)
        self.scale = math.sqrt(embedding.embedding_dim)

    def forward(self, ids: Tensor) -> Tensor:
        """[B,T] -> [B,T,D]."""
        return nn.functional.embedding(ids, self.weight) * self.scale


class FeedForwardGraph(nn.Module):
    """`training.model.FeedForward`."""

    def __init__(self, feed_forward: FeedForward) -> None:
        super().__init__()
        self.inner = Linear([feed_forward.inner])
        self.outer = Linear([feed_forward.outer])

    def forward(self, states: Tensor) -> Tensor:
        """[B,T,D] -> [B,T,D]."""
        hidden: Tensor = self.outer(torch.relu(self.inner(states)))  # [B,T,F] -> [B,T,D]
        return hidden


def encoder_layers(model: Transformer) -> list[EncoderLayer]:
    """The encoder's layers, first to last."""
    layers = list(model.encoder.layers)
    assert all(isinstance(layer, EncoderLayer) for layer in layers)
    return typing.cast(list[EncoderLayer], layers)


def decoder_layers(model: Transformer) -> list[DecoderLayer]:
    """The decoder's layers, first to last."""
    layers = list(model.decoder.layers)
    assert all(isinstance(layer, DecoderLayer) for layer in layers)
    return typing.cast(list[DecoderLayer], layers)
