"""Tells when files have changed, so that certificates, tokens and secrets are read again without a restart."""

from collections.abc import Callable, Iterable
from pathlib import Path
from time import monotonic

CHECK_SECONDS = 1.0
"""Shortest time between two looks at the files."""

Stamp = tuple[int, int, int]


class WatchedFiles:
    """The state of some files when they were last read. `clock` gives seconds and never goes back."""

    def __init__(self, paths: Iterable[Path], clock: Callable[[], float] = monotonic) -> None:
        self._paths = tuple(paths)
        self._clock = clock
        self._checked_at = clock()
        self._stamps = self._look()

    def have_changed(self) -> bool:
        """Whether a file differs from the last time that this function said so, by name, time or size.

        Looks at most once in `CHECK_SECONDS`. A file that is missing counts as a change, and so does its return.
        """
        now = self._clock()
        if now - self._checked_at < CHECK_SECONDS:
            return False
        self._checked_at = now
        stamps = self._look()
        changed = stamps != self._stamps
        self._stamps = stamps
        return changed

    def _look(self) -> tuple[Stamp | None, ...]:
        return tuple(_stamp(path) for path in self._paths)


def _stamp(path: Path) -> Stamp | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size
