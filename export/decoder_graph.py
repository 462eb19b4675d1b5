"""The decoder's graph as a torch module: one step of one token for every row. Axes: `training.model`.

It computes what `training.model` computes, with these differences of form:

- queries, keys and values of self-attention are one product;
- under pre-norm the states have mean 0 and norms are `RMSNormalization`, as in `export.encoder_graph`; their factors
  and biases are part of the products that read them, the projection too: it is then no longer the target embedding;
- attention is `com.microsoft.GroupQueryAttention`, which writes into the cache it reads from and lets every row have
  its own length (see `service.graph_signature`);
- in cross-attention 1/√K is part of the queries' product: the runtime is quicker where it need not multiply by it;
- in cross-attention the rows that read one source are queries of one lane: they are gathered by lane before, and back
  by row after (docs/decisions/0005);
- pad, bos and logits that stand for no token (the vocabulary is padded to a multiple of 8) get a bias that takes their
  probability to 0, as `training.decode` leaves them out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from export.graph_modules import Embedding, FeedForwardGraph, Linear, RootMeanSquare, centred, decoder_layers
from service.graph_signature import LANE_INPUTS, Architecture
from service.tokenizer import BOS_ID, PAD_ID
from training.model import DecoderLayer, Transformer

IMPOSSIBLE_LOGIT = -1.0e9
"""Bias of the logits that no search may choose."""
CACHES_PER_LAYER = 4
"""Cache inputs of a decoder layer: past keys and values, cross keys and values."""
AFTER_SOFTMAX = 2
"""Which product of queries and keys GroupQueryAttention puts out."""


@dataclass(frozen=True, kw_only=True)
class Lanes:
    """The step's lane inputs, as `service.graph_signature` describes them."""

    slot_rows: Tensor
    """[N,Q,2] int64."""
    row_slots: Tensor
    """[B,1,2] int64."""
    queries_per_lane: Tensor
    """[N] int32."""
    last_positions: Tensor
    """[N] int32."""
    num_positions: Tensor
    """[1] int32."""
    source_bias: Tensor
    """[N,1,Q,P] float32."""


class DecoderLayerGraph(nn.Module):
    """One step of `training.model.DecoderLayer`."""

    def __init__(self, layer: DecoderLayer, *, with_weights: bool) -> None:
        """`with_weights`: whether the weights of the cross-attention are put out."""
        super().__init__()
        self.with_weights = with_weights
        self.is_pre_norm = pre = layer.is_pre_norm
        own, cross = layer.self_attention, layer.cross_attention
        norms = (layer.self_attention_norm, layer.cross_attention_norm, layer.feed_forward_norm)
        kept: list[nn.Module] = [RootMeanSquare(norm) if pre else norm for norm in norms]
        self.self_norm, self.cross_norm, self.feed_forward_norm = kept
        self_norm, cross_norm, feed_forward_norm = norms if pre else (None, None, None)  # what the products take in
        self.heads = own.heads
        self.self_query_key_value = Linear([own.query, own.key, own.value], norm=self_norm)
        self.self_output = Linear([own.output], is_centred=pre)
        head_width = cross.query.out_features // cross.heads
        self.cross_query = Linear([cross.query], norm=cross_norm, factor=1 / math.sqrt(head_width))
        self.cross_output = Linear([cross.output], is_centred=pre)
        self.feed_forward = FeedForwardGraph(layer.feed_forward, norm=feed_forward_norm, is_centred=pre)

    def forward(
        self, states: Tensor, lengths: tuple[Tensor, Tensor], lanes: Lanes, cache: Sequence[Tensor]
    ) -> tuple[Tensor, Tensor | None, list[Tensor]]:
        """One position of every row.

        `states` [B,1,D]; `lengths` are the positions in use [B,1] and M [1]; `cache` holds past self keys and values
        [B,H,M,K], and cross keys and values [N,H,S,K].
        Returns the new states [B,1,D], the cross-attention's weights [N,H,Q,P] where they are wanted, and the four
        updated caches.
        """
        past_keys, past_values, cross_keys, cross_values = cache
        normed = self.self_norm(states) if self.is_pre_norm else states
        attended, present_keys, present_values = self_attention(
            self.heads, self.self_query_key_value(normed), (past_keys, past_values), lengths
        )
        states = states + self.self_output(attended)
        normed = self.cross_norm(states) if self.is_pre_norm else (states := self.self_norm(states))
        attended, weights, present_cross = cross_attention(
            self.heads, self.cross_query(normed), lanes, (cross_keys, cross_values), with_weights=self.with_weights
        )
        states = states + self.cross_output(attended)
        normed = self.feed_forward_norm(states) if self.is_pre_norm else (states := self.cross_norm(states))
        states = states + self.feed_forward(normed)
        if not self.is_pre_norm:
            states = self.feed_forward_norm(states)
        return states, weights, [present_keys, present_values, *present_cross]


