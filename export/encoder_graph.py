"""The encoder's graph as a torch module: source ids to the cross-attention's keys and values. Axes: `training.model`.

It computes what `training.model` computes, with these differences of form (docs/decisions/0004):

- self-attention is `com.microsoft.Attention`, from the states to the joined heads: it projects, splits the heads,
  multiplies by 1/√K and masks what lies behind a row's length;
- the keys and values of all decoder layers are one product at the end;
- under pre-norm, everything that is added to the states has mean 0 (embeddings, positions and the outputs of the
  sub-layers are centred beforehand). A norm takes the mean off, so this changes nothing, and spares it the subtraction:
  it is `RMSNormalization`. Its factors and bias are part of the product that reads it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from export.graph_modules import (
    Embedding,
    FeedForwardGraph,
    Linear,
    RootMeanSquare,
    centred,
    decoder_layers,
    encoder_layers,
)
from training.model import EncoderLayer, MultiHeadAttention, Transformer

MASKED_SCORE = -1.0e9
"""Added to an attention score on padding: its softmax is exactly 0."""


class EncoderAttention(nn.Module):
    """Self-attention of the encoder."""

    def __init__(self, attention: MultiHeadAttention, *, norm: nn.LayerNorm | None, is_centred: bool) -> None:
        """`norm` and `is_centred` as in `Linear`: of the input, and of the result."""
        super().__init__()
        self.heads = attention.heads
        self.query_key_value = Linear([attention.query, attention.key, attention.value], norm=norm)
        self.output = Linear([attention.output], is_centred=is_centred)

    def forward(self, states: Tensor, lengths: Tensor) -> Tensor:
        """[B,S,D] and the rows' lengths [B] -> [B,S,D]."""
        heads = torch.onnx.ops.symbolic(
            "com.microsoft::Attention",
            [states, self.query_key_value.weight, self.query_key_value.bias, lengths],
            {"num_heads": self.heads, "mask_filter_value": MASKED_SCORE},
            dtype=states.dtype,
            shape=states.shape,
            version=1,
        )  # [B,S,D]
        attended: Tensor = self.output(heads)
        return attended


class PreNormLayer(nn.Module):
    """`training.model.EncoderLayer` that norms the input of its sub-layers; the states have mean 0."""

    def __init__(self, layer: EncoderLayer) -> None:
        super().__init__()
        self.attention_norm = RootMeanSquare(layer.self_attention_norm)
        self.attention = EncoderAttention(layer.self_attention, norm=layer.self_attention_norm, is_centred=True)
        self.feed_forward_norm = RootMeanSquare(layer.feed_forward_norm)
        self.feed_forward = FeedForwardGraph(layer.feed_forward, norm=layer.feed_forward_norm, is_centred=True)

    def forward(self, states: Tensor, lengths: Tensor) -> Tensor:
        """[B,S,D] and the rows' lengths [B] -> [B,S,D]."""
        states = states + self.attention(self.attention_norm(states), lengths)
        added: Tensor = states + self.feed_forward(self.feed_forward_norm(states))
        return added


class PostNormLayer(nn.Module):
    """`training.model.EncoderLayer` that norms the sums: the normed states are read by two, so the norms stay whole."""

    def __init__(self, layer: EncoderLayer) -> None:
        super().__init__()
        self.attention = EncoderAttention(layer.self_attention, norm=None, is_centred=False)
        self.attention_norm = layer.self_attention_norm
        self.feed_forward = FeedForwardGraph(layer.feed_forward)
        self.feed_forward_norm = layer.feed_forward_norm

    def forward(self, states: Tensor, lengths: Tensor) -> Tensor:
        """[B,S,D] and the rows' lengths [B] -> [B,S,D]."""
        states = self.attention_norm(states + self.attention(states, lengths))
        normed: Tensor = self.feed_forward_norm(states + self.feed_forward(states))
        return normed


class EncoderGraph(nn.Module):
    """Source ids -> the cross-attention keys and values of every decoder layer."""

    positions: Tensor
    output_shape: Tensor

    def __init__(self, model: Transformer) -> None:
        super().__init__()
        norm = model.encoder.norm if isinstance(model.encoder.norm, nn.LayerNorm) else None  # there is one in pre-norm
        is_centred = norm is not None
        layer = PostNormLayer if norm is None else PreNormLayer
        self.embedding = Embedding(model.source_embedding, is_centred=is_centred)
        self.register_buffer("positions", centred(model.positions) if is_centred else model.positions)
        self.layers = nn.ModuleList(layer(each) for each in encoder_layers(model))
        self.norm = nn.Identity() if norm is None else RootMeanSquare(norm)
        attentions = [each.cross_attention for each in decoder_layers(model)]
        self.heads = attentions[0].heads
        self.cross_keys_values = Linear([linear for each in attentions for linear in (each.key, each.value)], norm=norm)
        self.num_outputs = 2 * len(attentions)
        self.head_width = attentions[0].query.out_features // self.heads
        self.register_buffer("output_shape", torch.tensor([0, 0, self.num_outputs * self.heads, self.head_width]))

    def forward(self, source_ids: Tensor, source_lengths: Tensor) -> tuple[Tensor, ...]:
        """Ids [B,S] and lengths [B] -> for each decoder layer its keys and its values, each [B,H,S,K]."""
        rows, num_positions = source_ids.shape
        states = self.embedding(source_ids) + self.positions[:num_positions]  # [B,S,D]
        for layer in self.layers:
            states = layer(states, source_lengths)
        projected = self.cross_keys_values(self.norm(states))  # [B,S,2*L*D]
        heads = torch.onnx.ops.symbolic(  # with a constant shape, 0 for "as it is": torch would compute it at every run
            "Reshape",
            [projected, self.output_shape],
            dtype=projected.dtype,
            shape=(rows, num_positions, self.num_outputs * self.heads, self.head_width),
        )  # [B,S,2*L*H,K]
        outputs: tuple[Tensor, ...] = heads.permute(0, 2, 1, 3).split(self.heads, dim=1)  # [B,2*L*H,S,K] -> [B,H,S,K]
        return outputs
