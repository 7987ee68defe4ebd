"""Changes of the traffic through this server: in force here before the call returns."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from server.core.errors import NotFound, ReadOnlyRepository
from server.core.repository.audit import What
from server.core.repository.traffic import Traffic, change_traffic, rolled_back
from server.releases.loader import Loader
from server.releases.registry import ReleaseRegistry
from server.releases.traffic_watcher import TrafficWatcher

LOAD_SECONDS = 60.0
"""Longest wait for releases that are not loaded yet."""


@dataclass(frozen=True, slots=True)
class Promotion:
    """Writes `traffic.json` and the audit log of a repository once the named releases are loaded."""

    repository: Path
    releases: ReleaseRegistry
    loader: Loader
    file: TrafficWatcher

    async def set(self, wanted: Traffic, who: str, reason: str) -> Traffic:
        """Put `wanted` in force in place of the whole traffic; returns the traffic in force.

        Raises `InvalidArgument`, `NotFound`, `DamagedRelease`, `EncoderUnavailable` or `ReadOnlyRepository`; then
        nothing has changed.
        """
        numbers = _numbers(wanted)
        await self._check_present(numbers)
        async with self.loader.holding(list(numbers.values()), LOAD_SECONDS):
            active = self.releases.active
            number = active.number if active else 0
            return await self._change(lambda before: before.replaced_by(wanted, number), "traffic", who, reason)

    async def roll_back(self, who: str, reason: str) -> tuple[Traffic, str]:
        """Take the last change back; returns the traffic in force, and a sentence for people.

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

    async def _check_present(self, numbers: dict[str, int]) -> None:
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


def _numbers(traffic: Traffic) -> dict[str, int]:
    """The releases that a request names, by its field."""
    named = {"stable_release": traffic.stable, "canary_release": traffic.canary, "shadow_release": traffic.shadow}
    return {f"traffic.{field}": number for field, number in named.items() if number}
