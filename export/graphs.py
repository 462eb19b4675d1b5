"""The two graphs as torch modules: the trained model's own weights, laid out for ONNX Runtime. Axes: `training.model`.

Each module computes what `training.model` computes, with these differences of form:

- projections that read the same states are one product: queries, keys and values of self-attention; the cross keys and
  values of all decoder layers at the end of the encoder;
- the decoder's attention is `com.microsoft.GroupQueryAttention`, which writes into the cache it reads from and lets
  every row have its own length (see `service.graph_signature`);
- 1/√K is part of the query's weights in the encoder; the decoder's operator multiplies by it itself;
- pad, bos and logits that stand for no token (the vocabulary is padded to a multiple of 8) get a bias that takes their
  probability to 0, as `training.decode` leaves them out.
"""

from __future__ import annotations

import math
import typing
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from service.graph_signature import Architecture
from service.tokenizer import BOS_ID, PAD_ID
from training.model import DecoderLayer, EncoderLayer, FeedForward, MultiHeadAttention, Transformer

IMPOSSIBLE_LOGIT = -1.0e9
"""Bias of the logits that no search may choose."""
MASKED_SCORE = -1.0e9
"""Bias of an attention score on padding: its softmax is exactly 0."""
CACHES_PER_LAYER = 6
"""Cache inputs of a decoder layer: past keys and values, cross keys and values, last cross key and value."""


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


class EncoderAttention(nn.Module):
    """Self-attention of the encoder."""

    def __init__(self, attention: MultiHeadAttention) -> None:
        super().__init__()
        self.heads = attention.heads
        self.head_width = attention.query.out_features // attention.heads
        self.query_key_value = Linear(
            [attention.query, attention.key, attention.value], scales=[self.head_width**-0.5, 1.0, 1.0]
        )
        self.output = Linear([attention.output])

    def forward(self, states: Tensor, bias: Tensor) -> Tensor:
        """[B,S,D] and the mask as a bias of the scores [B,1,1,S] -> [B,S,D]."""
        width = self.heads * self.head_width
        queries, keys, values = self.query_key_value(states).split(width, dim=-1)  # each [B,S,D]
        queries = queries.unflatten(-1, (self.heads, self.head_width)).permute(0, 2, 1, 3)  # [B,H,S,K]
        keys = keys.unflatten(-1, (self.heads, self.head_width)).permute(0, 2, 3, 1)  # [B,H,K,S]
        values = values.unflatten(-1, (self.heads, self.head_width)).permute(0, 2, 1, 3)  # [B,H,S,K]
        weights = torch.softmax(torch.matmul(queries, keys) + bias, dim=-1)  # [B,H,S,S]
        heads = torch.matmul(weights, values).permute(0, 2, 1, 3).flatten(2)  # [B,H,S,K] -> [B,S,D]
        attended: Tensor = self.output(heads)
        return attended


class EncoderLayerGraph(nn.Module):
    """`training.model.EncoderLayer`."""

    def __init__(self, layer: EncoderLayer) -> None:
        super().__init__()
        self.is_pre_norm = layer.is_pre_norm
        self.attention = EncoderAttention(layer.self_attention)
        self.attention_norm = layer.self_attention_norm
        self.feed_forward = FeedForwardGraph(layer.feed_forward)
        self.feed_forward_norm = layer.feed_forward_norm

    def forward(self, states: Tensor, bias: Tensor) -> Tensor:
        """[B,S,D] and the bias of the scores [B,1,1,S] -> [B,S,D]."""
        if self.is_pre_norm:
            states = states + self.attention(self.attention_norm(states), bias)
            added: Tensor = states + self.feed_forward(self.feed_forward_norm(states))
            return added
        states = self.attention_norm(states + self.attention(states, bias))
        normed: Tensor = self.feed_forward_norm(states + self.feed_forward(states))
        return normed


