"""The Transformer against the paper written out in loops, and against itself: cached, padded, batched."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Literal

import numpy as np
import numpy.typing as npt
import pytest
import torch

from training.config import ModelConfig
from training.model import Transformer

Array = npt.NDArray[np.float64]

SHAPE = ModelConfig(
    width=12,
    heads=3,
    feed_forward=20,
    encoder_layers=2,
    decoder_layers=2,
    source_vocab_size=17,
    target_vocab_size=17,
    dropout=0.0,
    max_positions=32,
)
VARIANTS = [
    pytest.param(replace(SHAPE, norm="pre"), id="pre-norm"),
    pytest.param(replace(SHAPE, norm="post"), id="post-norm"),
    pytest.param(
        replace(SHAPE, target_vocab_size=23, shared_embeddings=False, tied_projection=False, encoder_layers=3),
        id="separate-embeddings",
    ),
]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def make_model(config: ModelConfig, dtype: torch.dtype = torch.float64) -> Transformer:
    """A model whose every weight, biases and norms included, is random: nothing is hidden by a zero or a one."""
    torch.manual_seed(3)
    model = Transformer(config).to(dtype).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias") or "norm" in name:
                parameter.add_(torch.randn_like(parameter) * 0.3)
    return model


def random_ids(vocabulary: int, *shape: int, seed: int = 5) -> torch.Tensor:
    return torch.randint(4, vocabulary, shape, generator=torch.Generator().manual_seed(seed))


class PlainTransformer:
    """The model of the paper for one sentence, in loops over heads and positions; weights by their names."""

    def __init__(self, model: Transformer) -> None:
        self.config = model.config
        named = model.named_parameters(remove_duplicate=False)
        self.weights: dict[str, Array] = {name: parameter.detach().double().numpy() for name, parameter in named}

    def linear(self, name: str, states: Array) -> Array:
        return states @ self.weights[f"{name}.weight"].T + self.weights[f"{name}.bias"]

    def norm(self, name: str, states: Array) -> Array:
        centred = states - states.mean(axis=-1, keepdims=True)
        variance = (centred**2).mean(axis=-1, keepdims=True)
        return centred / np.sqrt(variance + 1e-5) * self.weights[f"{name}.weight"] + self.weights[f"{name}.bias"]

    def attention(self, name: str, queries: Array, memory: Array, *, is_causal: bool) -> Array:
        query, key, value = (
            self.linear(f"{name}.{part}", states)
            for part, states in (("query", queries), ("key", memory), ("value", memory))
        )
        head_width = self.config.width // self.config.heads
        joined = np.zeros_like(query)
        for head in range(self.config.heads):
            columns = slice(head * head_width, (head + 1) * head_width)
            for position in range(len(query)):
                visible = position + 1 if is_causal else len(memory)
                scores = key[:visible, columns] @ query[position, columns] / math.sqrt(head_width)
                shares = np.exp(scores) / np.exp(scores).sum()
                joined[position, columns] = shares @ value[:visible, columns]
        return self.linear(f"{name}.output", joined)

    def feed_forward(self, name: str, states: Array) -> Array:
        return self.linear(f"{name}.outer", np.maximum(0.0, self.linear(f"{name}.inner", states)))

    def embed(self, side: str, ids: list[int]) -> Array:
        width = self.config.width
        embedded = self.weights[f"{side}_embedding.weight"][ids] * math.sqrt(width)
        for position in range(len(ids)):
            for pair in range(width // 2):
                angle = position / 10000 ** (2 * pair / width)
                embedded[position, 2 * pair] += math.sin(angle)
                embedded[position, 2 * pair + 1] += math.cos(angle)
        return embedded

    def encode(self, source: list[int]) -> Array:
        states = self.embed("source", source)
        for i in range(self.config.encoder_layers):
            name = f"encoder.layers.{i}"
            if self.config.norm == "pre":
                normed = self.norm(f"{name}.self_attention_norm", states)
                states = states + self.attention(f"{name}.self_attention", normed, normed, is_causal=False)
                normed = self.norm(f"{name}.feed_forward_norm", states)
                states = states + self.feed_forward(f"{name}.feed_forward", normed)
            else:
                attended = self.attention(f"{name}.self_attention", states, states, is_causal=False)
                states = self.norm(f"{name}.self_attention_norm", states + attended)
                fed = self.feed_forward(f"{name}.feed_forward", states)
                states = self.norm(f"{name}.feed_forward_norm", states + fed)
        return self.norm("encoder.norm", states) if self.config.norm == "pre" else states

    def decode(self, target: list[int], encoded: Array) -> Array:
        states = self.embed("target", target)
        for i in range(self.config.decoder_layers):
            name = f"decoder.layers.{i}"
            if self.config.norm == "pre":
                normed = self.norm(f"{name}.self_attention_norm", states)
                states = states + self.attention(f"{name}.self_attention", normed, normed, is_causal=True)
                normed = self.norm(f"{name}.cross_attention_norm", states)
                states = states + self.attention(f"{name}.cross_attention", normed, encoded, is_causal=False)
                normed = self.norm(f"{name}.feed_forward_norm", states)
                states = states + self.feed_forward(f"{name}.feed_forward", normed)
            else:
                attended = self.attention(f"{name}.self_attention", states, states, is_causal=True)
                states = self.norm(f"{name}.self_attention_norm", states + attended)
                attended = self.attention(f"{name}.cross_attention", states, encoded, is_causal=False)
                states = self.norm(f"{name}.cross_attention_norm", states + attended)
                fed = self.feed_forward(f"{name}.feed_forward", states)
                states = self.norm(f"{name}.feed_forward_norm", states + fed)
        return self.norm("decoder.norm", states) if self.config.norm == "pre" else states

    def logits(self, source: list[int], target: list[int]) -> Array:
        return self.decode(target, self.encode(source)) @ self.weights["projection.weight"].T


@pytest.mark.parametrize("config", VARIANTS)
def test_model_equals_the_paper_written_out(config: ModelConfig) -> None:
    model = make_model(config)
    lengths = torch.tensor([7, 4, 1])
    source = random_ids(config.source_vocab_size, 3, 7)
    target = random_ids(config.target_vocab_size, 3, 5, seed=6)
    with torch.no_grad():
        logits = model.project(model(source, lengths, target))
    plain = PlainTransformer(model)
    for row, length in enumerate(lengths.tolist()):
        expected = plain.logits(source[row, :length].tolist(), target[row].tolist())
        np.testing.assert_allclose(logits[row].numpy(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("config", VARIANTS)
def test_cached_steps_equal_the_full_pass(config: ModelConfig) -> None:
    model = make_model(config)
    lengths = torch.tensor([6, 2])
    source = random_ids(config.source_vocab_size, 2, 6)
    target = random_ids(config.target_vocab_size, 2, 8, seed=6)
    with torch.no_grad():
        encoded = model.encode(source, lengths)
        expected = model.decode(target, encoded, lengths)
        cache = model.start_cache(encoded, lengths, max_length=8)
        steps = [model.decode_step(target[:, t : t + 1], cache) for t in range(8)]
    torch.testing.assert_close(torch.cat(steps, dim=1), expected, rtol=1e-12, atol=1e-12)
    with pytest.raises(ValueError, match="all 8 are taken"):
        model.decode_step(target[:, :1], cache)


def test_a_selected_cache_goes_on_as_its_rows() -> None:
    config = SHAPE
    model = make_model(config)
    lengths = torch.tensor([6, 3, 4])
    source = random_ids(config.source_vocab_size, 3, 6)
    target = random_ids(config.target_vocab_size, 3, 4, seed=6)
    rows = torch.tensor([2, 2, 0])
    with torch.no_grad():
        encoded = model.encode(source, lengths)
        cache = model.start_cache(encoded, lengths, max_length=4)
        for t in range(3):
            model.decode_step(target[:, t : t + 1], cache)
        chosen = cache.select(rows)
        last = model.decode_step(target[rows, 3:], chosen)
        expected = model.decode(target[rows], encoded[rows], lengths[rows])[:, 3:]
    torch.testing.assert_close(last, expected, rtol=1e-12, atol=1e-12)
    assert cache.length == 3  # the cache it was taken from has not moved


@pytest.mark.parametrize("config", VARIANTS)
def test_padding_and_neighbours_change_nothing(config: ModelConfig) -> None:
    model = make_model(config)
    source = random_ids(config.source_vocab_size, 1, 5)
    target = random_ids(config.target_vocab_size, 1, 4, seed=6)
    with torch.no_grad():
        alone = model(source, torch.tensor([5]), target)
        wide_source = random_ids(config.source_vocab_size, 3, 9, seed=8)  # what stands in the padding must not matter
        wide_target = random_ids(config.target_vocab_size, 3, 7, seed=9)
        wide_source[1, :5], wide_target[1, :4] = source[0], target[0]
        batched = model(wide_source, torch.tensor([9, 5, 2]), wide_target)
    torch.testing.assert_close(batched[1:2, :4], alone, rtol=1e-12, atol=1e-12)


def test_a_target_position_sees_nothing_after_it() -> None:
    model = make_model(SHAPE)
    source = random_ids(SHAPE.source_vocab_size, 1, 5)
    target = random_ids(SHAPE.target_vocab_size, 1, 6, seed=6)
    changed = target.clone()
    changed[0, 3:] = (changed[0, 3:] - 4 + 1) % (SHAPE.target_vocab_size - 4) + 4
    with torch.no_grad():
        first, second = (model(source, torch.tensor([5]), ids) for ids in (target, changed))
    assert torch.equal(first[:, :3], second[:, :3])
    assert not torch.allclose(first[:, 3:], second[:, 3:])


@pytest.mark.parametrize("norm", ["pre", "post"])
def test_every_source_position_reaches_every_target_position(norm: Literal["pre", "post"]) -> None:
    model = make_model(replace(SHAPE, norm=norm))
    source = random_ids(SHAPE.source_vocab_size, 1, 5)
    target = random_ids(SHAPE.target_vocab_size, 1, 3, seed=6)
    with torch.no_grad():
        before = model(source, torch.tensor([5]), target)
        for position in range(5):
            changed = source.clone()
            changed[0, position] = (changed[0, position] - 4 + 1) % (SHAPE.source_vocab_size - 4) + 4
            after = model(changed, torch.tensor([5]), target)
            assert ((after - before).abs().amax(dim=-1) > 1e-9).all()
