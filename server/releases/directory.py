"""The release directories of a repository, and the failures of releases that could not be loaded."""

import logging
import os
import re
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from time import monotonic

from server.core.errors import EncoderUnavailable, SegrecError
from server.core.repository.layout import RELEASE_NAME
from server.core.repository.read import read_manifest

log = logging.getLogger(__name__)

FIRST_RETRY_SECONDS = 1.0
LONGEST_RETRY_SECONDS = 60.0

_TOO_LONG = re.compile(r"[0-9]{19}")
Signature = tuple[float, int]
"""Newest modification time (seconds) and total size (bytes) of a release's files; differs when a file changes."""


@dataclass(slots=True)
class _Failure:
    error: SegrecError
    signature: Signature
    attempts: int
    retry_at: float


def _stat(file: Path) -> os.stat_result:
    """The state of a file; of a link to nothing, such as an editor's lock, the state of the link itself."""
    try:
        return file.stat()
    except OSError:
        return file.lstat()


class ReleaseDirectory:
    """Finds releases by number, and delays another attempt to load a release that failed (exponential back-off)."""

    def __init__(self, root: Path, clock: Callable[[], float] = monotonic, *, triton_root: Path | None = None) -> None:
        """`root` holds the releases; `clock` gives monotonic seconds; Triton reads `triton_root`, by default `root`."""
        self.root = root
        self._triton_root = triton_root or root
        self._clock = clock
        self._failures: dict[int, _Failure] = {}
        self._ignored_names: set[str] = set()

    def path(self, number: int) -> Path:
        """The directory of a release; it may not exist."""
        return self.root / str(number)

    def numbers(self) -> list[int]:
        """Numbers of the release directories, newest first. Any other directory is logged once."""
        if not self.root.is_dir():
            return []
        numbers = []
        for entry in self.root.iterdir():
            if RELEASE_NAME.fullmatch(entry.name) and entry.is_dir():
                numbers.append(int(entry.name))
            elif entry.is_dir() and entry.name not in self._ignored_names:
                self._ignored_names.add(entry.name)
                log.warning("the directory %s is ignored: its name is not a release number", entry)
        return sorted(numbers, reverse=True)

    def check_for_triton(self) -> None:
        """Raises `EncoderUnavailable` while an entry prevents every load.

        Such an entry has a name of 19 or more digits, which crashes Triton, or is a link to nothing, beside the
        releases or in the repository, which Triton refuses.
        """
        for directory in (self._triton_root, self._triton_root.parent):
            entries = directory.iterdir() if directory.is_dir() else iter(())
            for entry in entries:
                problem = ""
                if directory == self._triton_root and _TOO_LONG.match(entry.name):
                    problem = "a name of 19 or more digits crashes Triton"
                elif entry.is_symlink() and not entry.exists():
                    problem = "Triton refuses to load beside a link to a file that does not exist"
                if problem:
                    raise EncoderUnavailable(
                        f"no release can be loaded while {entry} exists, since {problem}: remove it"
                    )

    def signature(self, number: int) -> Signature:
        """The signature of a release's files; (0, 0) for a directory that is missing or cannot be read."""
        try:
            stats = [_stat(file) for file in self.path(number).iterdir()]
        except OSError:
            return 0.0, 0
        return max((stat.st_mtime for stat in stats), default=0.0), sum(stat.st_size for stat in stats)

    def stands_by(self, number: int) -> str:
        """Why a release gets no traffic by itself, as its manifest says; empty for any other. Reads the manifest."""
        try:
            return read_manifest(self.path(number)).stands_by
        except SegrecError:
            return ""

    def record_failure(self, number: int, error: SegrecError, signature: Signature) -> None:
        """Remember why a release could not be loaded. The same error is logged once; each attempt waits longer."""
        previous = self._failures.get(number)
        attempts = previous.attempts + 1 if previous and previous.signature == signature else 1
        longest = FIRST_RETRY_SECONDS if isinstance(error, EncoderUnavailable) else LONGEST_RETRY_SECONDS
        pause = min(FIRST_RETRY_SECONDS * 2.0 ** (attempts - 1), longest)
        self._failures[number] = _Failure(error, signature, attempts, self._clock() + pause)
        if previous is None or str(previous.error) != str(error):
            log.error("release %d is not activated: %s", number, error)

    def failure(self, number: int) -> SegrecError | None:
        """Why the last attempt to load a release failed; None without a failed attempt."""
        failure = self._failures.get(number)
        return failure.error if failure else None

    def failed_numbers(self) -> set[int]:
        return set(self._failures)

    def is_backing_off(self, number: int, signature: Signature) -> bool:
        """Whether a release failed, has not changed since, and is not due for another attempt."""
        failure = self._failures.get(number)
        return failure is not None and failure.signature == signature and self._clock() < failure.retry_at

    def clear_failure(self, number: int) -> None:
        self._failures.pop(number, None)

    def keep_failures_of(self, numbers: Collection[int]) -> None:
        """Forget the failures of all other releases."""
        for number in set(self._failures) - set(numbers):
            del self._failures[number]
