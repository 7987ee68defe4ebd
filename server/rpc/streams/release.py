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

    def __init__(self, routing: Routing, idle_seconds: float, base_release: int = 0) -> None:
        """`base_release` is the one of an interrupted stream that goes on here; 0 for none."""
        self._routing = routing
        self._base_release = base_release
        self._idle_seconds = idle_seconds
        self._number = 0
        self._hold = ExitStack()
        self._is_held = False
        self._chunks = 0
        self._timer: asyncio.TimerHandle | None = None

    @contextmanager
    def lease(self) -> Iterator[Release]:
        """The release for one chunk.

        Raises `NoRelease`, or `ReleaseGone` when the release of the interrupted stream is no longer loaded.
        """
        self._cancel_timer()
        self._chunks += 1
        try:
            yield self._release()
        finally:
            self._chunks -= 1
            if not self._chunks:
                self._timer = asyncio.get_running_loop().call_later(self._idle_seconds, self._give_back)

    def close(self) -> None:
        """Give the release back."""
        self._cancel_timer()
        self._give_back()

    def _release(self) -> Release:
        if not self._is_held:
            release = self._hold.enter_context(self._routing.lease(self._pin()))
            self._number, self._is_held = release.number, True
        return self._routing.get(Pin(self._number))

    def _pin(self) -> Pin:
        number = self._base_release or self._number
        try:
            self._routing.get(Pin(number))
        except NotFound as error:
            if not self._base_release:
                return NO_PIN
            raise ReleaseGone(
                f"the stream began with another release than now: {error}. Start it again without base_release "
                "(`segrec stream`: without --resume)",
                "config.base_release",
            ) from error
        return Pin(number)

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _give_back(self) -> None:
        self._hold.close()
        self._is_held = False
