"""Changes of the traffic that are asked of this server: in force here before it says so."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from server.core.errors import NotFound, ReadOnlyRepository
from server.core.repository.audit import What
from server.core.repository.traffic import Guard, Traffic, change_traffic, rolled_back
from server.releases.loader import Loader
from server.releases.registry import ReleaseRegistry
from server.releases.traffic_watcher import TrafficWatcher

LOAD_SECONDS = 60.0
"""Longest wait for releases that are not loaded yet."""


@dataclass(frozen=True, slots=True)
class TrafficGoal:
    """Which release shall answer whom; see `server.core.repository.traffic.Traffic`."""

    stable: int = 0
    canary: int = 0
    canary_percent: float = 0.0
    shadow: int = 0
    guard: Guard | None = None

    def numbers(self) -> dict[str, int]:
        """The releases it names, by the request's field."""
        named = {"stable_release": self.stable, "canary_release": self.canary, "shadow_release": self.shadow}
        return {f"traffic.{field}": number for field, number in named.items() if number}


@dataclass(frozen=True, slots=True)
class Promotion:
    """Writes `traffic.json` and the audit log of a repository, after what they name has been loaded."""

    repository: Path
    releases: ReleaseRegistry
    loader: Loader
    file: TrafficWatcher

    async def set(self, wanted: TrafficGoal, who: str, reason: str) -> Traffic:
        """Have this in force in the place of all that was; returns it.

        Raises `InvalidArgument`, `NotFound`, `DamagedRelease`, `EncoderUnavailable` or `ReadOnlyRepository`; then
        nothing has changed.
        """

        def change(before: Traffic) -> Traffic:
            begin = self._with_active(before) if wanted.stable else before
            after = begin.with_stable(wanted.stable)
            return after.with_answering(wanted.canary, wanted.canary_percent, wanted.shadow, wanted.guard)

        change(self.file.traffic)
        await self._see_that_they_are_there(wanted.numbers())
        async with self.loader.holding(list(wanted.numbers().values()), LOAD_SECONDS):
            return await self._change(change, "traffic", who, reason)

    async def roll_back(self, who: str, reason: str) -> tuple[Traffic, str]:
        """Take the last change back; returns what is in force now, and a sentence of what was done.

        Raises `NothingToRollBack`, and as `set`.
        """
        good = await asyncio.to_thread(self.releases.good_numbers)
        summary = ""

        def change(before: Traffic) -> Traffic:
            nonlocal summary
            after, summary = rolled_back(before, good)
            return after

        goal = change(self.file.traffic).stable
        async with self.loader.holding([goal] if goal else [], LOAD_SECONDS):
            return await self._change(change, "rollback", who, reason), summary

    def _with_active(self, before: Traffic) -> Traffic:
        """While the newest release answers, it is the one that a roll-back shall go to."""
        active = self.releases.active
        return before if before.stable or active is None else before.model_copy(update={"stable": active.number})

    async def _see_that_they_are_there(self, numbers: dict[str, int]) -> None:
        present = set(await asyncio.to_thread(self.releases.shelf.numbers))
        for field, number in numbers.items():
            if number not in present:
                raise NotFound(f"there is no release {number} in {self.releases.shelf.directory}", field)

    async def _change(self, change: Callable[[Traffic], Traffic], what: What, who: str, reason: str) -> Traffic:
        try:
            await asyncio.to_thread(change_traffic, self.repository, change, what, who, reason)
        except OSError as error:
            raise ReadOnlyRepository(
                f"the traffic cannot be written to {self.repository} ({error.strerror}): set it where the repository "
                "can be written, with `segrec-train traffic` or `segrec-train rollback`"
            ) from error
        await self.file.refresh()
        return self.file.traffic
