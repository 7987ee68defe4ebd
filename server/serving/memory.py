"""A budget of memory that all streams share for the histories of their chunks, which are held until the answer."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Iterable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

from server.core.history import History

FIRST_GUESS_BYTES = 64 * 1024
"""Bytes a user before any history was seen: one of 500 events."""
WORKING_COPIES = 3
"""A history takes this multiple of its stored size while its features are made."""


class MemoryBudget:
    """Bytes that may be held at once. Who finds no room waits, in the order of asking. Used from one event loop."""

    def __init__(self, total_bytes: int) -> None:
        self._total = total_bytes
        self.held_bytes = 0
        """Bytes that are held now, at most `total_bytes`."""
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    @asynccontextmanager
    async def hold(self, size: int) -> AsyncIterator[None]:
        """Hold `size` bytes until the block ends; more than the whole budget counts as the whole budget."""
        size = min(size, self._total)
        await self._take(size)
        try:
            yield
        finally:
            self.held_bytes -= size
            self._admit()

    async def _take(self, size: int) -> None:
        ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((size, ready))
        self._admit()
        try:
            await ready
        except asyncio.CancelledError:
            if ready.done() and not ready.cancelled():  # admitted and cancelled at once
                self.held_bytes -= size
            self._admit()
            raise

    def _admit(self) -> None:
        while self._waiting:
            size, ready = self._waiting[0]
            if not ready.cancelled():
                if self.held_bytes + size > self._total:
                    return
                self.held_bytes += size
                ready.set_result(None)
            self._waiting.popleft()


class HistoryMemory:
    """A `MemoryBudget` for users whose histories are still to be read: their size is taken from those read lately."""

    def __init__(self, total_bytes: int) -> None:
        self._budget = MemoryBudget(total_bytes)
        self._user_bytes = float(FIRST_GUESS_BYTES)

    @property
    def held_bytes(self) -> int:
        """Bytes that are held now."""
        return self._budget.held_bytes

    def hold(self, user_count: int) -> AbstractAsyncContextManager[None]:
        """Hold memory for the histories of so many users until the block ends."""
        return self._budget.hold(int(user_count * self._user_bytes))

    def add(self, histories: Iterable[History]) -> None:
        """Learn the size of a user from histories that were read."""
        sizes = [WORKING_COPIES * len(history.row) for history in histories]
        if sizes:
            self._user_bytes += 0.3 * (sum(sizes) / len(sizes) - self._user_bytes)
