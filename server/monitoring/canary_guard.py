"""Takes a canary out of the traffic when its figures exceed the bounds of its guard."""

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
"""Time between two checks of the figures against the bounds."""
LOCK_SECONDS = 2.0
"""Longest wait for another program that changes the traffic; then the canary is withheld on this server alone."""


class GuardRouting(Protocol):
    """The routing of this server, as far as the guard needs it; `ReleaseRegistry` implements it."""

    @property
    def traffic(self) -> Traffic:
        """The traffic in force."""
        ...

    def withhold_canary(self, traffic: Traffic, reason: str) -> None:
        """Give the canary of this traffic no users on this server, until another traffic is in force."""
        ...


def verdict(guard: Guard, figures: Figures) -> str:
    """The first bound that the figures exceed, as part of a sentence; empty when the figures are within all bounds.

    A bound counts only over at least `guard.min_answer_count` answers.
    """
    watched = (
        ("error share", figures.error_share, guard.max_error_share, figures.request_count),
        ("degraded share", figures.degraded_share, guard.max_degraded_share, figures.request_count),
        ("unconfident share", figures.unconfident_share, guard.max_unconfident_share, figures.placed_count),
        ("p99", figures.p99_seconds, guard.max_p99_seconds, figures.timed_count),
    )
    for name, value, bound, count in watched:
        if bound is not None and count >= guard.min_answer_count and value > bound:
            unit = " s" if name == "p99" else ""
            over = f"over {count:,} answers in {figures.window_seconds:.0f} s"
            return f"its {name} is {value:.3g}{unit}, above {bound:g}{unit}, {over}"
    return ""


class CanaryGuard:
    """Checks a canary against the bounds of its guard, for the first time after one whole window.

    Only unary calls count: a nightly batch on a busy machine says little about the canary.
    """

    def __init__(
        self,
        repository: Path,
        routing: GuardRouting,
        stats: ReleaseStats,
        who: str = "",
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self._repository = repository
        self._routing = routing
        self._stats = stats
        self._who = who or f"guard of {socket.gethostname()}"
        self._clock = clock
        self._watched: tuple[int, Guard] | None = None
        self._watched_since = 0.0
        self._withheld_traffic: Traffic | None = None
        self.trip_count = 0
        """Number of canaries that this server took out."""

    @property
    def is_withholding(self) -> bool:
        """Whether the canary is withheld on this server alone, because the repository could not be written."""
        return self._withheld_traffic is not None and self._withheld_traffic == self._routing.traffic

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
        """Check the canary once; take the canary out when a bound is exceeded."""
        traffic = self._routing.traffic
        guard = traffic.guard
        if guard is None or self.is_withholding:
            self._watched = None
            return
        if self._watched != (traffic.canary, guard):
            self._watched, self._watched_since = (traffic.canary, guard), self._clock()
        if self._clock() - self._watched_since < guard.window_seconds:
            return
        figures = self._stats.unary_figures(traffic.canary, guard.window_seconds)
        exceeded = verdict(guard, figures) if figures else ""
        if exceeded:
            await self._take_out(traffic, f"release {traffic.canary} is taken out: {exceeded}")

    async def _take_out(self, traffic: Traffic, reason: str) -> None:
        def without_canary(before: Traffic) -> Traffic:
            if (before.canary, before.guard) != (traffic.canary, traffic.guard):
                raise _CanaryChanged("the canary or its guard has changed")
            return before.with_answering(shadow=before.shadow)

        try:
            await asyncio.to_thread(
                change_traffic, self._repository, without_canary, "guard", self._who, reason, LOCK_SECONDS
            )
        except _CanaryChanged:
            return
        except OSError as error:
            self._withheld_traffic = traffic
            self._routing.withhold_canary(traffic, reason)
            log.error(
                "%s, on this server alone, because %s cannot be written (%s): run `segrec-train rollback`",
                *(reason, self._repository, error.strerror),
            )
        else:
            log.error("%s; release %d answers all users", reason, traffic.stable)
        self.trip_count += 1
        self._watched = None


class _CanaryChanged(Exception):
    """The canary or its guard is no longer the one that was checked."""
