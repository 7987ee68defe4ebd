"""The processes that train together, as torchrun tells it through the environment; one process without it."""

import os
from dataclasses import dataclass
from typing import Self

from training.errors import ConfigError


@dataclass(frozen=True, slots=True)
class World:
    """This process is number `rank` of `size`, of which `local_size` are on this machine."""

    rank: int = 0
    size: int = 1
    local_size: int = 1

    @classmethod
    def from_environment(cls) -> Self:
        """What torchrun says. Raises ConfigError where its machines run unequal numbers of processes."""
        if "TORCHELASTIC_RUN_ID" not in os.environ:
            return cls()
        rank, size, local_size = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"))
        if size % local_size:
            raise ConfigError(f"{size} processes cannot be {local_size} on each machine; start as many on every one.")
        return cls(rank, size, local_size)

    @property
    def is_first(self) -> bool:
        """Whether this is the one process that writes files and shows progress."""
        return self.rank == 0

    def of(self, device: str) -> str:
        """What computes, for people: `cpu`, or `4 × cuda`."""
        return device if self.size == 1 else f"{self.size} × {device}"

    @property
    def machines(self) -> int:
        """Machines at work."""
        return self.size // self.local_size
