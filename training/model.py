"""The encoder-decoder Transformer of Vaswani et al. 2017, "Attention Is All You Need", section by section.

Axes, here and in every shape comment of the project:

    B rows of a batch     S source positions     T target positions     M positions of a key/value cache
    D width               H attention heads      K width per head (D / H)
    F feed-forward width  V target vocabulary    L layers

A sentence's ids are padded at the end; `source_lengths` says how many of them count. A target needs no lengths: under
the causal mask a position never sees what follows it, and so never the padding.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from training.config import ConfigError, ModelConfig, check_model


def sinusoidal_positions(num_positions: int, width: int) -> Tensor:
    """Positional encodings of section 3.5, [num_positions, D]: even columns are sines, odd columns cosines."""
    position = torch.arange(num_positions, dtype=torch.float64).unsqueeze(1)  # [P,1]
    exponent = torch.arange(0, width, 2, dtype=torch.float64) / width  # [D/2]
    angle = position / 10000.0**exponent  # [P,D/2]
    return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(1).float()  # [P,D]


def padding_mask(lengths: Tensor, num_positions: int) -> Tensor:
    """Which source positions count, as a mask over keys: True where a query may look. [B] -> [B,1,1,S]."""
    positions = torch.arange(num_positions, device=lengths.device)
    return (positions < lengths.unsqueeze(1))[:, None, None, :]  # [B,1,1,S]


class MultiHeadAttention(nn.Module):
    """Section 3.2: H scaled dot-product attentions side by side, over projections of queries, keys and values."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.dropout = config.attention_dropout
        self.query = nn.Linear(config.width, config.width)
        self.key = nn.Linear(config.width, config.width)
        self.value = nn.Linear(config.width, config.width)
        self.output = nn.Linear(config.width, config.width)

    def split_heads(self, states: Tensor) -> Tensor:
        """[B,T,D] -> [B,H,T,K]."""
        split: Tensor = states.unflatten(-1, (self.heads, -1)).transpose(1, 2)
        return split

    def project_keys_values(self, memory: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of `memory` [B,S,D], each [B,H,S,K]."""
        return self.split_heads(self.key(memory)), self.split_heads(self.value(memory))

    def attend(
        self, queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None = None, is_causal: bool = False
    ) -> Tensor:
        """softmax(QKᵀ / √K) V (equation 1), heads joined and projected.

        `queries` [B,T,D]; `keys`, `values` [B,H,S,K]; `mask` True where a query may look, broadcast to [B,H,T,S].
        Returns [B,T,D].
        """
        heads = functional.scaled_dot_product_attention(
            self.split_heads(self.query(queries)),  # [B,H,T,K]
            keys,
            values,
            attn_mask=mask,
            dropout_p=self.dropout if self.training else 0.0,
            is_causal=is_causal,
        )  # [B,H,T,K]
        output: Tensor = self.output(heads.transpose(1, 2).flatten(2))  # [B,T,D]
        return output

    def forward(self, queries: Tensor, memory: Tensor, mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """Attention of `queries` [B,T,D] over `memory` [B,S,D]; [B,T,D]. Self-attention passes the same for both."""
        keys, values = self.project_keys_values(memory)
        return self.attend(queries, keys, values, mask, is_causal)


class FeedForward(nn.Module):
    """Section 3.3: max(0, xW₁ + b₁)W₂ + b₂ at each position (equation 2)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.inner = nn.Linear(config.width, config.feed_forward)
        self.outer = nn.Linear(config.feed_forward, config.width)
        self.dropout = nn.Dropout(config.activation_dropout)

    def forward(self, states: Tensor) -> Tensor:
        """[B,T,D] -> [B,T,D]."""
        hidden: Tensor = self.outer(self.dropout(functional.relu(self.inner(states))))  # [B,T,F] -> [B,T,D]
        return hidden


class SubLayers(nn.Module):
    """What encoder and decoder layers share: a residual connection and layer norm around each sub-layer (section 3.1).

    The paper normalises after the addition (`post`). `pre` normalises the sub-layer's input instead, and once more at
    the end of the stack: it trains without a long warm-up (Xiong et al. 2020).
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.is_pre_norm = config.norm == "pre"
        self.dropout = nn.Dropout(config.dropout)

    def add(self, states: Tensor, norm: nn.LayerNorm, sub_layer: Callable[[Tensor], Tensor]) -> Tensor:
        """LayerNorm(x + SubLayer(x)), or x + SubLayer(LayerNorm(x)) under pre-norm. [B,T,D] -> [B,T,D]."""
        if self.is_pre_norm:
            added: Tensor = states + self.dropout(sub_layer(norm(states)))
            return added
        normed: Tensor = norm(states + self.dropout(sub_layer(states)))
        return normed


class EncoderLayer(SubLayers):
    """Section 3.1: self-attention and a feed-forward network."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.self_attention = MultiHeadAttention(config)
        self.self_attention_norm = nn.LayerNorm(config.width)
        self.feed_forward = FeedForward(config)
        self.feed_forward_norm = nn.LayerNorm(config.width)

    def forward(self, states: Tensor, mask: Tensor) -> Tensor:
        """[B,S,D] and the padding mask [B,1,1,S] -> [B,S,D]."""
        states = self.add(states, self.self_attention_norm, lambda x: self.self_attention(x, x, mask))
        return self.add(states, self.feed_forward_norm, self.feed_forward)


@dataclass
class LayerCache:
    """What one decoder layer remembers between steps."""

    self_keys: Tensor
    """Keys of the target so far, [B,H,M,K]; positions from `DecoderCache.length` on are not yet written."""
    self_values: Tensor
    """Values of the target so far, [B,H,M,K]."""
    cross_keys: Tensor
    """Keys of the encoded source, projected once, [B,H,S,K]."""
    cross_values: Tensor
    """Values of the encoded source, [B,H,S,K]."""


@dataclass
class DecoderCache:
    """State of a step-by-step decoding; all rows are at the same position."""

    layers: list[LayerCache]
    """One for each decoder layer."""
    source_mask: Tensor
    """True where a source position counts, [B,1,1,S]."""
    length: int
    """Target positions already decoded."""
    max_length: int
    """M: positions there is room for."""

    def select(self, rows: Tensor) -> "DecoderCache":
        """A cache whose row i is row `rows[i]` of this one: beams reordered, finished rows dropped."""
        layers = [
            LayerCache(
                self_keys=layer.self_keys[rows],
                self_values=layer.self_values[rows],
                cross_keys=layer.cross_keys[rows],
                cross_values=layer.cross_values[rows],
            )
            for layer in self.layers
        ]
        return DecoderCache(
            layers=layers, source_mask=self.source_mask[rows], length=self.length, max_length=self.max_length
        )


class DecoderLayer(SubLayers):
    """Section 3.1: causal self-attention, attention over the encoder's output, and a feed-forward network."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.self_attention = MultiHeadAttention(config)
        self.self_attention_norm = nn.LayerNorm(config.width)
        self.cross_attention = MultiHeadAttention(config)
        self.cross_attention_norm = nn.LayerNorm(config.width)
        self.feed_forward = FeedForward(config)
        self.feed_forward_norm = nn.LayerNorm(config.width)

    def forward(self, states: Tensor, encoded: Tensor, source_mask: Tensor) -> Tensor:
        """Target states [B,T,D], encoder's output [B,S,D], padding mask [B,1,1,S] -> [B,T,D]."""
        states = self.add(states, self.self_attention_norm, lambda x: self.self_attention(x, x, is_causal=True))
        states = self.add(states, self.cross_attention_norm, lambda x: self.cross_attention(x, encoded, source_mask))
        return self.add(states, self.feed_forward_norm, self.feed_forward)

    def step(self, states: Tensor, cache: LayerCache, position: int, source_mask: Tensor) -> Tensor:
        """One position, [B,1,D] -> [B,1,D]; writes its self keys and values into `cache` at `position`."""
        states = self.add(states, self.self_attention_norm, lambda x: self._attend_to_past(x, cache, position))
        states = self.add(
            states,
            self.cross_attention_norm,
            lambda x: self.cross_attention.attend(x, cache.cross_keys, cache.cross_values, source_mask),
        )
        return self.add(states, self.feed_forward_norm, self.feed_forward)

    def _attend_to_past(self, states: Tensor, cache: LayerCache, position: int) -> Tensor:
        keys, values = self.self_attention.project_keys_values(states)  # [B,H,1,K]
        cache.self_keys[:, :, position : position + 1] = keys
        cache.self_values[:, :, position : position + 1] = values
        past_keys = cache.self_keys[:, :, : position + 1]  # [B,H,position+1,K]
        past_values = cache.self_values[:, :, : position + 1]
        return self.self_attention.attend(states, past_keys, past_values)


class Encoder(nn.Module):
    """A stack of encoder layers; under pre-norm a last norm closes it."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(EncoderLayer(config) for _ in range(config.encoder_layers))
        self.norm = nn.LayerNorm(config.width) if config.norm == "pre" else nn.Identity()

    def forward(self, states: Tensor, mask: Tensor) -> Tensor:
        """[B,S,D] and the padding mask [B,1,1,S] -> [B,S,D]."""
        for layer in self.layers:
            states = layer(states, mask)
        normed: Tensor = self.norm(states)
        return normed


class Decoder(nn.Module):
    """A stack of decoder layers; under pre-norm a last norm closes it."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in range(config.decoder_layers))
        self.norm = nn.LayerNorm(config.width) if config.norm == "pre" else nn.Identity()

    def forward(self, states: Tensor, encoded: Tensor, source_mask: Tensor) -> Tensor:
        """[B,T,D], the encoder's output [B,S,D] and the padding mask [B,1,1,S] -> [B,T,D]."""
        for layer in self.layers:
            states = layer(states, encoded, source_mask)
        normed: Tensor = self.norm(states)
        return normed


class Transformer(nn.Module):
    """The whole model (figure 1). `encode`, `decode` and `project` are its three stages; training calls `forward`."""

    positions: Tensor

    def __init__(self, config: ModelConfig) -> None:
        """Raises ConfigError where the shape is impossible or the vocabulary's size is not yet known."""
        super().__init__()
        problems = check_model(config)
        if not (config.source_vocab_size and config.target_vocab_size):
            problems.append("`model.source_vocab_size` and `model.target_vocab_size` must be known, but are 0.")
        if problems:
            raise ConfigError("model", problems)
        self.config = config
        self.target_embedding = nn.Embedding(config.target_vocab_size, config.width)
        self.source_embedding = (
            self.target_embedding if config.shared_embeddings else nn.Embedding(config.source_vocab_size, config.width)
        )
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.projection = nn.Linear(config.width, config.target_vocab_size, bias=False)
        self.dropout = nn.Dropout(config.dropout)
        self.register_buffer("positions", sinusoidal_positions(config.max_positions, config.width), persistent=False)
        self._initialise()
        if config.tied_projection:
            self.projection.weight = self.target_embedding.weight

    def _initialise(self) -> None:
        """Embeddings of variance 1/D, so that × √D they stand beside the positions; matrices by Glorot; biases 0."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for embedding in dict.fromkeys((self.target_embedding, self.source_embedding)):  # a set has no fixed order
            nn.init.normal_(embedding.weight, std=self.config.width**-0.5)

    def embed(self, embedding: nn.Embedding, ids: Tensor, first_position: int = 0) -> Tensor:
        """Sections 3.4 and 3.5: embeddings × √D plus positions. [B,T] -> [B,T,D]. Raises ValueError when too long."""
        end = first_position + ids.size(1)
        if end > self.config.max_positions:
            raise ValueError(f"A sentence must have at most {self.config.max_positions} positions, but has {end}.")
        scaled = embedding(ids) * math.sqrt(self.config.width)  # [B,T,D]
        embedded: Tensor = self.dropout(scaled + self.positions[first_position:end])
        return embedded

    def encode(self, source_ids: Tensor, source_lengths: Tensor) -> Tensor:
        """Source ids [B,S] and lengths [B] -> the encoder's output [B,S,D]; rows of padding hold no meaning."""
        mask = padding_mask(source_lengths, source_ids.size(1))  # [B,1,1,S]
        encoded: Tensor = self.encoder(self.embed(self.source_embedding, source_ids), mask)
        return encoded

    def decode(self, target_ids: Tensor, encoded: Tensor, source_lengths: Tensor) -> Tensor:
        """All positions at once under the causal mask: [B,T] over [B,S,D] -> hidden states [B,T,D]."""
        mask = padding_mask(source_lengths, encoded.size(1))  # [B,1,1,S]
        hidden: Tensor = self.decoder(self.embed(self.target_embedding, target_ids), encoded, mask)
        return hidden

    def project(self, hidden: Tensor) -> Tensor:
        """Hidden states [..., D] -> logits [..., V]."""
        logits: Tensor = self.projection(hidden)
        return logits

    def forward(self, source_ids: Tensor, source_lengths: Tensor, target_ids: Tensor) -> Tensor:
        """Source [B,S], lengths [B], target input [B,T] -> hidden states [B,T,D], not yet projected."""
        return self.decode(target_ids, self.encode(source_ids, source_lengths), source_lengths)

    def start_cache(self, encoded: Tensor, source_lengths: Tensor, max_length: int) -> DecoderCache:
        """An empty cache for `max_length` target positions; cross keys and values are projected here, once."""
        layers = []
        for layer in self.decoder.layers:
            assert isinstance(layer, DecoderLayer)
            cross_keys, cross_values = layer.cross_attention.project_keys_values(encoded)  # [B,H,S,K]
            batch, heads, _, width = cross_keys.shape
            layers.append(
                LayerCache(
                    self_keys=cross_keys.new_zeros(batch, heads, max_length, width),  # [B,H,M,K]
                    self_values=cross_keys.new_zeros(batch, heads, max_length, width),  # [B,H,M,K]
                    cross_keys=cross_keys,
                    cross_values=cross_values,
                )
            )
        mask = padding_mask(source_lengths, encoded.size(1))
        return DecoderCache(layers=layers, source_mask=mask, length=0, max_length=max_length)

    def decode_step(self, target_ids: Tensor, cache: DecoderCache) -> Tensor:
        """One target position, [B,1] -> hidden states [B,1,D]; equal to that position of `decode`. Extends `cache`.

        For inference, with the model in evaluation mode. Raises ValueError when the cache is full.
        """
        if cache.length >= cache.max_length:
            raise ValueError(f"The cache must have room for another position, but all {cache.max_length} are taken.")
        states = self.embed(self.target_embedding, target_ids, first_position=cache.length)  # [B,1,D]
        for layer, layer_cache in zip(self.decoder.layers, cache.layers, strict=True):
            assert isinstance(layer, DecoderLayer)
            states = layer.step(states, layer_cache, cache.length, cache.source_mask)
        cache.length += 1
        hidden: Tensor = self.decoder.norm(states)
        return hidden
