"""The processes of one training: one, or those that `torchrun` has started on one machine or several."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import distributed, nn

LOGGER = logging.getLogger("yolonas")

_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK")


@dataclass(frozen=True)
class Processes:
    """Which of how many this one is. With one process nothing here communicates."""

    rank: int = 0
    world: int = 1
    local_rank: int = 0  # on this machine: the number of the GPU

    @classmethod
    def of_environment(cls) -> Processes:
        """What `torchrun` says in `RANK`, `WORLD_SIZE` and `LOCAL_RANK`; without it the only process.

        Raises:
            ValueError: some of these variables are missing or no numbers that fit together.
        """
        given = {name: os.environ[name] for name in _VARIABLES if name in os.environ}
        if "RANK" not in given and "WORLD_SIZE" not in given:
            return cls()
        try:
            rank, world, local = (int(given[name]) for name in _VARIABLES)
        except (KeyError, ValueError):
            raise ValueError(
                f"train: RANK, WORLD_SIZE and LOCAL_RANK must be as torchrun sets them, got {given}"
            ) from None
        if not 0 <= rank < world or not 0 <= local <= rank:
            raise ValueError(f"train: RANK, WORLD_SIZE and LOCAL_RANK must be as torchrun sets them, got {given}")
        return cls(rank, world, local)

    @property
    def is_first(self) -> bool:
        """Whether this is the one that prints and writes."""
        return self.rank == 0

    @contextmanager
    def together(self, device: torch.device) -> Iterator[None]:
        """Connects all processes for the block: over NCCL on GPUs, over gloo elsewhere."""
        if self.world == 1 or distributed.is_initialized():
            yield
            return
        if device.type == "cuda":
            torch.cuda.set_device(device)
        distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
        try:
            yield
        finally:
            distributed.destroy_process_group()

    @contextmanager
    def first_tells(self) -> Iterator[None]:
        """For a block in which all would log the same: only the first process does."""
        level = LOGGER.level
        if not self.is_first:
            LOGGER.setLevel(logging.ERROR)
        try:
            yield
        finally:
            LOGGER.setLevel(level)

    def from_first(self, value: Any) -> Any:
        """What the first process has, in all of them."""
        if self.world == 1:
            return value
        values = [value]
        distributed.broadcast_object_list(values)
        return values[0]

    def gathered(self, value: Any) -> list[Any]:
        """What each process has, in all of them, by rank."""
        if self.world == 1:
            return [value]
        values: list[Any] = [None] * self.world
        distributed.all_gather_object(values, value)
        return values

    def wait(self) -> None:
        """Until all are here."""
        if self.world > 1:
            distributed.barrier()

    @torch.no_grad()
    def synchronise_(self, model: nn.Module) -> None:
        """Gives the networks of all processes the weights and buffers of the first one's."""
        if self.world > 1:
            for value in model.state_dict().values():
                distributed.broadcast(value, 0)
