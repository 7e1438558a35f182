"""The processes of a run. One process is not a special case: its sums are its own values."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class Mesh:
    """This process among those of the run: `rank` of `size`, on `device`."""

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and speaks to the user."""
        return self.rank == 0

    def sum(self, value: Tensor) -> Tensor:
        """The sum over all processes, equal on each."""
        if self.size > 1:
            value = value.to(self.device, copy=True)
            dist.all_reduce(value)
        return value

    def agree(self, value: Any) -> Any:
        """The main process's value, on every process."""
        if self.size > 1:
            box = [value]
            dist.broadcast_object_list(box, src=0)
            value = box[0]
        return value

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on any process."""
        return bool(self.sum(torch.tensor(float(flag))) > 0)

    def any_of(self, *flags: bool) -> list[bool]:
        """Which of the flags are set on any process; they are sent together."""
        return [bool(count) for count in self.sum(torch.tensor(list(map(float, flags)))).tolist()]

    def wait(self) -> None:
        """Until every process is here."""
        if self.size > 1:
            dist.barrier()


def start_mesh(device: str) -> Mesh:
    """The mesh that torchrun set up in the environment, or one process."""
    size, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    local = int(os.environ.get("LOCAL_RANK", "0"))
    where = torch.device(device, local) if device == "cuda" else torch.device(device)
    if device == "cuda":
        torch.cuda.set_device(where)
    if size > 1 and not dist.is_initialized():
        # the main process may wait for room on a full disk, while the others wait for it
        dist.init_process_group("nccl" if device == "cuda" else "gloo", timeout=timedelta(minutes=30))
    return Mesh(rank, size, where)


def stop_mesh() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()
