"""Follows `traffic.json`. While the file is damaged, the last good traffic stays in force."""

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path

from segrec.traffic import percent_of

from server.core.errors import DamagedTraffic
from server.core.repository.traffic import TRAFFIC, Traffic, last_traffic, read_traffic

log = logging.getLogger(__name__)

POLL_SECONDS = 0.2
"""Time between two looks at the file; it bounds how late a server applies a change."""


class TrafficWatcher:
    """The traffic of a repository; reads the file again when it has changed."""

    def __init__(self, repository: Path) -> None:
        self._repository = repository
        self._signature: tuple[int, ...] | None = None
        self._has_read = False
        self._lock = asyncio.Lock()
        self.on_change: list[Callable[[Traffic], None]] = []
        """Called with each new traffic."""
        self.traffic = Traffic()
        self.failure = ""
        """Why the file cannot be read; empty while it can."""

    async def follow(self, stop: asyncio.Event) -> None:
        """Refresh until `stop` is set. Never ends by an exception."""
        while not stop.is_set():
            try:
                await self.refresh()
            except Exception:
                log.exception("the traffic could not be followed; trying again")
            try:
                await asyncio.wait_for(stop.wait(), POLL_SECONDS)
            except TimeoutError:
                continue

    async def refresh(self) -> None:
        """Read the file now and put its traffic in force."""
        async with self._lock:
            if not await asyncio.to_thread(self._read_if_changed):
                return
            log.info("traffic: %s", describe(self.traffic))
            for callback in self.on_change:
                callback(self.traffic)

    def _read_if_changed(self) -> bool:
        """Read the file when it has changed; returns whether the traffic is different now."""
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
                log.error("%s; the traffic before it stays in force", error)
            self.failure = str(error)
            return self._traffic_from_audit() if is_first else self.traffic
        if self.failure:
            log.info("%s can be read again", self._repository / TRAFFIC)
        self.failure = ""
        return traffic

    def _traffic_from_audit(self) -> Traffic:
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


def describe(traffic: Traffic) -> str:
    """The traffic as a log line, without a full stop."""
    parts = [f"release {traffic.stable} answers" if traffic.stable else "the newest good release answers"]
    if traffic.canary:
        parts.append(
            f"release {traffic.canary} answers {percent_of(traffic.canary_share):g} % of the users as its canary"
        )
    if traffic.shadow:
        parts.append(f"release {traffic.shadow} is computed as its shadow")
    by = f"; set by {traffic.changed_by}" if traffic.changed_by else ""
    why = f": {traffic.reason}" if traffic.reason else ""
    return ", ".join(parts) + by + why
