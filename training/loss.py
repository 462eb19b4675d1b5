"""Label-smoothed cross entropy (section 5.4) that never holds more than a slice of the logits.

With V = 8,000 the logits outweigh everything else in the model. `smoothed_cross_entropy` therefore projects a few
hundred positions at a time and computes their gradient in the same pass: a position costs three products and one
softmax, and the [positions, V] matrix never exists.
"""

from typing import Any

import torch
from torch import Tensor

CHUNK_POSITIONS = 256


class _ProjectedCrossEntropy(torch.autograd.Function):
    """Sum over positions of the smoothed cross entropy, and of the plain one; gradients are made in `forward`."""

    @staticmethod
    def forward(  # noqa: PLR0917 - autograd passes by position
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, smoothing: float, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        """`hidden` [N,D], `weight` [V,D], `targets` [N] -> two scalars."""
        needs_gradient = ctx.needs_input_grad[0] or ctx.needs_input_grad[1]
        cast_weight = weight.to(dtype)  # [V,D]
        cast_hidden = hidden.to(dtype)  # [N,D]
        vocabulary = weight.size(0)
        spread = smoothing / vocabulary
        hidden_gradient = torch.empty_like(cast_hidden) if needs_gradient else None
        weight_gradient = torch.zeros_like(weight) if needs_gradient else None
        smoothed = torch.zeros((), dtype=torch.float64, device=hidden.device)
        plain = torch.zeros((), dtype=torch.float64, device=hidden.device)
        for start in range(0, hidden.size(0), CHUNK_POSITIONS):
            rows = slice(start, start + CHUNK_POSITIONS)
            logits = (cast_hidden[rows] @ cast_weight.t()).float()  # [n,V]
            picked = logits.gather(1, targets[rows, None]).squeeze(1)  # [n]
            mean = logits.mean(dim=1)  # [n]
            highest = logits.amax(dim=1, keepdim=True)  # [n,1]
            exponential = logits.sub_(highest).exp_()  # [n,V]
            total = exponential.sum(dim=1, keepdim=True)  # [n,1]
            log_total = (total.log() + highest).squeeze(1)  # [n]
            plain += (log_total - picked).sum().double()
            smoothed += (log_total - (1 - smoothing) * picked - smoothing * mean).sum().double()
            if hidden_gradient is None or weight_gradient is None:
                continue
            # d loss / d logits = softmax - (1 - smoothing) · one-hot - smoothing / V
            gradient = exponential.div_(total).sub_(spread)  # [n,V]
            gradient.scatter_add_(1, targets[rows, None], gradient.new_full((gradient.size(0), 1), smoothing - 1))
            cast_gradient = gradient.to(dtype)
            hidden_gradient[rows] = cast_gradient @ cast_weight
            weight_gradient += cast_gradient.t() @ cast_hidden[rows]
        if hidden_gradient is not None and weight_gradient is not None:
            ctx.save_for_backward(hidden_gradient, weight_gradient)
        ctx.hidden_dtype = hidden.dtype
        plain_loss = plain.float()
        ctx.mark_non_differentiable(plain_loss)
        return smoothed.float(), plain_loss

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, _plain: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        """Gradients of the smoothed loss, made in `forward`, times what comes from above."""
        hidden_gradient, weight_gradient = ctx.saved_tensors
        return (hidden_gradient * gradient).to(ctx.hidden_dtype), weight_gradient * gradient, None, None, None


def smoothed_cross_entropy(
    hidden: Tensor, weight: Tensor, targets: Tensor, *, smoothing: float, dtype: torch.dtype, pad_id: int = 0
) -> tuple[Tensor, Tensor, int]:
    """Loss of hidden states [B,T,D] under the projection `weight` [V,D] against `targets` [B,T].

    Positions whose target is `pad_id` are left out before the projection. Products run in `dtype`, the softmax in fp32.
    Returns the smoothed loss summed over positions (differentiable), the plain negative log-likelihood summed over
    positions (for perplexity), and the number of positions.
    """
    kept = (targets != pad_id).flatten().nonzero().squeeze(1)  # [N]
    states = hidden.flatten(0, 1).index_select(0, kept)  # [N,D]
    smoothed, plain = _ProjectedCrossEntropy.apply(
        states, weight, targets.flatten().index_select(0, kept), smoothing, dtype
    )
    return smoothed, plain, kept.numel()
