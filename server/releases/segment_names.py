"""Follows `segments.toml`, the names that people gave to segments. While it is damaged, the last names stay."""

import asyncio
import logging
from pathlib import Path

from server.core.errors import DamagedSegmentNotes
from server.core.release import SegmentNames
from server.core.repository.segment_notes import SEGMENT_NOTES, read_segment_notes

log = logging.getLogger(__name__)

POLL_SECONDS = 0.5
"""Time between two looks at the file; it bounds how late a server answers with a new name."""


class SegmentNamesWatcher:
    """Keeps `names`, which all releases of the server share, equal to the file."""

    def __init__(self, repository: Path) -> None:
        self._repository = repository
        self._stamp: tuple[int, ...] | None = None
        self.names = SegmentNames()

    async def follow(self, stop: asyncio.Event) -> None:
        """Refresh until `stop` is set. Never ends by an exception."""
        while not stop.is_set():
            try:
                await asyncio.to_thread(self.refresh)
            except Exception:
                log.exception("the names of segments could not be followed; trying again")
            try:
                await asyncio.wait_for(stop.wait(), POLL_SECONDS)
            except TimeoutError:
                continue

    def refresh(self) -> None:
        """Read the file if it has changed."""
        stamp = self._look()
        if stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            self.names.by_id = read_segment_notes(self._repository).names()
        except DamagedSegmentNotes as error:
            log.error("%s; the names before it stay in force", error)

    def _look(self) -> tuple[int, ...] | None:
        try:
            stat = (self._repository / SEGMENT_NOTES).stat()
        except OSError:
            return None
        return stat.st_mtime_ns, stat.st_ino, stat.st_size
