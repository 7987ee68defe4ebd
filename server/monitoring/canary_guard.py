"""Takes a canary out by itself when it passes the bounds that were set with it."""

import asyncio
import logging
import socket
from collections.abc import Callable
from pathlib import Path
from time import monotonic
from typing import Protocol

from server.core.repository.traffic import Guard, Traffic, change_traffic
from server.monitoring.release_stats import Figures, ReleaseStats

log = logging.getLogger(__name__)

CHECK_SECONDS = 1.0
"""How often the figures are held against the bounds."""


class GuardRouting(Protocol):
    """Says which release answers whom, on this server."""

    @property
    def traffic(self) -> Traffic:
        """What is in force."""
        ...

    def withhold_canary(self, traffic: Traffic, why: str) -> None:
        """Give this traffic's canary no users here, until another traffic is in force."""
        ...


def verdict(guard: Guard, figures: Figures) -> str:
    """Which bound the figures pass and by how much, as part of a sentence; empty while all is within bounds.

    A share of fewer answers than the guard asks for says nothing.
    """
    watched = (
        ("error share", figures.error_share, guard.max_error_share, figures.asked_count),
        ("degraded share", figures.degraded_share, guard.max_degraded_share, figures.asked_count),
        ("unconfident share", figures.unconfident_share, guard.max_unconfident_share, figures.placed_count),
        ("p99", figures.p99_seconds, guard.max_p99_seconds, figures.timed_count),
    )
    for name, found, bound, amount in watched:
        if bound is not None and amount >= guard.min_answer_count and found > bound:
            unit = " s" if name == "p99" else ""
            over = f"over {amount:,} answers in {figures.window_seconds:.0f} s"
            return f"its {name} is {found:.3g}{unit}, above {bound:g}{unit}, {over}"
    return ""


class CanaryGuard:
    """Holds a guarded canary against its bounds once it has been watched for the guard's whole window."""

    def __init__(
        self,
        repository: Path,
        routed: GuardRouting,
        live: ReleaseStats,
        who: str = "",
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self._repository = repository
        self._routed = routed
        self._live = live
        self._who = who or f"guard of {socket.gethostname()}"
        self._clock = clock
        self._watched: tuple[int, Guard] | None = None
        self._since = 0.0
        self._held: Traffic | None = None
        self.trip_count = 0
        """How often this server took a canary out."""

    @property
    def is_holding_out(self) -> bool:
        """Whether the canary is held out here alone, since the repository could not be written."""
        return self._held is not None and self._held == self._routed.traffic

    async def watch(self, stop: asyncio.Event) -> None:
        """Check once a second until `stop` is set. Never ends by an exception."""
        while not stop.is_set():
            try:
                await self.check()
            except Exception:
                log.exception("the guard could not check the canary; trying again")
            try:
                await asyncio.wait_for(stop.wait(), CHECK_SECONDS)
            except TimeoutError:
                continue

    async def check(self) -> None:
        """Take the canary out where a bound is passed."""
        traffic = self._routed.traffic
        guard = traffic.guard
        if guard is None or self.is_holding_out:
            self._watched = None
            return
        if self._watched != (traffic.canary, guard):
            self._watched, self._since = (traffic.canary, guard), self._clock()
        if self._clock() - self._since < guard.window_seconds:
            return
        figures = self._live.figures(traffic.canary, guard.window_seconds)
        why = verdict(guard, figures) if figures else ""
        if why:
            await self._take_out(traffic, f"release {traffic.canary} is taken out: {why}")

    async def _take_out(self, traffic: Traffic, reason: str) -> None:
        def without_canary(before: Traffic) -> Traffic:
            if (before.canary, before.guard) != (traffic.canary, traffic.guard):
                raise _Gone("somebody was quicker")
            return before.with_answering(shadow=before.shadow)

        try:
            await asyncio.to_thread(
                change_traffic, self._repository, without_canary, what="guard", who=self._who, reason=reason
            )
        except _Gone:
            return
        except OSError as error:
            self._held = traffic
            self._routed.withhold_canary(traffic, reason)
            log.error(
                "%s, on this server alone, since %s cannot be written (%s): take it out with `segrec-train rollback`",
                *(reason, self._repository, error.strerror),
            )
        else:
            log.error("%s; release %d answers all", reason, traffic.stable)
        self.trip_count += 1
        self._watched = None


class _Gone(Exception):
    """The canary was taken out, or is guarded otherwise, in the meantime."""
