"""One update of the weights: the gradient of some batches, clipped, and a step of the optimizer.

It depends only on the weights, the optimizer's state, the batches and the update's number: dropout is seeded anew for
each update and process. That is what lets a resumed run repeat the very updates it would have made.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import cast

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.parallel import DistributedDataParallel

from training.config import TrainConfig
from training.data import Batch
from training.distributed import Processes
from training.loss import smoothed_cross_entropy
from training.model import Transformer
from training.optimizer import make_optimizer


class NotFiniteError(ArithmeticError):
    """Loss or gradient of an update is no finite number; the weights were not changed."""

    def __init__(self, loss: float, gradient_norm: float) -> None:
        super().__init__(f"the loss of a token is {loss:g} and the gradient's norm {gradient_norm:g}")


@dataclass(frozen=True, kw_only=True)
class UpdateValues:
    """What an update showed, over all processes."""

    loss: float
    """Label-smoothed loss, summed over target tokens."""
    nll: float
    """Negative log-likelihood, summed over target tokens, in nats."""
    gradient_norm: float
    """Norm of the gradient before clipping."""
    learning_rate: float
    """Learning rate of the step."""


class Updater:
    """Model and optimizer, and the one way in which they change."""

    def __init__(self, model: Transformer, train: TrainConfig, processes: Processes) -> None:
        self.model = model
        self.optimizer = make_optimizer(model, train)
        self._train = train
        self._processes = processes
        self._dtype = torch.bfloat16 if train.precision == "bf16" else torch.float32
        self._network: nn.Module = model
        if train.compile:
            self._network = cast(nn.Module, torch.compile(model, dynamic=True))
        if processes.world_size > 1:
            self._network = DistributedDataParallel(self._network)

    def update(
        self, batches: Sequence[Batch], number: int, num_target_tokens: int, learning_rate: float
    ) -> UpdateValues:
        """Update `number`: the gradient of the mean loss over all target tokens of all batches of all processes.

        Args:
            batches: this process's share.
            number: number of the update, counted from 1.
            num_target_tokens: target tokens of the update, over all processes.
        Raises:
            NotFiniteError: before the weights change.
        """
        torch.manual_seed(_dropout_seed(self._train.seed, number, self._processes.rank))
        self.model.train()
        device = self._processes.device
        loss_sum, nll_sum = torch.zeros((), device=device), torch.zeros((), device=device)
        for index, batch in enumerate(batches):
            is_last = index == len(batches) - 1
            with self._exchange(is_last), attention_backend(device):
                loss, nll = self._losses(batch)
                # DistributedDataParallel takes the mean over processes; times their number it is the sum.
                (loss * (self._processes.world_size / num_target_tokens)).backward()
            loss_sum += loss.detach()
            nll_sum += nll
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self._train.clip_norm or float("inf"))
        loss_total, nll_total = self._processes.sum([loss_sum.item(), nll_sum.item()])
        if not (norm.isfinite() and abs(loss_total) < float("inf")):
            raise NotFiniteError(loss_total / num_target_tokens, norm.item())
        self.optimizer.step(learning_rate)
        return UpdateValues(loss=loss_total, nll=nll_total, gradient_norm=norm.item(), learning_rate=learning_rate)

    def _losses(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Smoothed loss and negative log-likelihood of a batch, summed over target tokens."""
        device = self._processes.device
        with torch.autocast(device.type, torch.bfloat16, enabled=self._train.precision == "bf16"):
            hidden = self._network(
                batch.source_ids.to(device), batch.source_lengths.to(device), batch.target_input_ids.to(device)
            )  # [B,T,D]
        loss, nll, _ = smoothed_cross_entropy(
            hidden,
            self.model.projection.weight,
            batch.target_output_ids.to(device),
            smoothing=self._train.label_smoothing,
            dtype=self._dtype,
        )
        return loss, nll

    def _exchange(self, is_last: bool) -> AbstractContextManager[object]:
        """Processes exchange gradients with the last batch of an update only."""
        if isinstance(self._network, DistributedDataParallel) and not is_last:
            no_sync: AbstractContextManager[object] = self._network.no_sync()
            return no_sync
        return nullcontext()


def attention_backend(device: torch.device) -> AbstractContextManager[object]:
    """Which implementation `scaled_dot_product_attention` uses in training.

    On the CPU the written-out products: for sentences of 10 to 45 tokens the fused kernel's backward pass took 2 to 5
    times as long (bf16, 2 cores, and with it the whole update 1.5 times). Elsewhere PyTorch chooses.
    """
    return sdpa_kernel(SDPBackend.MATH) if device.type == "cpu" else nullcontext()


def _dropout_seed(seed: int, update: int, rank: int) -> int:
    """A seed for the dropout of one update on one process."""
    return ((seed * 1_000_003 + update) * 1_009 + rank) % (1 << 63)
