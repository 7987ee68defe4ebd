"""The Protocols behind which all I/O of the server lives. Each implementation passes the same contract tests.

The errors named here are those of `server.core.errors`.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from server.core.history import Event, History


class EncoderClient(Protocol):
    """Turns padded histories into user embeddings, for one release at a time (Triton)."""

    async def encode(
        self, release: int, inputs: Mapping[str, NDArray[np.generic]], timeout_seconds: float
    ) -> NDArray[np.float32]:
        """Return user embeddings, float32 (B, D), for inputs of shape (B, L) each.

        `release` is the Triton model version. Raises `EncoderUnavailable` when there is no answer
        within `timeout_seconds`, when the version is not loaded, or when the answer has the wrong shape.
        """
        ...

    async def load(self, releases: Sequence[int]) -> None:
        """Make exactly these releases answer, keeping those that already do answering throughout.

        Raises `EncoderUnavailable` with Triton's reason when one cannot be loaded; the others go on.
        """
        ...

    async def is_ready(self, release: int) -> bool:
        """Whether Triton says that this release answers. Never raises."""
        ...

    async def close(self) -> None:
        """Drop the connection."""
        ...


class HistoryStore(Protocol):
    """Keeps each user's newest events. Methods never block the event loop for longer than a memory read."""

    async def get(self, user_id: str) -> History:
        """The user's history, `EMPTY` when nothing is stored. Raises `StoreUnavailable`."""
        ...

    async def get_many(self, user_ids: Sequence[str]) -> list[History | None]:
        """One history per id, in the order asked; None where one is damaged. Raises `StoreUnavailable`."""
        ...

    async def record(self, user_id: str, events: Sequence[Event]) -> tuple[int, int]:
        """Store events durably; returns (stored, duplicates). The next `get` sees them. Raises `StoreUnavailable`."""
        ...

    async def erase(self, user_id: str) -> int:
        """Delete all that is stored of a user, durably; returns the events erased. Raises `StoreUnavailable`."""
        ...

    async def bulk_load(self, source: Path, on_progress: "LoadProgress") -> int:
        """Fill the store from a prepared log once; returns the users loaded, 0 when this log is already in.

        `source` is Parquet with `user_id, item_id, action` (strings), `value` (float) and `timestamp`
        (int64, milliseconds), as `segrec-train prepare` writes it. Safe to repeat after an interruption.
        """
        ...

    async def close(self) -> None:
        """Flush and close."""
        ...


class LoadProgress(Protocol):
    """Told how far a long step is."""

    def __call__(self, done: int, total: int) -> None:
        """`done` of `total` units are done."""
        ...