class EncoderGraph(nn.Module):
    """Source ids -> the cross-attention keys and values of every decoder layer."""

    positions: Tensor

    def __init__(self, model: Transformer) -> None:
        super().__init__()
        self.embedding = Embedding(model.source_embedding)
        self.register_buffer("positions", model.positions)
        self.layers = nn.ModuleList(EncoderLayerGraph(layer) for layer in _encoder_layers(model))
        self.norm = model.encoder.norm
        attentions = [layer.cross_attention for layer in _decoder_layers(model)]
        self.heads = attentions[0].heads
        self.cross_keys_values = Linear([linear for each in attentions for linear in (each.key, each.value)])
        self.num_outputs = 2 * len(attentions)

    def forward(self, source_ids: Tensor, source_lengths: Tensor) -> tuple[Tensor, ...]:
        """Ids [B,S] and lengths [B] -> for each decoder layer its keys and its values, each [B,H,S,K]."""
        num_positions = source_ids.size(1)
        states = self.embedding(source_ids) + self.positions[:num_positions]  # [B,S,D]
        is_padding = torch.arange(num_positions, dtype=torch.int32) >= source_lengths.unsqueeze(1)  # [B,S]
        bias = (is_padding.float() * MASKED_SCORE)[:, None, None, :]  # [B,1,1,S]
        for layer in self.layers:
            states = layer(states, bias)
        projected = self.cross_keys_values(self.norm(states))  # [B,S,2*L*D]
        outputs = projected.unflatten(-1, (self.num_outputs, self.heads, -1)).permute(2, 0, 3, 1, 4)  # [2*L,B,H,S,K]
        return tuple(part.squeeze(0) for part in outputs.split(1))


@dataclass(frozen=True, kw_only=True)
class StepLengths:
    """Lengths of a step for GroupQueryAttention: positions before the appended one [B], and the slot's [1]."""

    target: tuple[Tensor, Tensor]
    """Of the self-attention caches."""
    source: tuple[Tensor, Tensor]
    """Of the cross-attention caches."""


