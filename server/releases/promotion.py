"""Changes the traffic on request: loads the releases first, so that the change takes effect at once."""

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from server.core.errors import NotFound, ReadOnlyRepository, TrafficLocked
from server.core.repository.audit import AuditKind
from server.core.repository.traffic import Traffic, change_traffic, rolled_back
from server.releases.loader import Loader
from server.releases.registry import ReleaseRegistry
from server.releases.traffic_watcher import TrafficWatcher

LOAD_SECONDS = 60.0
"""Longest wait for the requested releases to load."""
LOCK_SECONDS = 2.0
"""Longest wait for another program that changes the traffic."""


@dataclass(frozen=True, slots=True)
class Promotion:
    """Writes `traffic.json` and the audit log once the requested releases are loaded, and applies them here."""

    repository: Path
    releases: ReleaseRegistry
    loader: Loader
    watcher: TrafficWatcher
    executor: Executor = field(default_factory=lambda: ThreadPoolExecutor(4, thread_name_prefix="traffic"))
    """Threads of its own: a change may wait for the lock, and nothing else waits with it."""

    async def set(self, requested: Traffic, who: str, reason: str, etag: str = "") -> Traffic:
        """Replace the whole traffic by `requested`; returns the traffic that is now in force.

        With an `etag`, only the traffic of this etag is replaced. Raises `InvalidArgument`, `NotFound`,
        `TrafficChanged`, `TrafficLocked`, `DamagedRelease`, `EncoderUnavailable` or `ReadOnlyRepository`; after an
        error, and when the call is cancelled before the change, the traffic is unchanged.
        """

        def change(before: Traffic) -> Traffic:
            before.check_etag(etag)
            active = self.releases.active
            return before.replaced_by(requested, active.number if active else 0)

        numbers = _numbers(requested)
        await self._check_present(numbers)
        async with self.loader.hold_loaded(list(numbers.values()), LOAD_SECONDS):
            return await self._change(change, "traffic", who, reason)

    async def roll_back(self, who: str, reason: str, etag: str = "") -> tuple[Traffic, str]:
        """Undo the last change; returns the traffic that is now in force, and a sentence for people.

        With an `etag`, only the change that led to the traffic of this etag is undone. Raises `NothingToRollBack`, and
        the errors of `set`.
        """
        good_numbers = await asyncio.to_thread(self.releases.good_numbers)
        summary = ""

        def change(before: Traffic) -> Traffic:
            nonlocal summary
            before.check_etag(etag)
            after, summary = rolled_back(before, good_numbers)
            return after

        target = change(self.watcher.traffic).stable
        async with self.loader.hold_loaded([target] if target else [], LOAD_SECONDS):
            return await self._change(change, "rollback", who, reason), summary

    async def _check_present(self, numbers: dict[str, int]) -> None:
        present = set(await asyncio.to_thread(self.releases.directory.numbers))
        for name, number in numbers.items():
            if number not in present:
                raise NotFound(
                    f"there is no release {number} in {self.releases.directory.root}", name, reason="RELEASE_NOT_FOUND"
                )

    async def _change(self, change: Callable[[Traffic], Traffic], what: AuditKind, who: str, reason: str) -> Traffic:
        has_left = threading.Event()

        def change_for_caller(before: Traffic) -> Traffic:
            if has_left.is_set():
                raise _CallerHasLeft
            return change(before)

        work = partial(change_traffic, self.repository, change_for_caller, what, who, reason, LOCK_SECONDS)
        try:
            await asyncio.get_running_loop().run_in_executor(self.executor, work)
        except asyncio.CancelledError:
            has_left.set()
            raise
        except BlockingIOError as error:
            raise TrafficLocked(f"{error.strerror}; nothing was changed: end it, or try again later") from error
        except OSError as error:
            raise ReadOnlyRepository(
                f"the traffic cannot be written to {self.repository} ({error.strerror}): run `segrec-train traffic` "
                "or `segrec-train rollback` on a machine that can write the repository"
            ) from error
        await self.watcher.refresh()
        return self.watcher.traffic


class _CallerHasLeft(Exception):
    """The call was cancelled while the change waited for the lock."""


def _numbers(traffic: Traffic) -> dict[str, int]:
    """Request field → release number, for each release that the traffic names."""
    fields = {"stable_release": traffic.stable, "canary_release": traffic.canary, "shadow_release": traffic.shadow}
    return {f"traffic.{field}": number for field, number in fields.items() if number}
