"""The processes that train together, read from the environment that torchrun sets; one process without torchrun."""

import os
from dataclasses import dataclass
from typing import Self

from training.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Processes:
    """This process is number `rank` of `count`, of which `local_count` are on this machine."""

    rank: int = 0
    count: int = 1
    local_count: int = 1

    @classmethod
    def from_environment(cls) -> Self:
        """Raises ConfigError where the machines run unequal numbers of processes."""
        if "TORCHELASTIC_RUN_ID" not in os.environ:
            return cls()
        rank, count, local_count = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"))
        if count % local_count:
            raise ConfigError(
                f"{count} processes cannot be {local_count} on each machine; start the same number on every machine."
            )
        return cls(rank, count, local_count)

    @property
    def is_first(self) -> bool:
        """Whether this is the one process that writes files and shows progress."""
        return self.rank == 0

    @property
    def machine_count(self) -> int:
        """Machines that train."""
        return self.count // self.local_count

    def describe(self, device: str) -> str:
        """The devices that compute, for people: `cpu`, or `4 × cuda`."""
        return device if self.count == 1 else f"{self.count} × {device}"
