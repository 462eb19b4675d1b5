"""Our attention, layers and stacks against torch.nn's with the same weights."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import pytest
import torch
from torch import Tensor, nn

from training.config import ModelConfig
from training.model import DecoderLayer, EncoderLayer, MultiHeadAttention, Transformer, padding_mask

SHAPE = ModelConfig(
    width=16,
    heads=4,
    feed_forward=24,
    encoder_layers=2,
    decoder_layers=3,
    source_vocab_size=19,
    target_vocab_size=19,
    dropout=0.0,
    max_positions=32,
)


def randomise(module: nn.Module) -> None:
    torch.manual_seed(11)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.4)


def copy_attention(theirs: nn.MultiheadAttention, ours: MultiHeadAttention) -> None:
    parts = (ours.query, ours.key, ours.value)
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.cat([part.weight for part in parts]))
        theirs.in_proj_bias.copy_(torch.cat([part.bias for part in parts]))
        theirs.out_proj.load_state_dict(ours.output.state_dict())


def copy_encoder_layer(theirs: nn.TransformerEncoderLayer, ours: EncoderLayer) -> None:
    copy_attention(theirs.self_attn, ours.self_attention)
    theirs.norm1.load_state_dict(ours.self_attention_norm.state_dict())
    theirs.norm2.load_state_dict(ours.feed_forward_norm.state_dict())
    theirs.linear1.load_state_dict(ours.feed_forward.inner.state_dict())
    theirs.linear2.load_state_dict(ours.feed_forward.outer.state_dict())


def copy_decoder_layer(theirs: nn.TransformerDecoderLayer, ours: DecoderLayer) -> None:
    copy_attention(theirs.self_attn, ours.self_attention)
    copy_attention(theirs.multihead_attn, ours.cross_attention)
    theirs.norm1.load_state_dict(ours.self_attention_norm.state_dict())
    theirs.norm2.load_state_dict(ours.cross_attention_norm.state_dict())
    theirs.norm3.load_state_dict(ours.feed_forward_norm.state_dict())
    theirs.linear1.load_state_dict(ours.feed_forward.inner.state_dict())
    theirs.linear2.load_state_dict(ours.feed_forward.outer.state_dict())


def states(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def close(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


def test_attention_over_a_padded_memory() -> None:
    ours = MultiHeadAttention(SHAPE).double()
    randomise(ours)
    theirs = nn.MultiheadAttention(SHAPE.width, SHAPE.heads, batch_first=True, dtype=torch.float64)
    copy_attention(theirs, ours)
    queries, memory, lengths = states(3, 5, 16), states(3, 7, 16, seed=2), torch.tensor([7, 3, 1])
    mask = padding_mask(lengths, 7)
    expected, _ = theirs(queries, memory, memory, key_padding_mask=~mask[:, 0, 0])
    close(ours(queries, memory, mask), expected)


def test_causal_self_attention() -> None:
    ours = MultiHeadAttention(SHAPE).double()
    randomise(ours)
    theirs = nn.MultiheadAttention(SHAPE.width, SHAPE.heads, batch_first=True, dtype=torch.float64)
    copy_attention(theirs, ours)
    queries = states(2, 6, 16)
    hidden = torch.ones(6, 6).triu(1).bool()
    expected, _ = theirs(queries, queries, queries, attn_mask=hidden)
    close(ours(queries, queries, is_causal=True), expected)


@pytest.mark.parametrize("norm", ["pre", "post"])
def test_whole_stack_and_its_gradients(norm: Literal["pre", "post"]) -> None:
    config = replace(SHAPE, norm=norm)
    ours = Transformer(config).double()
    randomise(ours)
    width, heads, inner = config.width, config.heads, config.feed_forward
    first, dtype = norm == "pre", torch.float64
    encoder_layer = nn.TransformerEncoderLayer(
        width, heads, inner, dropout=0.0, batch_first=True, norm_first=first, dtype=dtype
    )
    decoder_layer = nn.TransformerDecoderLayer(
        width, heads, inner, dropout=0.0, batch_first=True, norm_first=first, dtype=dtype
    )
    # nn.Transformer by itself also norms the end of a post-norm stack; the paper does not.
    last_norms = [nn.LayerNorm(config.width, dtype=torch.float64) if norm == "pre" else None for _ in range(2)]
    theirs = nn.Transformer(
        config.width,
        config.heads,
        batch_first=True,
        custom_encoder=nn.TransformerEncoder(
            encoder_layer, config.encoder_layers, last_norms[0], enable_nested_tensor=False
        ),
        custom_decoder=nn.TransformerDecoder(decoder_layer, config.decoder_layers, last_norms[1]),
    )
    for their_layer, our_layer in zip(theirs.encoder.layers, ours.encoder.layers, strict=True):
        assert isinstance(our_layer, EncoderLayer)
        copy_encoder_layer(their_layer, our_layer)
    for their_decoder, our_decoder in zip(theirs.decoder.layers, ours.decoder.layers, strict=True):
        assert isinstance(our_decoder, DecoderLayer)
        copy_decoder_layer(their_decoder, our_decoder)
    if theirs.encoder.norm is not None and theirs.decoder.norm is not None:
        theirs.encoder.norm.load_state_dict(ours.encoder.norm.state_dict())
        theirs.decoder.norm.load_state_dict(ours.decoder.norm.state_dict())

    generator = torch.Generator().manual_seed(4)
    source = torch.randint(4, 19, (3, 7), generator=generator)
    target = torch.randint(4, 19, (3, 5), generator=generator)
    lengths = torch.tensor([7, 5, 2])
    hidden_sources = ~padding_mask(lengths, 7)[:, 0, 0]
    embedded_source = ours.embed(ours.source_embedding, source)
    embedded_target = ours.embed(ours.target_embedding, target)
    expected = theirs(
        embedded_source,
        embedded_target,
        tgt_mask=torch.ones(5, 5).triu(1).bool(),
        src_key_padding_mask=hidden_sources,
        memory_key_padding_mask=hidden_sources,
    )
    result = ours(source, lengths, target)
    close(result, expected)

    weights = states(*result.shape, seed=9)
    (embedding,) = {ours.source_embedding, ours.target_embedding}  # shared
    (our_gradient,) = torch.autograd.grad((result * weights).sum(), embedding.weight)
    (their_gradient,) = torch.autograd.grad((expected * weights).sum(), embedding.weight)
    close(our_gradient, their_gradient)
