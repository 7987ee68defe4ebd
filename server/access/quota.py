"""Quotas: how much a caller may do in a second."""

from collections.abc import Callable

BURST_SECONDS = 2.0
"""A caller that was silent may do as much at once as its quota allows in this time."""


class TokenBucket:
    """Holds what may be done now: fills at `rate` per second up to `BURST_SECONDS` of it, and at least 1.

    Something larger than the content is allowed while the bucket is not empty, and is paid off by waiting, so that a
    quota below the size of one call still lets calls through. `clock` gives seconds and never goes back.
    """

    def __init__(self, rate: float, clock: Callable[[], float]) -> None:
        self.rate = rate
        self._clock = clock
        self._capacity = max(1.0, rate * BURST_SECONDS)
        self._content = self._capacity
        self._filled_at = clock()

    def take(self, count: int = 1) -> float:
        """Take `count` and return 0, or take nothing and return the seconds until the bucket is not empty."""
        now = self._clock()
        self._content = min(self._capacity, self._content + (now - self._filled_at) * self.rate)
        self._filled_at = now
        if self._content >= min(1.0, count):
            self._content -= count
            return 0.0
        return (1.0 - self._content) / self.rate
