"""The model's smaller parts: embeddings, positions, masks, tying, dropout, and what it refuses."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from training.config import ConfigError, ModelConfig
from training.model import Transformer, padding_mask, sinusoidal_positions

SHAPE = ModelConfig(
    width=8,
    heads=2,
    feed_forward=16,
    encoder_layers=1,
    decoder_layers=1,
    source_vocab_size=11,
    target_vocab_size=11,
    dropout=0.0,
    max_positions=6,
)


def test_positions_follow_the_formula() -> None:
    table = sinusoidal_positions(50, 6)
    for position in (0, 1, 7, 49):
        for pair in range(3):
            angle = position / 10000 ** (2 * pair / 6)
            assert table[position, 2 * pair].item() == pytest.approx(math.sin(angle), abs=1e-6)
            assert table[position, 2 * pair + 1].item() == pytest.approx(math.cos(angle), abs=1e-6)


def test_padding_mask_shows_the_first_positions_of_each_row() -> None:
    mask = padding_mask(torch.tensor([3, 1]), 4)
    assert mask.shape == (2, 1, 1, 4)
    assert mask[:, 0, 0].tolist() == [[True, True, True, False], [True, False, False, False]]


def test_embeddings_are_scaled_and_placed() -> None:
    model = Transformer(SHAPE)
    ids = torch.tensor([[5, 7]])
    expected = model.target_embedding.weight[ids] * math.sqrt(8) + model.positions[2:4]
    torch.testing.assert_close(model.embed(model.target_embedding, ids, first_position=2), expected)


def test_tied_weights_are_one_tensor_and_separate_ones_are_not() -> None:
    tied = Transformer(SHAPE)
    assert tied.source_embedding is tied.target_embedding
    assert tied.projection.weight is tied.target_embedding.weight
    separate = Transformer(replace(SHAPE, target_vocab_size=13, shared_embeddings=False, tied_projection=False))
    assert separate.source_embedding.weight.shape == (11, 8)
    assert separate.target_embedding.weight.shape == separate.projection.weight.shape == (13, 8)
    assert separate.projection.weight is not separate.target_embedding.weight


def test_embeddings_start_with_the_scale_that_positions_need() -> None:
    torch.manual_seed(1)
    model = Transformer(replace(SHAPE, width=64, source_vocab_size=4000, target_vocab_size=4000))
    assert model.target_embedding.weight.std().item() == pytest.approx(64**-0.5, rel=0.02)


def test_dropout_acts_in_training_only() -> None:
    torch.manual_seed(1)
    model = Transformer(replace(SHAPE, dropout=0.5))
    ids, lengths = torch.tensor([[4, 5, 6]]), torch.tensor([3])
    assert not torch.equal(model.train()(ids, lengths, ids), model(ids, lengths, ids))
    assert torch.equal(model.eval()(ids, lengths, ids), model(ids, lengths, ids))


@pytest.mark.parametrize(
    "config",
    [replace(SHAPE, attention_dropout=0.5), replace(SHAPE, activation_dropout=0.5)],
    ids=["attention", "inner"],
)
def test_inner_dropouts_act_on_their_own(config: ModelConfig) -> None:
    torch.manual_seed(1)
    model = Transformer(config)
    ids, lengths = torch.tensor([[4, 5, 6]]), torch.tensor([3])
    assert not torch.equal(model.train()(ids, lengths, ids), model(ids, lengths, ids))
    assert torch.equal(model.eval()(ids, lengths, ids), model(ids, lengths, ids))


def test_too_long_a_sentence_is_refused_with_both_numbers() -> None:
    model = Transformer(SHAPE)
    with pytest.raises(ValueError, match="at most 6 positions, but has 7"):
        model.encode(torch.full((1, 7), 4), torch.tensor([7]))


def test_an_impossible_shape_is_refused_with_all_reasons() -> None:
    with pytest.raises(ConfigError) as caught:
        Transformer(replace(SHAPE, width=9, source_vocab_size=0, encoder_layers=0))
    text = "\n".join(caught.value.problems)
    for part in ("multiple of `model.heads`", "even", "encoder_layers", "must equal `model.target_vocab", "known"):
        assert part in text
