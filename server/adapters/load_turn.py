"""Turns of servers that load releases into one Triton: each load names all versions, so two at once undo each other."""

import asyncio
import fcntl
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import IO

log = logging.getLogger(__name__)

TURN_SECONDS = 30.0
"""Longest wait for a turn. After it the load goes on all the same: somebody may hold the lock who is frozen."""
PAUSE_SECONDS = 0.05


class LoadTurn:
    """A lock on a file that all servers of a model repository see.

    Where the repository cannot be written there are no turns; a release that another server's load has dropped is
    then loaded again as soon as it is missed.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    @asynccontextmanager
    async def __call__(self) -> AsyncIterator[None]:
        """Hold the lock until the block ends."""
        try:
            file = await asyncio.to_thread(self._path.open, "a")
        except OSError:
            yield
            return
        with file:
            if not await self._is_mine(file):
                log.warning("%s is held by another server for %g s: loading all the same", self._path, TURN_SECONDS)
            yield

    async def _is_mine(self, file: IO[str]) -> bool:
        """Wait for the lock, which ends with the file."""
        for _ in range(round(TURN_SECONDS / PAUSE_SECONDS)):
            try:
                await asyncio.to_thread(fcntl.flock, file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                await asyncio.sleep(PAUSE_SECONDS)
            except OSError:  # a file system without locks
                return True
            else:
                return True
        return False
