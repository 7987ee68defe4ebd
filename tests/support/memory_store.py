"""A `HistoryStore` in a dict, for tests of what uses one. It passes the stores' contract tests."""

import asyncio
from collections.abc import Callable, Sequence
from itertools import count
from pathlib import Path

from server.adapters.bulk_load import BootstrapLog, Users, load
from server.adapters.history_rows import Kept, Retention, loaded_row, read_row, recorded_row
from server.adapters.ports import LoadProgress, Recorded
from server.core.erasure import KEY_BYTES, erasure_mark
from server.core.errors import StoreUnavailable
from server.core.histories import Histories
from server.core.history import Event, History, event_count_of


class MemoryStore:
    """Set `unavailable` to make every call raise `StoreUnavailable`, and `gate` to make every call wait for it.

    The clock of erasures stands at 1970.
    """

    answers_at_once = False

    def __init__(
        self,
        history_limit: int = 1000,
        clock: Callable[[], float] = lambda: 0.0,
        retention_days: int | None = None,
    ) -> None:
        self.rows: dict[str, bytes] = {}
        self.unavailable = False
        self.gate: asyncio.Event | None = None
        self.call_count = 0
        self._limit = history_limit
        self._revisions = count(1)
        self._erased_ms: dict[str, int] = {}
        self._clock = clock
        self._retention = Retention(retention_days, clock)
        self._loaded: set[str] = set()

    async def get(self, user_id: str) -> History:
        await self._begin()
        return self._retention.view(read_row(self.rows.get(user_id)))

    async def get_many(self, user_ids: Sequence[str]) -> Histories:
        await self._begin()
        return self._retention.views(Histories.read(self.rows.get(user_id) for user_id in user_ids))

    async def record(self, user_id: str, events: Sequence[Event]) -> Recorded:
        await self._begin()
        row, kept = self.rows.get(user_id), self._kept(user_id)
        new_row, recorded = recorded_row(row, events, kept, next(self._revisions))
        if new_row is not None:
            self.rows[user_id] = new_row
        return recorded

    async def erase(self, user_id: str) -> int:
        await self._begin()
        self._erased_ms[user_id] = int(self._clock() * 1000)
        row = self.rows.pop(user_id, None)
        return 0 if row is None else event_count_of(row)

    async def erasure_mark(self, user_id: str) -> bytes:
        self._check()
        return erasure_mark(b"k" * KEY_BYTES, user_id)

    async def bulk_load(self, source: Path, on_progress: LoadProgress) -> int:
        event_log = BootstrapLog.open(source, self._limit)
        self._check()
        if event_log.mark in self._loaded:
            return 0
        loaded = await load(event_log, self._clock(), self._load_users, on_progress)
        self._loaded.add(event_log.mark)
        return loaded

    async def close(self) -> None:
        self.unavailable = True

    async def _load_users(self, users: Users) -> None:
        self._check()
        for user_id, added in users:
            row = loaded_row(self.rows.get(user_id), added, self._kept(user_id), next(self._revisions))
            if row is not None:
                self.rows[user_id] = row

    def _kept(self, user_id: str) -> Kept:
        return Kept(self._limit, self._retention.oldest_ms, self._erased_ms.get(user_id))

    async def _begin(self) -> None:
        self.call_count += 1
        if self.gate is not None:
            await self.gate.wait()
        self._check()

    def _check(self) -> None:
        if self.unavailable:
            raise StoreUnavailable("the history store is switched off")
