"""The optimizer: AdamW for everything, or Muon for the matrices inside the layers and AdamW for the rest."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from training.config import TrainConfig


@dataclass(frozen=True, kw_only=True)
class Optimizer:
    """One or two torch optimizers that step together, with their state as named tensors."""

    parts: Mapping[str, torch.optim.Optimizer]
    """`adamw`, and `muon` where it is used."""
    parameters: Mapping[str, list[tuple[str, nn.Parameter]]]
    """For each part, the parameters it updates with their names in the model."""
    rate_factors: Mapping[str, float]
    """For each part, what the schedule's learning rate is multiplied by."""

    def step(self, learning_rate: float) -> None:
        """Updates every parameter once from its gradient, then drops the gradients."""
        for name, part in self.parts.items():
            for group in part.param_groups:
                group["lr"] = learning_rate * self.rate_factors[name]
            part.step()
            part.zero_grad(set_to_none=True)

    def state_tensors(self) -> dict[str, Tensor]:
        """The state of every parameter, named `PART/PARAMETER/KEY`; with the configuration it is the whole state."""
        tensors: dict[str, Tensor] = {}
        for part_name, part in self.parts.items():
            for parameter_name, parameter in self.parameters[part_name]:
                for key, value in part.state.get(parameter, {}).items():
                    tensors[f"{part_name}/{parameter_name}/{key}"] = torch.as_tensor(value)
        return tensors

    def load_state_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Takes over what `state_tensors` gave. Raises ValueError where it belongs to another model or optimizer."""
        known = {
            f"{part_name}/{parameter_name}": (self.parts[part_name], parameter)
            for part_name, named in self.parameters.items()
            for parameter_name, parameter in named
        }
        unknown = sorted({name.rpartition("/")[0] for name in tensors} - known.keys())
        if unknown:
            raise ValueError(
                f"The saved optimizer must belong to this model and `train.optimizer`, but has state for {unknown[0]} "
                f"({len(unknown)} such)."
            )
        for name, tensor in tensors.items():
            owner, _, key = name.rpartition("/")
            part, parameter = known[owner]
            part.state[parameter][key] = tensor.to(parameter.device, copy=True)


def make_optimizer(model: nn.Module, train: TrainConfig) -> Optimizer:
    """The optimizer `train` asks for, over all parameters of `model`.

    Weight decay is applied to the matrices inside the layers only: biases, norms and embeddings are left alone.
    """
    named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    matrices = [(name, parameter) for name, parameter in named if ".layers." in name and parameter.ndim == 2]
    matrix_names = {name for name, _ in matrices}
    others = [(name, parameter) for name, parameter in named if name not in matrix_names]
    if train.optimizer == "muon":
        # Keller Jordan's Muon; RMS-matched so that one learning rate serves both (Liu et al. 2025, arXiv:2502.16982).
        muon = torch.optim.Muon(
            [parameter for _, parameter in matrices],
            lr=train.peak_learning_rate,
            momentum=train.muon_momentum,
            weight_decay=train.weight_decay,
            adjust_lr_fn="match_rms_adamw",
        )
        return Optimizer(
            parts={"adamw": _adamw(train, [(others, 0.0)]), "muon": muon},
            parameters={"adamw": others, "muon": matrices},
            rate_factors={"adamw": 1.0, "muon": train.muon_learning_rate_factor},
        )
    adamw = _adamw(train, [(others, 0.0), (matrices, train.weight_decay)])
    return Optimizer(parts={"adamw": adamw}, parameters={"adamw": others + matrices}, rate_factors={"adamw": 1.0})


def _adamw(train: TrainConfig, groups: list[tuple[list[tuple[str, nn.Parameter]], float]]) -> torch.optim.AdamW:
    return torch.optim.AdamW(
        [{"params": [parameter for _, parameter in group], "weight_decay": decay} for group, decay in groups],
        lr=train.peak_learning_rate,
        betas=(train.beta1, train.beta2),
        eps=1e-9,  # section 5.3
        fused=True,
    )
