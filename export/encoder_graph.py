"""The encoder's graph as a torch module: source ids to the cross-attention's keys and values. Axes: `training.model`.

It computes what `training.model` computes, with these differences of form:

- projections that read the same states are one product: queries, keys and values of self-attention; the cross keys and
  values of all decoder layers at the end;
- 1/√K is part of the query's weights.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from export.graph_modules import Embedding, FeedForwardGraph, Linear, decoder_layers, encoder_layers
from training.model import EncoderLayer, MultiHeadAttention, Transformer

MASKED_SCORE = -1.0e9
"""Bias of an attention score on padding: its softmax is exactly 0."""


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
        self.layers = nn.ModuleList(EncoderLayerGraph(layer) for layer in encoder_layers(model))
        self.norm = model.encoder.norm
        attentions = [layer.cross_attention for layer in decoder_layers(model)]
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