class DecoderGraph(nn.Module):
    """One step of one token for every row."""

    positions: Tensor
    projection_bias: Tensor

    def __init__(self, model: Transformer, architecture: Architecture, alignment_layer: int) -> None:
        """`alignment_layer` is the layer, 0 the first, whose cross-attention is put out."""
        super().__init__()
        norm = model.decoder.norm if isinstance(model.decoder.norm, nn.LayerNorm) else None  # there is one in pre-norm
        is_centred = norm is not None
        self.embedding = Embedding(model.target_embedding, is_centred=is_centred)
        self.register_buffer("positions", centred(model.positions) if is_centred else model.positions)
        self.layers = nn.ModuleList(
            DecoderLayerGraph(layer, with_weights=index == alignment_layer)
            for index, layer in enumerate(decoder_layers(model))
        )
        self.norm = nn.Identity() if norm is None else RootMeanSquare(norm)
        weight = model.projection.weight.detach()  # [V,D]
        bias = torch.zeros(architecture.target_vocabulary)  # [V]
        if norm is not None:
            bias = (weight.double() @ norm.bias.detach().double()).float()
            weight = (weight.double() * norm.weight.detach().double()).float()
        bias[[PAD_ID, BOS_ID]] = IMPOSSIBLE_LOGIT
        bias[architecture.target_tokens :] = IMPOSSIBLE_LOGIT
        if norm is None and model.projection.weight is model.target_embedding.weight:
            self.projection = self.embedding.weight
        else:
            self.projection = nn.Parameter(weight, requires_grad=False)
        self.register_buffer("projection_bias", bias)

    def forward(
        self,
        target_ids: Tensor,
        past_lengths: Tensor,
        num_target_positions: Tensor,
        lane_inputs: Sequence[Tensor],
        caches: Sequence[Tensor],
    ) -> tuple[Tensor, ...]:
        """Tokens [B,1] at positions `past_lengths` [B,1] -> log-probabilities [B,V], attention [N,H,Q,P], caches.

        `num_target_positions` [1] is M. `lane_inputs`, `caches` and outputs come in the signature's order.
        """
        lanes = Lanes(**{tensor.name: each for tensor, each in zip(LANE_INPUTS, lane_inputs, strict=True)})
        position = nn.functional.embedding(past_lengths, self.positions)  # [B,1,D]
        states = self.embedding(target_ids) + position  # [B,1,D]
        lengths = (past_lengths, num_target_positions)
        updated: list[Tensor] = []
        attention: list[Tensor] = []
        for index, layer in enumerate(self.layers):
            first = index * CACHES_PER_LAYER
            states, weights, layer_caches = layer(states, lengths, lanes, caches[first : first + CACHES_PER_LAYER])
            updated += layer_caches
            if weights is not None:
                attention.append(weights)
        hidden = self.norm(states).squeeze(1)  # [B,D]
        logits = nn.functional.linear(hidden, self.projection, self.projection_bias)  # [B,V]
        return nn.functional.log_softmax(logits, dim=-1), *attention, *updated


def self_attention(
    heads: int, query_key_value: Tensor, past: tuple[Tensor, Tensor], lengths: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """`com.microsoft.GroupQueryAttention` of every row over its own past.

    `query_key_value` [B,1,3*H*K]; `lengths` are the int32 positions in use [B,1] and M [1]. Row b's new key and value
    are written at position `lengths[0][b]` of `past` keys and values [B,H,M,K], and all positions up to and including
    it are attended to.
    Returns the heads' output joined [B,1,H*K], and the updated keys and values.
    """
    rows, _, _, head_width = past[0].shape
    output, keys, values = torch.onnx.ops.symbolic_multi_out(
        "com.microsoft::GroupQueryAttention",
        [query_key_value, None, None, *past, *lengths],
        {"num_heads": heads, "kv_num_heads": heads},
        dtypes=[query_key_value.dtype] * 3,
        shapes=[(rows, 1, heads * head_width), past[0].shape, past[1].shape],
        version=1,
    )
    return output, keys, values


def cross_attention(
    heads: int, query: Tensor, lanes: Lanes, source: tuple[Tensor, Tensor], *, with_weights: bool
) -> tuple[Tensor, Tensor | None, list[Tensor]]:
    """`com.microsoft.GroupQueryAttention` of every lane's rows over the lane's source.

    `query` [B,1,H*K], multiplied by 1/√K; `source` keys and values [N,H,S,K]. The operator appends as many keys as
    there are queries: the queries themselves, whose weight `source_bias` takes to 0.
    Returns the heads' output joined [B,1,H*K], the weights [N,H,Q,P] where they are wanted, and keys and values.
    """
    num_lanes, num_slots, _ = lanes.slot_rows.shape
    width = query.shape[2]
    queries = gather_nd(query, lanes.slot_rows, (num_lanes, num_slots, width))  # [B,1,D] -> [N,Q,D]
    attributes: dict[str, Any] = {"num_heads": heads, "kv_num_heads": heads, "scale": 1.0}
    shapes: list[Sequence[int | torch.SymInt]] = [queries.shape, source[0].shape, source[1].shape]
    if with_weights:
        attributes["qk_output"] = AFTER_SOFTMAX
        shapes.append((num_lanes, heads, num_slots, lanes.source_bias.shape[3]))
    outputs = torch.onnx.ops.symbolic_multi_out(
        "com.microsoft::GroupQueryAttention",
        [
            *(queries, queries, queries, *source, lanes.last_positions, lanes.num_positions),
            *(None, None, None),  # rotary positions
            lanes.source_bias,
            *(None, None, None, None, None),  # sink, scales, norms
            lanes.queries_per_lane,
        ],
        attributes,
        dtypes=[query.dtype] * len(shapes),
        shapes=shapes,
        version=1,
    )
    attended = gather_nd(outputs[0], lanes.row_slots, (query.shape[0], 1, width))  # [N,Q,D] -> [B,1,D]
    return attended, outputs[3] if with_weights else None, [outputs[1], outputs[2]]


def gather_nd(data: Tensor, indices: Tensor, shape: Sequence[int | torch.SymInt]) -> Tensor:
    """ONNX's GatherND: `data` [I,J,D] at `indices` [..., 2] -> `shape`, which is [..., D]."""
    gathered: Tensor = torch.onnx.ops.symbolic("GatherND", [data, indices], dtype=data.dtype, shape=shape)
    return gathered
