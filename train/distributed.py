"""The processes that train together, as one of them sees the others. Alone, every operation is the identity."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")

# How long a process waits for the others in a collective: exports and checkpoints of rank 0 lie within.
_TIMEOUT: Final = timedelta(minutes=10)


@dataclass(frozen=True)
class World:
    """Rank and size over all hosts, and within this host."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1

    @classmethod
    def join(cls, env: Mapping[str, str] = os.environ) -> World:
        """Join the processes that torchrun started with this one; without torchrun's variables, stay alone."""
        if int(env.get("WORLD_SIZE", "1")) == 1:
            return cls()
        world = cls(
            rank=int(env["RANK"]),
            size=int(env["WORLD_SIZE"]),
            local_rank=int(env["LOCAL_RANK"]),
            local_size=int(env["LOCAL_WORLD_SIZE"]),
        )
        if torch.cuda.is_available():
            torch.cuda.set_device(world.device)
        # Flags and figures travel over gloo: they live on the CPU, whatever the gradients do.
        dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", timeout=_TIMEOUT)
        return world

    def leave(self) -> None:
        """Wait for the others, rank 0's saving included, and part."""
        if self.size > 1:
            dist.barrier()
            dist.destroy_process_group()

    @property
    def device(self) -> torch.device:
        return torch.device("cuda", self.local_rank) if torch.cuda.is_available() else torch.device("cpu")

    @property
    def leads(self) -> bool:
        """Rank 0 alone writes and prints."""
        return self.rank == 0

    def say(self, text: str) -> None:
        """Print one line, once for all processes."""
        if self.leads:
            print(text, flush=True)

    def any(self, *flags: bool) -> tuple[bool, ...]:
        """For each flag, whether it is up in any process; the same answer in all."""
        if self.size == 1:
            return flags
        tensor = torch.tensor(flags, dtype=torch.int32)
        dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
        return tuple(map(bool, tensor.tolist()))

    def sum(self, figures: Tensor) -> Tensor:
        """Sum over the processes, on the CPU."""
        figures = figures.detach().cpu()
        if self.size > 1:
            dist.all_reduce(figures)
        return figures

    def gather(self, item: T) -> list[T]:
        """Every process's item, by rank, in all of them."""
        if self.size == 1:
            return [item]
        items: list[Any] = [None] * self.size
        dist.all_gather_object(items, item)
        return items

    def from_first(self, item: T) -> T:
        """Rank 0's item, in every process."""
        if self.size == 1:
            return item
        items: list[Any] = [item]
        dist.broadcast_object_list(items, src=0)
        value: T = items[0]
        return value


ALONE: Final = World()
