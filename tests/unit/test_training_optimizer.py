"""The optimizer: which weights go where, that it is torch's own arithmetic, and that its state travels."""

from __future__ import annotations

from typing import Literal

import pytest
import torch
from torch import Tensor

from training.config import ModelConfig, TrainConfig
from training.model import Transformer
from training.optimizer import make_optimizer

SHAPE = ModelConfig(
    width=8,
    heads=2,
    feed_forward=16,
    encoder_layers=1,
    decoder_layers=1,
    source_vocab_size=16,
    target_vocab_size=16,
    dropout=0.0,
    max_positions=8,
)


def make_model() -> Transformer:
    torch.manual_seed(1)
    return Transformer(SHAPE)


def set_gradients(model: Transformer, step: int) -> None:
    generator = torch.Generator().manual_seed(step)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)


def values(model: Transformer) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def test_muon_gets_the_matrices_inside_the_layers_and_nothing_else() -> None:
    model = make_model()
    parts = make_optimizer(model, TrainConfig(max_updates=1, optimizer="muon")).parameters
    names = {part: {name for name, _ in named} for part, named in parts.items()}
    assert names["muon"] | names["adamw"] == {name for name, _ in model.named_parameters()}
    assert not names["muon"] & names["adamw"]
    layers = [*model.encoder.named_modules(prefix="encoder"), *model.decoder.named_modules(prefix="decoder")]
    assert names["muon"] == {f"{name}.weight" for name, part in layers if isinstance(part, torch.nn.Linear)}


def test_adamw_is_torch_adamw_at_the_given_rate() -> None:
    ours, theirs = make_model(), make_model()
    optimizer = make_optimizer(ours, TrainConfig(max_updates=1, optimizer="adamw", weight_decay=0.0))
    reference = torch.optim.AdamW(theirs.parameters(), betas=(0.9, 0.98), eps=1e-9, weight_decay=0.0, foreach=False)
    for step, rate in enumerate((1e-3, 5e-3, 2e-4)):
        set_gradients(ours, step)
        set_gradients(theirs, step)
        for group in reference.param_groups:
            group["lr"] = rate
        optimizer.step(rate)
        reference.step()
    for name, value in values(theirs).items():
        torch.testing.assert_close(values(ours)[name], value)
    assert all(parameter.grad is None for parameter in ours.parameters())


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_decay_pulls_at_matrices_inside_layers_only(kind: Literal["adamw", "muon"]) -> None:
    model = make_model()
    before = values(model)
    optimizer = make_optimizer(model, TrainConfig(max_updates=1, optimizer=kind, weight_decay=0.5))
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step(0.1)
    for name, value in values(model).items():
        is_matrix = ".layers." in name and value.ndim == 2
        torch.testing.assert_close(value, before[name] * (0.95 if is_matrix else 1.0))


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_state_taken_over_goes_on_bit_for_bit(kind: Literal["adamw", "muon"]) -> None:
    train = TrainConfig(max_updates=1, optimizer=kind, weight_decay=0.1)
    straight, resumed = make_model(), make_model()
    first = make_optimizer(straight, train)
    for step in range(3):
        set_gradients(straight, step)
        first.step(1e-2)
    resumed.load_state_dict(straight.state_dict())
    second = make_optimizer(resumed, train)
    second.load_state_tensors({name: tensor.clone() for name, tensor in first.state_tensors().items()})
    for optimizer, model in ((first, straight), (second, resumed)):
        set_gradients(model, 9)
        optimizer.step(2e-2)
    assert all(torch.equal(value, values(straight)[name]) for name, value in values(resumed).items())


def test_state_of_another_optimizer_is_refused() -> None:
    model = make_model()
    muon = make_optimizer(model, TrainConfig(max_updates=1, optimizer="muon"))
    set_gradients(model, 1)
    muon.step(1e-3)
    adamw = make_optimizer(model, TrainConfig(max_updates=1, optimizer="adamw"))
    with pytest.raises(ValueError, match=r"must belong to this model and `train\.optimizer`, but has state for muon/"):
        adamw.load_state_tensors(muon.state_tensors())
