"""Chooses the release that answers a request: the pinned one, else the user's release by the traffic."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum, auto

from server.core.errors import NotFound
from server.core.release import Release
from server.core.repository.traffic import Traffic
from server.releases.registry import Lease, ReleaseRegistry


class Alias(Enum):
    """A release by its role in the traffic; see the API's `ReleaseAlias`."""

    NONE = auto()
    STABLE = auto()
    CANARY = auto()


@dataclass(frozen=True, slots=True)
class Pin:
    """The release that a request names, by number or by alias. With neither, the traffic chooses."""

    number: int = 0
    alias: Alias = Alias.NONE

    def __bool__(self) -> bool:
        return self.number > 0 or self.alias is not Alias.NONE


NO_PIN = Pin()


class Routing:
    """Chooses among the loaded releases. A lease keeps the chosen release loaded for the whole request."""

    def __init__(self, releases: ReleaseRegistry) -> None:
        self._releases = releases

    def get(self, pin: Pin) -> Release:
        """The pinned release, or the active one. Raises `NoRelease` or `NotFound`."""
        return self._releases.get(self._pinned(pin))

    def lease(self, pin: Pin = NO_PIN, user_id: str = "") -> Lease:
        """The release for a user; it stays loaded until the block ends.

        `user_id` may be the key of a session; an empty one stands for a history given inline without a key, which the
        active release answers. Raises `NoRelease` or `NotFound`.
        """
        return self._releases.lease(self._pinned(pin) if pin or not user_id else self._number_for(user_id))

    @contextmanager
    def lease_chunk(self, current: Release) -> Iterator["Route"]:
        """The releases for one chunk of a stream without a pin; the canary stays loaded until the block ends.

        `current` is the release of the stream; the caller holds a lease on it.
        """
        canary = self._releases.canary
        if canary is None:
            yield Route(current)
            return
        with self._releases.lease(canary.number):
            yield Route(current, canary, self._releases.traffic)

    def _pinned(self, pin: Pin) -> int:
        if pin.alias is not Alias.CANARY:
            return pin.number
        canary = self._releases.canary
        if canary is None:
            raise NotFound("no canary is in force: see `segrec traffic`", "release_alias", reason="NO_CANARY")
        return canary.number

    def _number_for(self, user_id: str) -> int:
        canary = self._releases.canary
        return canary.number if canary is not None and self._releases.traffic.is_canary_user(user_id) else 0


@dataclass(frozen=True, slots=True)
class Route:
    """The releases of one chunk of a stream: `stable`, and `canary` for the canary's users."""

    stable: Release
    canary: Release | None = None
    traffic: Traffic | None = None

    def release_for(self, user_id: str) -> Release:
        if self.canary is None or self.traffic is None or not self.traffic.is_canary_user(user_id):
            return self.stable
        return self.canary
