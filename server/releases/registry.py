"""The loaded releases and their roles in the traffic. `server.releases.loader` loads and unloads them."""

import logging
from collections import Counter
from collections.abc import Callable, Collection
from contextlib import AbstractContextManager
from dataclasses import dataclass
from enum import Enum, auto
from types import TracebackType

from server.core.errors import DamagedRelease, NoRelease, NotFound
from server.core.release import Manifest, Release
from server.core.repository.read import read_manifest
from server.core.repository.traffic import Traffic
from server.releases.directory import ReleaseDirectory

log = logging.getLogger(__name__)


class State(Enum):
    """What a release does now; see the API's `ReleaseState`."""

    AVAILABLE = auto()
    LOADING = auto()
    ACTIVE = auto()
    STANDBY = auto()
    FAILED = auto()
    CANARY = auto()
    SHADOW = auto()


@dataclass(frozen=True, slots=True)
class Status:
    """A release on disk or in the traffic. `failure` is empty without one; an unreadable `manifest` is None."""

    number: int
    state: State
    failure: str
    manifest: Manifest | None
    traffic_share: float = 0.0
    """Share of the users that this release answers on this server, 0 to 100."""


class Lease(AbstractContextManager[Release]):
    """Keeps a release loaded until the block ends. A class, since each call takes one: a generator costs twice that."""

    __slots__ = ("_leases", "_release")

    def __init__(self, leases: Counter[int], release: Release) -> None:
        self._leases = leases
        self._release = release

    def __enter__(self) -> Release:
        self._leases[self._release.number] += 1
        return self._release

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._leases[self._release.number] -= 1


