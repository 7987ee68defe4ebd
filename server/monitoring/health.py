"""Decides whether the server's health says SERVING: a release answers, and neither Triton nor the store is away."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from time import monotonic

from server.core.errors import StoreUnavailable

log = logging.getLogger(__name__)

CHECK_SECONDS = 1.0
"""Time between two checks."""
STORE_SECONDS = 2.0
"""Longest wait for the answer of the history store to a check."""
PROBE_USER = "segrec-health-check"
"""A user id for the check of the history store; nothing is stored under it."""


class HealthWatch:
    """Says SERVING from the first active release on, except while a part has been away for `patience_seconds`."""

    def __init__(
        self,
        is_active: Callable[[], bool],
        encoder_answers: Callable[[], bool],
        ask_store: Callable[[str], Awaitable[object]],
        say: Callable[[bool], Awaitable[None]],
        patience_seconds: float,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        """`ask_store` reads a user's history, `say` receives each change; `clock` gives monotonic seconds."""
        self._is_active = is_active
        self._encoder_answers = encoder_answers
        self._ask_store = ask_store
        self._say = say
        self._patience_seconds = patience_seconds
        self._clock = clock
        self._away_since: dict[str, float] = {}
        self._says_serving = False
        self.changed = asyncio.Event()
        """Set it to have the next check made now."""

    async def watch(self, stop: asyncio.Event) -> None:
        """Check once a second until `stop` is set. Never ends by an exception."""
        stopping = asyncio.ensure_future(stop.wait())
        while not stop.is_set():
            self.changed.clear()
            try:
                await self.check()
            except Exception:
                log.exception("the health could not be checked; trying again")
            waking = asyncio.ensure_future(self.changed.wait())
            await asyncio.wait((stopping, waking), timeout=CHECK_SECONDS, return_when=asyncio.FIRST_COMPLETED)
            waking.cancel()

    async def check(self) -> None:
        """Check once; tell `say` when the health changes."""
        if not self._is_active():
            return
        self._note("Triton", self._encoder_answers())
        self._note("the history store", await self._store_answers())
        now = self._clock()
        away = [part for part, since in self._away_since.items() if now - since >= self._patience_seconds]
        if bool(away) is not self._says_serving:
            return
        if away:
            log.error("health says NOT_SERVING: %s has been away for %g s", away[0], self._patience_seconds)
        else:
            log.info("health says SERVING")
        self._says_serving = not away
        await self._say(self._says_serving)

    def _note(self, part: str, answers: bool) -> None:
        if answers:
            self._away_since.pop(part, None)
        else:
            self._away_since.setdefault(part, self._clock())

    async def _store_answers(self) -> bool:
        try:
            await asyncio.wait_for(self._ask_store(PROBE_USER), STORE_SECONDS)
        except (StoreUnavailable, TimeoutError):
            return False
        return True
