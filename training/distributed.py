"""Which of several processes this one is, and the few things they must agree on. Alone, everything is the identity."""

import os
from dataclasses import dataclass

import torch
import torch.distributed


@dataclass(frozen=True, kw_only=True)
class Processes:
    """The processes started by `torchrun`, or this one alone."""

    rank: int
    """Number of this process, from 0."""
    world_size: int
    """How many there are."""
    device: torch.device
    """Where this process computes."""

    @property
    def is_first(self) -> bool:
        """Whether this process writes files and prints."""
        return self.rank == 0

    def sum(self, values: list[float]) -> list[float]:
        """Element-wise sum over the processes."""
        if self.world_size == 1:
            return values
        total = torch.tensor(values, dtype=torch.float64, device=self.device)
        torch.distributed.all_reduce(total)
        return [float(value) for value in total.tolist()]

    def wait(self) -> None:
        """Returns when every process has come here."""
        if self.world_size > 1:
            torch.distributed.barrier()

    def close(self) -> None:
        """Leaves the group; the last thing a process does."""
        if self.world_size > 1:
            torch.distributed.destroy_process_group()


def join_processes() -> Processes:
    """Reads what `torchrun` set, joins the group (nccl on GPUs, gloo on CPUs) and picks the device."""
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    rank = int(os.environ.get("RANK", "0"))
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    device = torch.device("cuda", local_rank) if torch.cuda.is_available() else torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if world_size > 1:
        torch.distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    return Processes(rank=rank, world_size=world_size, device=device)
