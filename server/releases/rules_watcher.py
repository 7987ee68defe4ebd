"""Follows the operators' rules of the model repository. While they are damaged, the last good ones stay in force."""

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path
from time import time

from server.core.errors import SegrecError
from server.core.repository.rules import newest_version
from server.core.rules import Rules, RulesInForce

log = logging.getLogger(__name__)

POLL_SECONDS = 0.5
"""Time between two looks at the directory; it bounds how late a server follows a change, a start or an end."""


class RulesWatcher:
    """Keeps `in_force`, which all releases of the server share, equal to the newest version that holds now."""

    def __init__(self, repository: Path, clock: Callable[[], float] = time) -> None:
        self._repository = repository
        self._clock = clock
        self._version = 0
        self._failure = ""
        self._rules = Rules()
        self.in_force = RulesInForce()

    async def follow(self, stop: asyncio.Event) -> None:
        """Refresh until `stop` is set. Never ends by an exception."""
        while not stop.is_set():
            try:
                await asyncio.to_thread(self._read)
                self.in_force.put(self._rules, self._clock())
            except Exception:
                log.exception("the rules could not be followed; trying again")
            try:
                await asyncio.wait_for(stop.wait(), POLL_SECONDS)
            except TimeoutError:
                continue

    def refresh(self) -> None:
        """Read the newest version now and put it in force."""
        self._read()
        self.in_force.put(self._rules, self._clock())

    def _read(self) -> None:
        try:
            newest = newest_version(self._repository)
        except SegrecError as error:
            if str(error) != self._failure:
                log.error("%s; the rules before it stay in force", error)
            self._failure = str(error)
            return
        self._failure = ""
        if newest is not None and newest.version != self._version:
            self._version, self._rules = newest.version, newest.rules
            log.info("rules: version %d, %d rules", newest.version, len(newest.rules.rules))