class ReleaseRegistry:
    """Knows the loaded releases, their roles and their leases. A request leases one release and uses no other."""

    def __init__(self, directory: ReleaseDirectory) -> None:
        self.directory = directory
        self._loaded: dict[int, Release] = {}
        self._traffic = Traffic()
        self._active: Release | None = None
        self._actives: list[int] = []
        self._broken: dict[int, str] = {}
        self._withheld: tuple[Traffic, str] | None = None
        self._leases: Counter[int] = Counter()
        self._announced_shares: dict[int, float] = {}
        self.loading = 0
        """Number of the release that is being loaded; 0 for none."""
        self.encoder_healthy = False
        self._remedy = "publish one with `segrec-train publish`"
        self.on_change: list[Callable[[], None]] = []
        """Called after a change of the shares or of the encoder's health."""
        self.on_unload: list[Callable[[int], None]] = []
        """Called with the number of each release that was unloaded."""

    @property
    def active(self) -> Release | None:
        """The release that answers by default."""
        return self._active

    @property
    def canary(self) -> Release | None:
        """The canary; None while it is not loaded, withheld by the guard, or fails its golden inputs."""
        number = self._traffic.canary
        return None if self._withheld or number in self._broken else self._loaded.get(number)

    @property
    def shadow(self) -> Release | None:
        """The shadow; None while it is not loaded."""
        return self._loaded.get(self._traffic.shadow)

    @property
    def traffic(self) -> Traffic:
        return self._traffic

    def get(self, number: int = 0) -> Release:
        """The loaded release of this number; 0 means the active one. Raises `NoRelease` or `NotFound`."""
        if self._active is None:
            raise NoRelease(f"no release is active: {self._remedy}, then try again")
        if number == 0:
            return self._active
        if number not in self._loaded:
            loaded = ", ".join(map(str, sorted(self._loaded)))
            raise NotFound(
                f"release {number} is not loaded; the loaded releases are {loaded}",
                "release",
                reason="RELEASE_NOT_LOADED",
            )
        return self._loaded[number]

    def newest_answering(self) -> int:
        """Number of the newest loaded release that does not stand by; 0 for none."""
        return max((number for number, release in self._loaded.items() if not release.manifest.stands_by), default=0)

    def note_standby(self, number: int, reason: str) -> None:
        """Remember a release that answers only when the traffic names it; errors name it while nothing answers."""
        remedy = f"release {number} stands by ({reason.rstrip('.')}): give it traffic, or publish a better one"
        if remedy != self._remedy:
            self._remedy = remedy
            log.warning("release %d stands by and gets no traffic by itself. %s", number, reason)

    def lease(self, number: int = 0) -> "Lease":
        """Keep a release loaded until the block ends. Raises the errors of `get`."""
        return Lease(self._leases, self.get(number))

    def is_loaded(self, number: int) -> bool:
        """Whether a release is loaded and passed its golden inputs."""
        return number in self._loaded

    def loaded_numbers(self) -> list[int]:
        """Numbers of all loaded releases, ascending."""
        return sorted(self._loaded)

    def failed_count(self) -> int:
        """Number of releases that failed to load or fail their golden inputs."""
        return len(self.directory.failed_numbers() | set(self._broken))

    def good_numbers(self) -> list[int]:
        """Numbers of the releases on disk that can answer, newest first: no known failure, and not standing by."""
        failed = self.directory.failed_numbers() | set(self._broken)
        known = {self._traffic.stable, *self._traffic.previous}
        return [
            number
            for number in self.directory.numbers()
            if number not in failed and (number in known or not self.directory.stands_by(number))
        ]

    def shares(self) -> dict[int, float]:
        """Release number → share of the users, 0 to 1, for the releases that answer."""
        if self._active is None:
            return {}
        canary = self.canary
        if canary is None or canary is self._active:
            return {self._active.number: 1.0}
        share = self._traffic.canary_share
        return {self._active.number: round(1.0 - share, 12), canary.number: share}

    def statuses(self) -> list[Status]:
        """All releases on disk, and missing ones that the traffic names, newest first."""
        numbers = {*self.directory.numbers(), *(self.directory.failed_numbers() & self._traffic.named_releases())}
        return [self._status(number) for number in sorted(numbers, reverse=True)]

    def status(self, number: int) -> Status:
        """One release on disk. Raises `NotFound`."""
        if not self.directory.path(number).is_dir():
            raise NotFound(
                f"there is no release {number} in {self.directory.root}", "release", reason="RELEASE_NOT_FOUND"
            )
        return self._status(number)

    def _status(self, number: int) -> Status:
        loaded = self._loaded.get(number)
        if loaded is not None:
            share = self.shares().get(number, 0.0)
            return Status(number, self._state(loaded), self._problem(number), loaded.manifest, share)
        failure = self.directory.failure(number)
        try:
            manifest = read_manifest(self.directory.path(number))
        except DamagedRelease as error:
            return Status(number, State.FAILED, str(failure or error), None)
        if failure is not None:
            return Status(number, State.FAILED, str(failure), manifest)
        return Status(number, State.LOADING if number == self.loading else State.AVAILABLE, "", manifest)

    def _problem(self, number: int) -> str:
        """Why a loaded release gets no traffic although the traffic names it; empty otherwise."""
        reason = self._withheld[1] if self._withheld and number == self._traffic.canary else ""
        return self._broken.get(number, reason)

    def _state(self, loaded: Release) -> State:
        if loaded is self._active:
            return State.ACTIVE
        if loaded.number in self._broken:
            return State.FAILED
        if loaded is self.canary:
            return State.CANARY
        return State.SHADOW if loaded is self.shadow else State.STANDBY

    def set_traffic(self, traffic: Traffic) -> None:
        """Put a traffic in force: at once for loaded releases; the others follow when the loader has loaded them."""
        self._traffic = traffic
        if self._withheld and self._withheld[0] != traffic:
            self._withheld = None
        for number in set(self._broken) - {traffic.canary}:
            del self._broken[number]
        self._apply_traffic()

    def _apply_traffic(self) -> None:
        """Choose the active release again; tell the callbacks when the shares have changed."""
        chosen = self._choose_active()
        if chosen is not None and chosen is not self._active:
            self._active = chosen
            self._actives = [chosen.number, *(number for number in self._actives if number != chosen.number)]
            log.info("release %d is active", chosen.number)
            stable = self._traffic.stable
            if stable not in (0, chosen.number):
                log.error("release %d of traffic.json is not loaded: release %d answers", stable, chosen.number)
        if self.shares() != self._announced_shares:
            self._announced_shares = self.shares()
            self._notify()

    def _choose_active(self) -> Release | None:
        """The stable release. While it is not loaded: the active release, else a previous one, else the newest.

        None while no release is loaded.
        """
        newest = self.newest_answering()
        if not self._traffic.stable:
            return self._loaded.get(newest)
        if self._traffic.stable in self._loaded:
            return self._loaded[self._traffic.stable]
        if self._active is not None and self._active.number in self._loaded:
            return self._active
        return self._loaded.get(next((number for number in self._traffic.previous if number in self._loaded), newest))

    def add(self, release: Release) -> None:
        """Register a release that is loaded in Triton and checked; it answers at once if the traffic says so."""
        self._loaded[release.number] = release
        self._apply_traffic()

    def remove(self, number: int) -> None:
        """Take out a release that Triton cannot run any more. If it was active, another loaded one answers instead."""
        self._loaded.pop(number, None)
        for callback in self.on_unload:
            callback(number)
        self._apply_traffic()

    @property
    def is_replaced(self) -> bool:
        """Whether another release answers in place of the stable one that the traffic names."""
        return self._active is not None and self._traffic.stable not in (0, self._active.number)

    def remember_earlier(self, number: int) -> None:
        """Append a loaded release to `actives`, as the one that was active longest ago."""
        self._actives = [*(active for active in self._actives if active != number), number]

    @property
    def actives(self) -> list[int]:
        """Numbers of the loaded releases that are or were active, the latest first."""
        return [number for number in self._actives if number in self._loaded]

    def set_broken(self, number: int, problem: str) -> None:
        """Take the traffic from a canary, or give it back when `problem` is empty."""
        if problem:
            self._broken[number] = problem
        else:
            self._broken.pop(number, None)
        self._apply_traffic()

    def withhold_canary(self, traffic: Traffic, reason: str) -> None:
        """Give the canary of this traffic no users on this server, until another traffic is in force."""
        if traffic == self._traffic:
            self._withheld = (traffic, reason)
            self._notify()

    def broken(self, number: int) -> str:
        """Why a canary fails its golden inputs; empty when it passes them."""
        return self._broken.get(number, "")

    def drop_idle(self, keep: int, needed: Collection[int], present: Collection[int]) -> list[int]:
        """Unload the releases that nobody uses; returns their numbers.

        In use are: leased releases, those of the traffic, `needed`, and, if on disk (`present`), the newest one, the
        target of a roll-back and the last `keep` active ones.
        """
        traffic = self._traffic
        ready = {*traffic.previous[:1], max(self._loaded, default=0), *self.actives[:keep]} & set(present)
        used = {*ready, *self.actives[:1], traffic.stable, traffic.canary, traffic.shadow, *needed, *+self._leases}
        idle = sorted(set(self._loaded) - used)
        for number in idle:
            del self._loaded[number]
            for callback in self.on_unload:
                callback(number)
        self._actives = self.actives
        return idle

    def set_healthy(self, healthy: bool) -> None:
        """Record whether the encoder reproduces the golden embeddings."""
        if healthy != self.encoder_healthy:
            self.encoder_healthy = healthy
            self._notify()

    def _notify(self) -> None:
        for callback in self.on_change:
            callback()
