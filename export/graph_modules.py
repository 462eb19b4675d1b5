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

    def __init__(
        self,
        linears: Sequence[nn.Linear],
        *,
        norm: nn.LayerNorm | None = None,
        is_centred: bool = False,
        factor: float = 1.0,
    ) -> None:
        """`norm` takes in the factors γ and the bias β of the norm that the input comes from; the input is then what
        the norm has before them: (γ x + β) W + b = x (γ W) + (β W + b). `is_centred` takes the mean over the outputs
        off weights and bias, so that every result has mean 0. `factor` multiplies every result.
        """
        super().__init__()
        weight = torch.cat([layer.weight.detach() for layer in linears]).double()  # [out,in]
        bias = torch.cat([layer.bias.detach() for layer in linears]).double()  # [out]
        if norm is not None:
            bias = bias + weight @ norm.bias.detach().double()
            weight = weight * norm.weight.detach().double()
        if is_centred:
            weight, bias = weight - weight.mean(0), bias - bias.mean()
        weight, bias = weight * factor, bias * factor
        self.weight = nn.Parameter(weight.t().float().contiguous(), requires_grad=False)  # [in,out]
        self.bias = nn.Parameter(bias.float(), requires_grad=False)

    def forward(self, states: Tensor) -> Tensor:
        """[..., in] -> [..., out]."""
        return torch.matmul(states, self.weight) + self.bias


class Embedding(nn.Module):
    """Embedding × √D; the positions are added by the graph."""

    def __init__(self, embedding: nn.Embedding, *, is_centred: bool = False) -> None:
        """`is_centred` takes its mean off each token's vector."""
        super().__init__()
        weight = embedding.weight.detach()  # [V,D]
        self.weight = nn.Parameter(centred(weight) if is_centred else weight, requires_grad=False)
        self.scale = math.sqrt(embedding.embedding_dim)

    def forward(self, ids: Tensor) -> Tensor:
        """[B,T] -> [B,T,D]."""
        return nn.functional.embedding(ids, self.weight) * self.scale


class RootMeanSquare(nn.Module):
    """`norm` on states of mean 0, without its factors and bias: x / √(mean(x²) + ε)."""

    ones: Tensor

    def __init__(self, norm: nn.LayerNorm) -> None:
        super().__init__()
        self.epsilon = norm.eps
        self.register_buffer("ones", torch.ones_like(norm.weight.detach()))

    def forward(self, states: Tensor) -> Tensor:
        """[B,S,D] -> [B,S,D]."""
        return torch.onnx.ops.symbolic(
            "RMSNormalization",
            [states, self.ones],
            {"axis": -1, "epsilon": self.epsilon},
            dtype=states.dtype,
            shape=states.shape,
        )


class FeedForwardGraph(nn.Module):
    """`training.model.FeedForward`."""

    def __init__(
        self, feed_forward: FeedForward, *, norm: nn.LayerNorm | None = None, is_centred: bool = False
    ) -> None:
        """`norm` and `is_centred` as in `Linear`: of the input, and of the result."""
        super().__init__()
        self.inner = Linear([feed_forward.inner], norm=norm)
        self.outer = Linear([feed_forward.outer], is_centred=is_centred)

    def forward(self, states: Tensor) -> Tensor:
        """[B,T,D] -> [B,T,D]."""
        hidden: Tensor = self.outer(torch.relu(self.inner(states)))  # [B,T,F] -> [B,T,D]
        return hidden


def centred(vectors: Tensor) -> Tensor:
    """Vectors [...,D] with their means taken off."""
    exact = vectors.double()
    return (exact - exact.mean(-1, keepdim=True)).float()


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
