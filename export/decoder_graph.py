"""The decoder's graph as a torch module: one step of one token for every row. Axes: `training.model`.

It computes what `training.model` computes, with these differences of form:

- queries, keys and values of self-attention are one product;
- attention is `com.microsoft.GroupQueryAttention`, which writes into the cache it reads from and lets every row have
  its own length (see `service.graph_signature`); it multiplies by 1/√K itself;
- pad, bos and logits that stand for no token (the vocabulary is padded to a multiple of 8) get a bias that takes their
  probability to 0, as `training.decode` leaves them out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from export.graph_modules import Embedding, FeedForwardGraph, Linear, decoder_layers
from service.graph_signature import Architecture
from service.tokenizer import BOS_ID, PAD_ID
from training.model import DecoderLayer, Transformer

IMPOSSIBLE_LOGIT = -1.0e9
"""Bias of the logits that no search may choose."""
CACHES_PER_LAYER = 6
"""Cache inputs of a decoder layer: past keys and values, cross keys and values, last cross key and value."""


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
        self.layers = nn.ModuleList(DecoderLayerGraph(layer) for layer in decoder_layers(model))
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
