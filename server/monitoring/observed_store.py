"""A history store whose operations are timed for the metrics and seen in traces."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from time import monotonic

from server import tracing
from server.adapters.ports import HistoryStore, LoadProgress, Recorded
from server.core.histories import Histories
from server.core.history import Event, History
from server.monitoring.metrics import Metrics


class ObservedStore:
    """A `HistoryStore` that passes each call on to `store`."""

    def __init__(self, store: HistoryStore, metrics: Metrics) -> None:
        self._store = store
        self._seconds = {name: metrics.store_seconds.labels(name) for name in ("get", "get_many", "record", "erase")}

    @contextmanager
    def _timed(self, operation: str) -> Iterator[None]:
        start = monotonic()
        try:
            with tracing.span("store", operation=operation):
                yield
        finally:
            self._seconds[operation].observe(monotonic() - start)

    @property
    def answers_at_once(self) -> bool:
        return self._store.answers_at_once

    async def get(self, user_id: str) -> History:
        start = monotonic()
        try:
            with tracing.span("store", operation="get"):
                return await self._store.get(user_id)
        finally:
            self._seconds["get"].observe(monotonic() - start)

    async def get_many(self, user_ids: Sequence[str]) -> Histories:
        with self._timed("get_many"):
            return await self._store.get_many(user_ids)

    async def record(self, user_id: str, events: Sequence[Event]) -> Recorded:
        with self._timed("record"):
            return await self._store.record(user_id, events)

    async def erase(self, user_id: str) -> int:
        with self._timed("erase"):
            return await self._store.erase(user_id)

    async def erasure_mark(self, user_id: str) -> bytes:
        return await self._store.erasure_mark(user_id)

    async def bulk_load(self, source: Path, on_progress: LoadProgress) -> int:
        return await self._store.bulk_load(source, on_progress)

    async def close(self) -> None:
        await self._store.close()
