"""The release of one stream: leased while the stream is in use, and given back while it is idle."""

import asyncio
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from server.core.errors import NotFound, ReleaseGone
from server.core.release import Release
from server.releases.routing import NO_PIN, Pin, Routing


class StreamRelease:
    """Chooses the active release at the first chunk and keeps it, so that all rows of a stream come from one model.

    The release stays loaded until the stream has had no chunk for `idle_seconds`. Call `close` at the end.
    """

    def __init__(self, routing: Routing, idle_seconds: float) -> None:
        self._routing = routing
        self._idle_seconds = idle_seconds
        self._number = 0
        self._hold = ExitStack()
        self._is_held = False
        self._chunks = 0
        self._timer: asyncio.TimerHandle | None = None

    @contextmanager
    def lease(self, base_release: int) -> Iterator[Release]:
        """The release for one chunk. `base_release` is the one of an interrupted stream that goes on here; 0 for none.

        Raises `NoRelease`, or `ReleaseGone` when the release of the interrupted stream is no longer loaded.
        """
        self._cancel_timer()
        self._chunks += 1
        try:
            yield self._release(base_release)
        finally:
            self._chunks -= 1
            if not self._chunks:
                self._timer = asyncio.get_running_loop().call_later(self._idle_seconds, self._give_back)

    def close(self) -> None:
        """Give the release back."""
        self._cancel_timer()
        self._give_back()

    def _release(self, base_release: int) -> Release:
        if not self._is_held:
            release = self._hold.enter_context(self._routing.lease(self._pin(base_release)))
            self._number, self._is_held = release.number, True
        if base_release not in (0, self._number):
            raise ReleaseGone(
                f"this stream has begun with release {self._number} and cannot go on with release {base_release}: give "
                "the same base_release with each chunk",
                "base_release",
            )
        return self._routing.get(Pin(self._number))

    def _pin(self, base_release: int) -> Pin:
        try:
            self._routing.get(Pin(base_release or self._number))
        except NotFound as error:
            if not base_release:
                return NO_PIN
            raise ReleaseGone(
                f"the stream began with another release than now: {error}. Start it again without base_release "
                "(`segrec stream`: without --resume)",
                "base_release",
            ) from error
        return Pin(base_release or self._number)

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _give_back(self) -> None:
        self._hold.close()
        self._is_held = False
