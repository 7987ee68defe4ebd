"""What lies in the model's directory, and what was found wrong with it."""

import logging
import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from time import monotonic

from server.core.errors import EncoderUnavailable, SegrecError
from server.core.repository.layout import RELEASE_NAME

log = logging.getLogger(__name__)

FIRST_RETRY_SECONDS = 1.0
LONGEST_RETRY_SECONDS = 60.0

_TOO_LONG = re.compile(r"[0-9]{19}")
Signature = tuple[float, int]
"""Changes when a file of a release's directory does."""


@dataclass(slots=True)
class _Failure:
    error: SegrecError
    signature: Signature
    attempts: int
    retry_at: float


class ReleaseDirectory:
    """The release directories of a repository, and a back-off for those that failed."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._failures: dict[int, _Failure] = {}
        self._named: set[str] = set()

    def path(self, number: int) -> Path:
        """The directory of a release, which need not be there."""
        return self.directory / str(number)

    def numbers(self) -> list[int]:
        """Numbers of the release directories, newest first. Anything else is named once in the log."""
        if not self.directory.is_dir():
            return []
        numbers = []
        for entry in self.directory.iterdir():
            if RELEASE_NAME.fullmatch(entry.name) and entry.is_dir():
                numbers.append(int(entry.name))
            elif entry.is_dir() and entry.name not in self._named:
                self._named.add(entry.name)
                log.warning("directory is not a release number and is ignored: %s", entry)
        return sorted(numbers, reverse=True)

    def check_for_triton(self) -> None:
        """Raises `EncoderUnavailable` while something lies there on which Triton would end when told to load."""
        entries = self.directory.iterdir() if self.directory.is_dir() else iter(())
        for entry in entries:
            if _TOO_LONG.match(entry.name):
                raise EncoderUnavailable(
                    f"nothing is loaded while {entry} is there, since Triton ends on a number of so many digits: "
                    "take it away"
                )

    def signature(self, number: int) -> Signature:
        """Changes when a file of the release does."""
        path = self.path(number)
        stats = [file.stat() for file in path.iterdir()] if path.is_dir() else []
        return max((stat.st_mtime for stat in stats), default=0.0), sum(stat.st_size for stat in stats)

    def failed(self, number: int, error: SegrecError, signature: Signature) -> None:
        """Remember what is wrong with a release; it is named once in the log."""
        before = self._failures.get(number)
        attempts = before.attempts + 1 if before and before.signature == signature else 1
        longest = FIRST_RETRY_SECONDS if isinstance(error, EncoderUnavailable) else LONGEST_RETRY_SECONDS
        pause = min(FIRST_RETRY_SECONDS * 2.0 ** (attempts - 1), longest)
        self._failures[number] = _Failure(error, signature, attempts, monotonic() + pause)
        if before is None or str(before.error) != str(error):
            log.error("release %d is not activated: %s", number, error)

    def failure(self, number: int) -> SegrecError | None:
        """What is wrong with a release, as far as anybody has looked."""
        failure = self._failures.get(number)
        return failure.error if failure else None

    def failures(self) -> set[int]:
        """Numbers of the releases that something is wrong with."""
        return set(self._failures)

    def rests(self, number: int, signature: Signature) -> bool:
        """Whether a release failed lately and has not changed since."""
        failure = self._failures.get(number)
        return failure is not None and failure.signature == signature and monotonic() < failure.retry_at

    def forgive(self, number: int) -> None:
        """Nothing is known to be wrong with a release any more."""
        self._failures.pop(number, None)

    def keep_failures_of(self, numbers: Collection[int]) -> None:
        """Forget what was wrong with all others."""
        for number in set(self._failures) - set(numbers):
            del self._failures[number]
