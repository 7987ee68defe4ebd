"""Limits of what is in progress at once: calls and streams beyond a limit are refused, not queued."""

from types import TracebackType

from server.core.errors import Overloaded


class Room:
    """Room for `most` calls of one kind. Entering a full room raises `Overloaded`."""

    def __init__(self, kind: str, most: int) -> None:
        """`kind` names the calls in the refusal, such as "streams"."""
        self._kind = kind
        self._most = most
        self.count = 0
        """Calls in progress."""

    @property
    def is_full(self) -> bool:
        """Whether the next call is refused."""
        return self.count >= self._most

    def refusal(self) -> Overloaded:
        """The error of a call that finds no room."""
        return Overloaded(f"{self._most} {self._kind} are in progress already: try again after the delay")

    def __enter__(self) -> None:
        if self.is_full:
            raise self.refusal()
        self.count += 1

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.count -= 1
