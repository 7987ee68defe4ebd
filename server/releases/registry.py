"""Which releases are loaded, and which of them the traffic lets answer. `server.releases.loader` loads them."""

import logging
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum, auto

from server.core.errors import DamagedRelease, NoRelease, NotFound
from server.core.release import Manifest, Release
from server.core.repository.read import read_manifest
from server.core.repository.traffic import Traffic
from server.releases.directory import ReleaseDirectory

log = logging.getLogger(__name__)


class State(Enum):
    """Where a release is in its life; see the API's `ReleaseState`."""

    AVAILABLE = auto()
    LOADING = auto()
    ACTIVE = auto()
    STANDBY = auto()
    FAILED = auto()
    CANARY = auto()
    SHADOW = auto()


@dataclass(frozen=True, slots=True)
class Status:
    """A release on disk or named by the traffic. `manifest` is None when it cannot be read."""

    number: int
    state: State
    failure: str
    manifest: Manifest | None
    traffic_percent: float = 0.0
    """Share of the users whom it answers here, 0 to 100."""


class ReleaseRegistry:
    """The loaded releases, and which of them answers. Requests take a snapshot with `lease` and use nothing else."""

    def __init__(self, shelf: ReleaseDirectory) -> None:
        self.shelf = shelf
        self._loaded: dict[int, Release] = {}
        self._traffic = Traffic()
        self._active: Release | None = None
        self._actives: list[int] = []
        self._broken: dict[int, str] = {}
        self._held_out: tuple[Traffic, str] | None = None
        self._leases: Counter[int] = Counter()
        self._told: dict[int, float] = {}
        self.loading = 0
        """Number of the release that is being loaded."""
        self.encoder_healthy = False
        self.on_change: list[Callable[[], None]] = []
        """Called after who answers, or the encoder's health, has changed."""
        self.on_unload: list[Callable[[int], None]] = []
        """Called with the number of a release that no longer answers."""

    @property
    def active(self) -> Release | None:
        """The release that answers by default."""
        return self._active

    @property
    def canary(self) -> Release | None:
        """The release that answers a share of the users; None while it is not loaded, or its proof fails."""
        number = self._traffic.canary
        return None if self._held_out or number in self._broken else self._loaded.get(number)

    @property
    def shadow(self) -> Release | None:
        """The release that is computed beside the active one; None while it is not loaded."""
        return self._loaded.get(self._traffic.shadow)

    @property
    def traffic(self) -> Traffic:
        """What is in force."""
        return self._traffic

    def get(self, number: int = 0) -> Release:
        """The loaded release of this number, 0 for the active one. Raises `NoRelease` or `NotFound`."""
        if self._active is None:
            raise NoRelease("no release is active: publish one with `segrec-train publish`, then ask again")
        if number == 0:
            return self._active
        if number not in self._loaded:
            loaded = ", ".join(map(str, sorted(self._loaded)))
            raise NotFound(f"release {number} is not loaded; loaded are {loaded}", "release")
        return self._loaded[number]

    @contextmanager
    def lease(self, number: int = 0) -> Iterator[Release]:
        """A release that stays loaded until the block ends. Raises as `get`."""
        release = self.get(number)
        self._leases[release.number] += 1
        try:
            yield release
        finally:
            self._leases[release.number] -= 1

    def is_loaded(self, number: int) -> bool:
        """Whether a release is loaded and proved."""
        return number in self._loaded

    def loaded_numbers(self) -> list[int]:
        """Numbers of all loaded releases, ascending."""
        return sorted(self._loaded)

    def failed_count(self) -> int:
        """How many releases failed their checks."""
        return len(self.shelf.failures() | set(self._broken))

    def good_numbers(self) -> list[int]:
        """Numbers of the releases on disk that nothing is known to be wrong with, newest first."""
        wrong = self.shelf.failures() | set(self._broken)
        return [number for number in self.shelf.numbers() if number not in wrong]

    def shares(self) -> dict[int, float]:
        """Share of the users, 0 to 100, by number of the releases that answer."""
        if self._active is None:
            return {}
        canary = self.canary
        if canary is None or canary is self._active:
            return {self._active.number: 100.0}
        percent = self._traffic.canary_percent
        return {self._active.number: 100.0 - percent, canary.number: percent}

    def statuses(self) -> list[Status]:
        """All releases on disk, and those that the traffic names and that are missing, newest first."""
        numbers = {*self.shelf.numbers(), *(self.shelf.failures() & self._traffic.named())}
        return [self._status(number) for number in sorted(numbers, reverse=True)]

    def status(self, number: int) -> Status:
        """One release on disk. Raises `NotFound`."""
        if not self.shelf.path(number).is_dir():
            raise NotFound(f"there is no release {number} in {self.shelf.directory}", "release")
        return self._status(number)

    def _status(self, number: int) -> Status:
        loaded = self._loaded.get(number)
        if loaded is not None:
            share = self.shares().get(number, 0.0)
            return Status(number, self._state(loaded), self._problem(number), loaded.manifest, share)
        failure = self.shelf.failure(number)
        try:
            manifest = read_manifest(self.shelf.path(number))
        except DamagedRelease as error:
            return Status(number, State.FAILED, str(failure or error), None)
        if failure is not None:
            return Status(number, State.FAILED, str(failure), manifest)
        return Status(number, State.LOADING if number == self.loading else State.AVAILABLE, "", manifest)

    def _problem(self, number: int) -> str:
        """Why a loaded release does not answer whom it should."""
        held_out = self._held_out[1] if self._held_out and number == self._traffic.canary else ""
        return self._broken.get(number, held_out)

    def _state(self, loaded: Release) -> State:
        if loaded is self._active:
            return State.ACTIVE
        if loaded.number in self._broken:
            return State.FAILED
        if loaded is self.canary:
            return State.CANARY
        return State.SHADOW if loaded is self.shadow else State.STANDBY

    def set_traffic(self, traffic: Traffic) -> None:
        """Put a traffic in force: at once among what is loaded; the loader loads the rest."""
        self._traffic = traffic
        if self._held_out and self._held_out[0] != traffic:
            self._held_out = None
        for number in set(self._broken) - {traffic.canary}:
            del self._broken[number]
        self._settle()

    def _settle(self) -> None:
        """Have the traffic choose the active release among the loaded ones."""
        chosen = self._chosen()
        if chosen is not None and chosen is not self._active:
            self._active = chosen
            self._actives = [chosen.number, *(number for number in self._actives if number != chosen.number)]
            log.info("release %d is active", chosen.number)
            if self._traffic.stable not in (0, chosen.number):
                log.error("release %d, which traffic.json names, is not loaded: another answers", self._traffic.stable)
        if self.shares() != self._told:
            self._told = self.shares()
            self._changed()

    def _chosen(self) -> Release | None:
        """The stable release; while that is not loaded what answers already, else an earlier one, else the newest."""
        newest = max(self._loaded, default=0)
        if not self._traffic.stable:
            return self._loaded.get(newest)
        if self._traffic.stable in self._loaded:
            return self._loaded[self._traffic.stable]
        if self._active is not None:
            return self._active
        return self._loaded.get(next((one for one in self._traffic.previous if one in self._loaded), newest))

    def add(self, release: Release) -> None:
        """A release that is loaded and proved from now on; it answers at once where the traffic has it so."""
        self._loaded[release.number] = release
        self._settle()

    def remember_earlier(self, number: int) -> None:
        """Count a loaded release among those that were active before all others known."""
        self._actives = [*(one for one in self._actives if one != number), number]

    @property
    def actives(self) -> list[int]:
        """The loaded releases that were active, the latest first."""
        return [number for number in self._actives if number in self._loaded]

    def set_broken(self, number: int, problem: str) -> None:
        """Give a canary no traffic, or with an empty problem give it back."""
        if problem:
            self._broken[number] = problem
        else:
            self._broken.pop(number, None)
        self._settle()

    def hold_out(self, traffic: Traffic, why: str) -> None:
        """Give this traffic's canary no users here, until another traffic is in force."""
        if traffic == self._traffic:
            self._held_out = (traffic, why)
            self._changed()

    def broken(self, number: int) -> str:
        """Why a loaded release gets no traffic although it should; empty otherwise."""
        return self._broken.get(number, "")

    def drop_idle(self, keep: int, needed: Collection[int], present: Collection[int]) -> list[int]:
        """Forget releases that are neither needed nor leased nor among the latest `keep` active; returns them.

        `present` are those on disk; others are kept only while they answer.
        """
        traffic = self._traffic
        ready = {*traffic.previous[:1], max(self._loaded, default=0), *self.actives[:keep]} & set(present)
        spared = {*ready, *self.actives[:1], traffic.stable, traffic.canary, traffic.shadow, *needed, *+self._leases}
        idle = sorted(set(self._loaded) - spared)
        for number in idle:
            del self._loaded[number]
            for callback in self.on_unload:
                callback(number)
        self._actives = self.actives
        return idle

    def set_healthy(self, healthy: bool) -> None:
        """Say whether the encoder answers rightly."""
        if healthy != self.encoder_healthy:
            self.encoder_healthy = healthy
            self._changed()

    def _changed(self) -> None:
        for callback in self.on_change:
            callback()
