"""Limits of what is in progress at once: calls and streams beyond a limit are refused, not queued."""

from types import TracebackType

from server.core.errors import Overloaded, TooLate


class Room:
    """Room for `most` calls of one kind. Entering a full room raises `Overloaded`."""

    def __init__(self, kind: str, most: int) -> None:
        """`kind` names the calls in the refusal, such as "streams"."""
        self._kind = kind
        self.most = most
        self.count = 0
        """Calls in progress."""

    @property
    def is_full(self) -> bool:
        """Whether the next call is refused."""
        return self.count >= self.most

    def refusal(self) -> Overloaded:
        """The error of a call that finds no room."""
        return Overloaded(f"{self.most} {self._kind} are in progress already: try again after the delay")

    def __enter__(self) -> None:
        if self.is_full:
            raise self.refusal()
        self.count += 1

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.count -= 1


BUSY_CALLS = 32
"""From so many calls in progress on, a call that cannot be in time is refused."""


class Pace:
    """The time that calls of one method take at present, from which follows whether another call can be in time."""

    def __init__(self, calls: Room) -> None:
        self._calls = calls
        self._seconds = 0.0

    def add(self, seconds: float) -> None:
        """Record a call that was answered after `seconds`."""
        self._seconds += 0.05 * (seconds - self._seconds)

    def refuse_late(self, seconds_left: float | None) -> None:
        """Raise `TooLate` or `Overloaded` for a call that cannot be answered in `seconds_left`; None is no limit.

        A call may have waited long for this process before its handler starts; work on it would only delay others.
        """
        if seconds_left is None:
            return
        if seconds_left <= 0:
            raise TooLate("the deadline passed before the work began: allow more time, or try again later")
        if self._calls.count >= BUSY_CALLS and seconds_left < self._seconds:
            raise Overloaded(
                f"calls take {self._seconds:.3f} s now, and {seconds_left:.3f} s were left: try again after the delay",
                retry_seconds=max(self._seconds, 0.1),
            )
