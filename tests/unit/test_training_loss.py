"""The sliced loss against torch's cross entropy over whole logits: values, gradients, padding, slices."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from training import loss as loss_module
from training.loss import smoothed_cross_entropy

VOCABULARY, WIDTH = 13, 6


def inputs(rows: int = 3, positions: int = 5, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    hidden = torch.randn(rows, positions, WIDTH, generator=generator, dtype=dtype).requires_grad_()
    weight = torch.randn(VOCABULARY, WIDTH, generator=generator, dtype=dtype).requires_grad_()
    targets = torch.randint(1, VOCABULARY, (rows, positions), generator=generator)
    targets[0, 3:] = 0  # padding
    targets[2, 1:] = 0
    return hidden, weight, targets


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.7])
@pytest.mark.parametrize("slice_positions", [1, 4, 256])
def test_equals_torch_in_value_and_gradient(
    smoothing: float, slice_positions: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loss_module, "CHUNK_POSITIONS", slice_positions)
    hidden, weight, targets = inputs()
    smoothed, plain, count = smoothed_cross_entropy(hidden, weight, targets, smoothing=smoothing, dtype=torch.float64)
    logits = (hidden @ weight.t()).flatten(0, 1)
    whole_loss = nn.CrossEntropyLoss(ignore_index=0, label_smoothing=smoothing, reduction="sum")
    expected = whole_loss(logits, targets.flatten())
    expected_plain = nn.CrossEntropyLoss(ignore_index=0, reduction="sum")(logits, targets.flatten())
    assert count == int((targets != 0).sum())
    torch.testing.assert_close(smoothed.double(), expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(plain.double(), expected_plain, rtol=1e-6, atol=1e-6)
    ours = torch.autograd.grad(smoothed * 0.25, [hidden, weight])  # a factor from above must reach both
    theirs = torch.autograd.grad(expected * 0.25, [hidden, weight])
    for our_gradient, their_gradient in zip(ours, theirs, strict=True):
        torch.testing.assert_close(our_gradient, their_gradient, rtol=1e-5, atol=1e-6)  # the softmax is fp32
    assert (ours[0][0, 3:] == 0).all()  # padding gets no gradient


def test_huge_logits_stay_finite() -> None:
    hidden, weight, targets = inputs(dtype=torch.float32)
    smoothed, plain, _ = smoothed_cross_entropy(hidden * 1e4, weight, targets, smoothing=0.1, dtype=torch.float32)
    gradient = torch.autograd.grad(smoothed, weight)[0]
    assert smoothed.isfinite()
    assert plain.isfinite()
    assert gradient.isfinite().all()


def test_bf16_products_stay_near_fp32() -> None:
    hidden, weight, targets = inputs(rows=20, dtype=torch.float32)
    exact, _, _ = smoothed_cross_entropy(hidden, weight, targets, smoothing=0.1, dtype=torch.float32)
    rough, _, _ = smoothed_cross_entropy(hidden, weight, targets, smoothing=0.1, dtype=torch.bfloat16)
    assert rough.item() != exact.item()
    assert rough.item() == pytest.approx(exact.item(), rel=0.01)
    (rough_gradient,) = torch.autograd.grad(rough, hidden)
    (exact_gradient,) = torch.autograd.grad(exact, hidden)
    assert nn.functional.cosine_similarity(rough_gradient.flatten(), exact_gradient.flatten(), dim=0) > 0.999


def test_value_without_gradient_is_the_same() -> None:
    hidden, weight, targets = inputs()
    with torch.no_grad():
        silent = smoothed_cross_entropy(hidden, weight, targets, smoothing=0.1, dtype=torch.float64)
    loud = smoothed_cross_entropy(hidden, weight, targets, smoothing=0.1, dtype=torch.float64)
    assert silent[0].item() == loud[0].item()
    assert silent[1].item() == loud[1].item()
