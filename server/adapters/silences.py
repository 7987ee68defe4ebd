"""When a server that many calls share has answered none of them."""

from collections import deque
from collections.abc import Callable
from time import monotonic

_KEPT = 16
_SHORTEST_SECONDS = 0.1
"""Shorter silences are not kept: a call that fails in such a time fails by itself."""


class Silences:
    """Keeps the latest long pauses between answers to any call of anybody. Used from the event loop only."""

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        """`clock` gives monotonic seconds."""
        self._clock = clock
        self._answered_at = clock()
        self._silences: deque[tuple[float, float]] = deque(maxlen=_KEPT)

    def end(self) -> None:
        """Note an answer; an error of a model is an answer too."""
        now = self._clock()
        if now - self._answered_at >= _SHORTEST_SECONDS:
            self._silences.append((self._answered_at, now))
        self._answered_at = now

    def longest_since(self, start: float) -> float:
        """Seconds of the longest silence from the monotonic time `start` until now, as far as it lies in that time.

        The silence that goes on now counts too.
        """
        now = self._clock()
        parts = ((max(begin, start), end) for begin, end in (*self._silences, (self._answered_at, now)))
        return max(0.0, *(end - begin for begin, end in parts))
