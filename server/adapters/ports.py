"""The Protocols of the encoder and of the history store. Each implementation passes the same contract tests."""

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from server.core.histories import Histories
from server.core.history import Event, History


class EncoderClient(Protocol):
    """Turns padded histories into user embeddings, for one release at a time (Triton)."""

    async def encode(
        self, release: int, inputs: Mapping[str, NDArray[np.generic]], timeout_seconds: float
    ) -> NDArray[np.float32]:
        """Return user embeddings, float32 (B, D), for inputs of shape (B, L) each.

        `release` is the Triton model version. Raises `ReleaseNotLoaded` when Triton has not loaded it, and
        `EncoderUnavailable` when there is no answer within `timeout_seconds`, or an answer of the wrong shape.
        """
        ...

    def longest_silence(self, since: float) -> float:
        """Seconds of the longest time from the monotonic time `since` until now without an answer to any call.

        An error of a model is an answer too.
        """
        ...

    async def load(self, releases: Sequence[int], keep: Callable[[], Collection[int]] | None = None) -> None:
        """Load these releases and unload all others; a release that is loaded already answers throughout.

        Of a Triton that other servers use too, those of `keep` that are loaded or being loaded stay; it is called, in a
        thread, when no other server loads: while this one waited, others may have loaded new releases. Raises
        `EncoderUnavailable` with Triton's reason when one of `releases` cannot be loaded; the others answer.
        """
        ...

    async def inference_counts(self) -> dict[int, int]:
        """Loaded releases with the number of inferences so far, of all callers. Raises `EncoderUnavailable`."""
        ...

    async def is_ready(self, release: int) -> bool:
        """Whether Triton reports this release as ready. Never raises."""
        ...

    async def close(self) -> None:
        """Close the connection."""
        ...


class Recorded(NamedTuple):
    """What became of recorded events; the four numbers of events add up to those that were given."""

    stored: int = 0
    duplicates: int = 0
    too_old: int = 0
    """Events older than all that the store keeps of the user."""
    erased: tuple[int, ...] = ()
    """Places, in what was given, of events from before the user's erasure; they are not stored."""


class HistoryStore(Protocol):
    """Stores the newest events of each user. No method blocks the event loop for longer than a memory read."""

    @property
    def answers_at_once(self) -> bool:
        """Whether `get` never waits, so that it needs no limit of time."""
        ...

    async def get(self, user_id: str) -> History:
        """The user's history, `EMPTY` when nothing is stored. Raises `StoreUnavailable`."""
        ...

    async def get_many(self, user_ids: Sequence[str]) -> Histories:
        """One history per id, in the order of the ids; None for a damaged one. Raises `StoreUnavailable`."""
        ...

    async def record(self, user_id: str, events: Sequence[Event]) -> Recorded:
        """Store events durably; the next `get` sees them.

        Raises `StoreUnavailable`, and `Overloaded` when too many writes wait. A call that was cancelled may have
        stored its events; they can be recorded again.
        """
        ...

    async def erase(self, user_id: str) -> int:
        """Delete a user durably; returns the number of erased events. Raises `StoreUnavailable`.

        Events from before the erasure are not stored again, by `record` or by `bulk_load`.
        """
        ...

    async def erasure_mark(self, user_id: str) -> bytes:
        """The mark that names the user in the store's erasures: a hash under its key. Raises `StoreUnavailable`."""
        ...

    async def bulk_load(self, source: Path, on_progress: "LoadProgress") -> int:
        """Load a prepared log into the store once; returns the number of users, 0 for a log that was loaded before.

        A log is known by its content, whatever it is called.

        `source` is Parquet with `user_id, item_id, action` (strings), `value` (float) and `timestamp`
        (int64, milliseconds), as `segrec-train prepare` writes it. Can be repeated after an interruption.
        """
        ...

    async def close(self) -> None:
        """Flush and close."""
        ...


class LoadProgress(Protocol):
    """Receives the progress of a long step."""

    def __call__(self, done: int, total: int) -> None:
        """Report that `done` of `total` units are done."""
        ...