class DecoderLayerGraph(nn.Module):
    """One step of `training.model.DecoderLayer`."""

    def __init__(self, layer: DecoderLayer) -> None:
        super().__init__()
        self.is_pre_norm = layer.is_pre_norm
        own, cross = layer.self_attention, layer.cross_attention
        self.heads = own.heads
        self.self_query_key_value = Linear([own.query, own.key, own.value])
        self.self_output = Linear([own.output])
        self.self_norm = layer.self_attention_norm
        self.cross_query = Linear([cross.query])
        self.cross_output = Linear([cross.output])
        self.cross_norm = layer.cross_attention_norm
        self.feed_forward = FeedForwardGraph(layer.feed_forward)
        self.feed_forward_norm = layer.feed_forward_norm

    def forward(self, states: Tensor, lengths: StepLengths, cache: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """One position of every row.

        `states` [B,1,D]; `cache` holds past self keys and values [B,H,M,K], cross keys and values [B,H,S,K] and the
        cross key and value of the last source position [B,1,H*K].
        Returns the new states [B,1,D] and the four updated caches.
        """
        past_keys, past_values, cross_keys, cross_values, last_key, last_value = cache
        normed = self.self_norm(states) if self.is_pre_norm else states
        attended, present_keys, present_values = group_query_attention(
            self.heads, self.self_query_key_value(normed), None, (past_keys, past_values), lengths.target
        )
        states = states + self.self_output(attended)
        normed = self.cross_norm(states) if self.is_pre_norm else (states := self.self_norm(states))
        attended, present_cross_keys, present_cross_values = group_query_attention(
            self.heads, self.cross_query(normed), (last_key, last_value), (cross_keys, cross_values), lengths.source
        )
        states = states + self.cross_output(attended)
        normed = self.feed_forward_norm(states) if self.is_pre_norm else (states := self.cross_norm(states))
        states = states + self.feed_forward(normed)
        if not self.is_pre_norm:
            states = self.feed_forward_norm(states)
        return states, [present_keys, present_values, present_cross_keys, present_cross_values]


class DecoderGraph(nn.Module):
    """One step of one token for every row."""

    positions: Tensor
    projection_bias: Tensor

    def __init__(self, model: Transformer, architecture: Architecture) -> None:
        super().__init__()
        self.embedding = Embedding(model.target_embedding)
        self.register_buffer("positions", model.positions)
        self.layers = nn.ModuleList(DecoderLayerGraph(layer) for layer in _decoder_layers(model))
        self.norm = model.decoder.norm
        weight = model.projection.weight.detach()  # [V,D]
        if model.projection.weight is model.target_embedding.weight:
            self.projection = self.embedding.weight
        else:
            self.projection = nn.Parameter(weight, requires_grad=False)
        bias = torch.zeros(architecture.target_vocabulary)  # [V]
        bias[[PAD_ID, BOS_ID]] = IMPOSSIBLE_LOGIT
        bias[architecture.target_tokens :] = IMPOSSIBLE_LOGIT
        self.register_buffer("projection_bias", bias)

    def forward(
        self, target_ids: Tensor, past_lengths: Tensor, source_lengths: Tensor, caches: Sequence[Tensor]
    ) -> tuple[Tensor, ...]:
        """Tokens [B,1] at positions `past_lengths` [B] -> log-probabilities [B,V], caches in the signature's order."""
        position = nn.functional.embedding(past_lengths.unsqueeze(1), self.positions)  # [B,1,D]
        states = self.embedding(target_ids) + position  # [B,1,D]
        lengths = StepLengths(
            target=(past_lengths, _slot_length(caches[0])), source=(source_lengths - 1, _slot_length(caches[2]))
        )
        updated: list[Tensor] = []
        for index, layer in enumerate(self.layers):
            first = index * CACHES_PER_LAYER
            states, layer_caches = layer(states, lengths, caches[first : first + CACHES_PER_LAYER])
            updated += layer_caches
        hidden = self.norm(states).squeeze(1)  # [B,D]
        logits = nn.functional.linear(hidden, self.projection, self.projection_bias)  # [B,V]
        return nn.functional.log_softmax(logits, dim=-1), *updated


def group_query_attention(
    heads: int,
    query: Tensor,
    key_value: tuple[Tensor, Tensor] | None,
    past: tuple[Tensor, Tensor],
    lengths: tuple[Tensor, Tensor],
) -> tuple[Tensor, Tensor, Tensor]:
    """The operator `com.microsoft.GroupQueryAttention` with as many key/value heads as query heads.

    `query` [B,1,H*K] with `key_value` each [B,1,H*K], or all three packed in `query` [B,1,3*H*K]. `lengths` are the
    int32 positions in use [B] and M [1]. Row b's new key and value are written at position `lengths[0][b]` of `past`
    keys and values [B,H,M,K], and all positions up to and including it are attended to.
    Returns the heads' output joined [B,1,H*K], and the updated keys and values.
    """
    key, value = key_value or (None, None)
    rows, _, _, head_width = past[0].shape
    output, keys, values = torch.onnx.ops.symbolic_multi_out(
        "com.microsoft::GroupQueryAttention",
        [query, key, value, *past, *lengths],
        {"num_heads": heads, "kv_num_heads": heads},
        dtypes=[query.dtype] * 3,
        shapes=[(rows, 1, heads * head_width), past[0].shape, past[1].shape],
        version=1,
    )
    return output, keys, values


def _slot_length(cache: Tensor) -> Tensor:
    """M of a cache [B,H,M,K] as a tensor [1] int32."""
    (length,) = torch.onnx.ops.symbolic_multi_out(
        "Shape", [cache], {"start": 2, "end": 3}, dtypes=[torch.int64], shapes=[(1,)]
    )
    return length.to(torch.int32)


def _encoder_layers(model: Transformer) -> list[EncoderLayer]:
    layers = list(model.encoder.layers)
    assert all(isinstance(layer, EncoderLayer) for layer in layers)
    return typing.cast(list[EncoderLayer], layers)


def _decoder_layers(model: Transformer) -> list[DecoderLayer]:
    layers = list(model.decoder.layers)
    assert all(isinstance(layer, DecoderLayer) for layer in layers)
    return typing.cast(list[DecoderLayer], layers)
