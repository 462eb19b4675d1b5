"""Equal ways to one update: accumulated = joined batch, compiled = not, and the gradient is that of the mean loss."""

from __future__ import annotations

import functools
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from training.config import ModelConfig, TrainConfig
from training.data import Batch, make_batch
from training.distributed import Processes
from training.model import Transformer
from training.update import NotFiniteError, Updater, UpdateValues

SHAPE = ModelConfig(
    width=16,
    heads=2,
    feed_forward=32,
    encoder_layers=1,
    decoder_layers=1,
    source_vocab_size=24,
    target_vocab_size=24,
    dropout=0.0,
    max_positions=16,
)
TRAIN = TrainConfig(max_updates=10, warmup_updates=1, label_smoothing=0.1, clip_norm=0.5)
ALONE = Processes(rank=0, world_size=1, device=torch.device("cpu"))


def make_updater(train: TrainConfig = TRAIN, shape: ModelConfig = SHAPE) -> Updater:
    torch.manual_seed(1)
    return Updater(Transformer(shape), train, ALONE)


def random_pairs(count: int, seed: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    generator = np.random.default_rng(seed)
    lengths = generator.integers(1, 9, size=(count, 2))
    return (
        [np.append(generator.integers(4, 24, size=n), 3) for n in lengths[:, 0]],
        [generator.integers(4, 24, size=n) for n in lengths[:, 1]],
    )


def batch_of(*parts: tuple[list[np.ndarray], list[np.ndarray]]) -> Batch:
    return make_batch([s for sources, _ in parts for s in sources], [t for _, targets in parts for t in targets])


def gradients_of(model: Transformer) -> dict[str, Tensor]:
    return {name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None}


def update_gradients(updater: Updater, batches: list[Batch], number: int = 1) -> tuple[UpdateValues, dict[str, Tensor]]:
    """Makes one update; what it showed, and the gradients that reached the optimizer. Adam's own steps would not do:
    they turn rounding in a gradient near zero into a step of full size."""
    seen: dict[str, Tensor] = {}

    def look(*_: object) -> None:
        seen.update(gradients_of(updater.model))

    hook = updater.optimizer.parts["adamw"].register_step_pre_hook(look)
    values = updater.update(batches, number, sum(batch.num_target_tokens for batch in batches), 1e-3)
    hook.remove()
    assert seen.keys() == dict(updater.model.named_parameters()).keys()
    return values, seen


def assert_close(left: dict[str, Tensor], right: dict[str, Tensor]) -> None:
    for name, value in left.items():
        torch.testing.assert_close(value, right[name], rtol=1e-4, atol=1e-6)


def test_accumulated_batches_equal_one_joined_batch() -> None:
    small, large = random_pairs(3, 1), random_pairs(11, 2)  # of unequal size: a mean of means would be wrong
    values, accumulated = update_gradients(make_updater(), [batch_of(small), batch_of(large)])
    joined_values, joined = update_gradients(make_updater(), [batch_of(small, large)])
    assert_close(accumulated, joined)
    assert values.loss == pytest.approx(joined_values.loss, rel=1e-5)
    assert values.nll == pytest.approx(joined_values.nll, rel=1e-5)


def test_gradient_is_that_of_the_mean_smoothed_loss_and_is_clipped() -> None:
    batch = batch_of(random_pairs(6, 3))
    updater, reference = make_updater(), make_updater().model
    values, gradients = update_gradients(updater, [batch])
    logits = reference.project(reference(batch.source_ids, batch.source_lengths, batch.target_input_ids))
    loss = nn.CrossEntropyLoss(ignore_index=0, label_smoothing=0.1)(
        logits.flatten(0, 1), batch.target_output_ids.flatten()
    )
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(reference.parameters(), 0.5)
    assert norm > 0.5  # the clip is put to use
    assert values.loss / batch.num_target_tokens == pytest.approx(loss.item(), rel=1e-5)
    assert values.gradient_norm == pytest.approx(norm.item(), rel=1e-4)
    assert_close(gradients, gradients_of(reference))


def test_clip_of_zero_leaves_the_gradient_alone() -> None:
    batch = batch_of(random_pairs(6, 3))
    norms = []
    for clip in (0.0, 0.5):
        values, gradients = update_gradients(make_updater(replace(TRAIN, clip_norm=clip)), [batch])
        norms.append(torch.nn.utils.get_total_norm(list(gradients.values())).item())
    assert norms == pytest.approx([values.gradient_norm, 0.5], rel=1e-4)
    assert norms[0] > 0.5


def test_dropout_depends_on_the_updates_number_and_on_nothing_before() -> None:
    shape = replace(SHAPE, dropout=0.5)
    batch = batch_of(random_pairs(4, 4))
    losses = []
    for number, noise in ((1, 0), (1, 7), (2, 0)):
        updater = make_updater(shape=shape)
        torch.rand(noise)  # draws of somebody else
        losses.append(updater.update([batch], number, batch.num_target_tokens, 0.0).loss)
    assert losses[0] == losses[1]
    assert losses[0] != losses[2]


def test_compiled_model_makes_the_same_update(monkeypatch: pytest.MonkeyPatch) -> None:
    # Captured as a graph with free sizes, but run by PyTorch: generating C++ would take minutes.
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    plain, compiled = make_updater(), make_updater(replace(TRAIN, compile=True))
    for number, seed in ((1, 5), (2, 6)):
        batches = [batch_of(random_pairs(4 + seed, seed))]
        assert_close(update_gradients(plain, batches, number)[1], update_gradients(compiled, batches, number)[1])


def test_bf16_is_near_fp32_and_keeps_the_weights_fp32() -> None:
    batch = batch_of(random_pairs(16, 7))
    exact, rough = make_updater(), make_updater(replace(TRAIN, precision="bf16"))
    exact_loss = exact.update([batch], 1, batch.num_target_tokens, 1e-3).loss
    rough_loss = rough.update([batch], 1, batch.num_target_tokens, 1e-3).loss
    assert rough_loss != exact_loss
    assert rough_loss == pytest.approx(exact_loss, rel=0.01)
    assert all(parameter.dtype == torch.float32 for parameter in rough.model.parameters())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_is_refused_before_the_weights_change(value: float) -> None:
    updater = make_updater()
    with torch.no_grad():
        updater.model.decoder.norm.weight[0] = value
    before = {name: parameter.detach().clone() for name, parameter in updater.model.named_parameters()}
    batch = batch_of(random_pairs(4, 8))
    with pytest.raises(NotFiniteError, match="norm"):
        updater.update([batch], 1, batch.num_target_tokens, 1e-3)
    for name, parameter in updater.model.named_parameters():
        torch.testing.assert_close(parameter.detach(), before[name], rtol=0, atol=0, equal_nan=True)
