"""Follows `traffic.json`. A damaged one is named, and the last good state stays in force until it is mended."""

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path

from server.core.errors import DamagedTraffic
from server.core.repository.traffic import TRAFFIC, Traffic, last_traffic, read_traffic

log = logging.getLogger(__name__)

POLL_SECONDS = 0.2
"""How often the file is looked at: a change is in force everywhere well within a second."""


class TrafficWatcher:
    """The traffic of a repository, read anew when the file has changed."""

    def __init__(self, repository: Path) -> None:
        self._repository = repository
        self._signature: tuple[int, ...] | None = None
        self._has_read = False
        self._turn = asyncio.Lock()
        self.on_change: list[Callable[[Traffic], None]] = []
        """Called with the traffic that is in force from now on."""
        self.traffic = Traffic()
        self.failure = ""
        """What is wrong with the file; empty while nothing is."""

    async def follow(self, stop: asyncio.Event) -> None:
        """Refresh until `stop` is set. Never ends by an exception."""
        while not stop.is_set():
            try:
                await self.refresh()
            except Exception:
                log.exception("looking at the traffic failed; trying again")
            try:
                await asyncio.wait_for(stop.wait(), POLL_SECONDS)
            except TimeoutError:
                continue

    async def refresh(self) -> None:
        """Put in force what the file says."""
        async with self._turn:
            if not await asyncio.to_thread(self._look):
                return
            log.info("traffic: %s", described(self.traffic))
            for callback in self.on_change:
                callback(self.traffic)

    def _look(self) -> bool:
        """Read the file when it has changed; whether another traffic is in force now."""
        signature = self._stat()
        if self._has_read and signature == self._signature:
            return False
        before = self.traffic if self._has_read else None
        self.traffic = self._read(is_first=before is None)
        self._signature, self._has_read = signature, True
        return self.traffic != before

    def _read(self, is_first: bool) -> Traffic:
        try:
            traffic = read_traffic(self._repository)
        except DamagedTraffic as error:
            if str(error) != self.failure:
                log.error("%s; what was in force before stays in force", error)
            self.failure = str(error)
            return self._last() if is_first else self.traffic
        if self.failure:
            log.info("%s can be read again", self._repository / TRAFFIC)
        self.failure = ""
        return traffic

    def _last(self) -> Traffic:
        try:
            return last_traffic(self._repository)
        except OSError as error:
            log.error("the audit log cannot be read either (%s): the newest release answers", error.strerror)
            return Traffic()

    def _stat(self) -> tuple[int, ...] | None:
        try:
            stat = (self._repository / TRAFFIC).stat()
        except OSError:
            return None
        return stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino, stat.st_size


def described(traffic: Traffic) -> str:
    """Who answers whom, in a sentence without full stop."""
    told = [f"release {traffic.stable} answers" if traffic.stable else "the newest good release answers"]
    if traffic.canary:
        told.append(f"release {traffic.canary} answers {traffic.canary_percent:g} % of the users as its canary")
    if traffic.shadow:
        told.append(f"release {traffic.shadow} is computed beside it")
    by = f"; set by {traffic.changed_by}" if traffic.changed_by else ""
    why = f": {traffic.reason}" if traffic.reason else ""
    return ", ".join(told) + by + why
