"""The reference's model beside the trained model's own pass over a whole target."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from service.tokenizer import BOS_ID, EOS_ID, PAD_ID
from tests.parity.reference_search import Ids
from tests.parity.reference_transformer import ReferenceTransformer
from training.config import ModelConfig
from training.model import Transformer


@pytest.fixture
def model() -> Transformer:
    """Random weights; the vocabulary of 11 tokens is rounded up to 16."""
    torch.manual_seed(0)
    config = ModelConfig(
        width=16,
        heads=1,
        feed_forward=32,
        encoder_layers=2,
        decoder_layers=2,
        source_vocab_size=16,
        target_vocab_size=16,
        dropout=0.5,
        max_positions=32,
    )
    return Transformer(config).eval()


QUESTIONS: tuple[tuple[Ids, Ids], ...] = (
    ((4, 5, 6, EOS_ID), ()),
    ((7, EOS_ID), (4, 9)),
    ((4, 5, 6, EOS_ID), (4, 9, 10, 5)),
    ((7, EOS_ID), ()),
)


def test_probabilities_are_those_of_one_pass_over_the_whole_prefix(model: Transformer) -> None:
    reference = ReferenceTransformer(model, target_tokens=11, alignment_layer=-1)
    for source, target in QUESTIONS:
        with torch.no_grad():
            hidden = model(torch.tensor([source]), torch.tensor([len(source)]), torch.tensor([[BOS_ID, *target]]))
            probabilities = model.project(hidden[0, -1]).softmax(-1).double()  # [V]
        probabilities[[PAD_ID, BOS_ID]] = 0
        probabilities[11:] = 0
        expected = (probabilities / probabilities.sum()).numpy()
        assert np.exp(reference(source, target).log_probabilities) == pytest.approx(expected, abs=1e-6)


def test_company_changes_nothing(model: Transformer) -> None:
    reference = ReferenceTransformer(model, target_tokens=11, alignment_layer=0)
    for question, together in zip(QUESTIONS, reference.predict(QUESTIONS), strict=True):
        alone = reference(*question)
        assert together.log_probabilities == pytest.approx(alone.log_probabilities, abs=1e-6)
        assert together.attention == pytest.approx(alone.attention, abs=1e-6)
        assert together.attention.shape == (len(question[0]),)


@pytest.mark.parametrize("layer", [0, 1])
def test_attention_is_what_the_layer_weighs_the_source_with(model: Transformer, layer: int) -> None:
    """With one head, the weights times the values, projected, are what the layer's attention gives."""
    attention = model.decoder.layers[layer].cross_attention
    outputs: list[torch.Tensor] = []
    handle = attention.register_forward_hook(lambda _, __, output: outputs.append(output))
    source, target = QUESTIONS[2]
    weights = ReferenceTransformer(model, target_tokens=11, alignment_layer=layer)(source, target).attention
    handle.remove()
    with torch.inference_mode():
        encoded = model.encode(torch.tensor([source]), torch.tensor([len(source)]))
        expected = attention.output(torch.tensor(weights) @ attention.value(encoded)[0])
    assert weights.sum() == pytest.approx(1.0, abs=1e-6)
    assert outputs[0][0, -1].numpy() == pytest.approx(expected.numpy(), abs=1e-5)
