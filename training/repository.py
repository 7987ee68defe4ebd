"""The model repository on the training side: its releases, the ledger of used numbers, and the publishing lock."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from pydantic import Field

from server.core.errors import DamagedRelease, DamagedTraffic
from server.core.frozen_model import FrozenModel
from server.core.release import Release
from server.core.repository.layout import MODEL_NAME, RELEASE_NAME
from server.core.repository.read import read_manifest, read_release
from server.core.repository.traffic import last_traffic, read_traffic
from training.errors import PublishError
from training.runs import write_atomically

_LEDGER = ".ledger.json"
_LOCK = ".publish.lock"


class Ledger(FrozenModel):
    """The next free numbers of releases and segments; a separate file, so that pruned numbers stay used."""

    next_release: int = Field(default=1, ge=1)
    next_segment_id: int = Field(default=1, ge=1)


def release_numbers(repository: Path) -> list[int]:
    """Numbers of the release directories, ascending. Names such as `2.tmp` and `02` are not releases."""
    names = [path.name for path in (repository / MODEL_NAME).glob("*") if path.is_dir()]
    return sorted(int(name) for name in names if RELEASE_NAME.fullmatch(name))


class _Trust:
    """Whose releases this process reads; None for everybody's."""

    key: Ed25519PublicKey | None = None


def trust_only(key: Ed25519PublicKey | None) -> None:
    """From now on, releases without a signature by this key count as damaged; None takes all releases."""
    _Trust.key = key


def read_trusted(directory: Path) -> Release:
    """Read and check a release of the repository. Raises DamagedRelease, also for one that `trust_only` rules out."""
    return read_release(directory, _Trust.key)


def newest_release(repository: Path, *, answering: bool = False) -> Release | None:
    """The newest release that passes its checks; None if no release does.

    `answering` leaves out the releases that stand by: the result answers when the traffic names no stable release.
    """
    for number in reversed(release_numbers(repository)):
        directory = repository / MODEL_NAME / str(number)
        try:
            if not (answering and read_manifest(directory).stands_by):
                return read_trusted(directory)
        except DamagedRelease:
            continue
    return None


def stands_by(repository: Path, number: int) -> str:
    """Why a release answers nobody; empty if it may, also because the traffic names it. Raises DamagedRelease."""
    try:
        named = number in read_traffic(repository).named_releases()
    except DamagedTraffic:
        named = number in last_traffic(repository).named_releases()
    return "" if named else read_manifest(repository / MODEL_NAME / str(number)).stands_by


def find_release(repository: Path, number: int) -> Release:
    """Release `number`. Raises PublishError if it does not exist, DamagedRelease if it does not pass its checks."""
    numbers = release_numbers(repository)
    if number not in numbers:
        there = ", ".join(map(str, numbers)) or "none"
        raise PublishError(f"There is no release {number} in {repository} (there: {there}).")
    return read_trusted(repository / MODEL_NAME / str(number))


def read_ledger(repository: Path) -> Ledger:
    """The ledger, with all numbers of existing releases counted as used. Raises PublishError for a damaged file."""
    path = repository / _LEDGER
    try:
        ledger = Ledger.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        ledger = Ledger()
    except ValueError as error:
        raise PublishError(
            f"{path} is damaged; restore it, since it prevents numbers from being used twice."
        ) from error
    newest = newest_release(repository)
    ids = [segment.segment_id for segment in newest.segments] if newest else []
    return Ledger(
        next_release=max(ledger.next_release, *(number + 1 for number in [0, *release_numbers(repository)])),
        next_segment_id=max(ledger.next_segment_id, *(segment_id + 1 for segment_id in [0, *ids])),
    )


def write_ledger(repository: Path, ledger: Ledger) -> None:
    """Replace the ledger by a rename and sync it to disk."""
    write_atomically(repository / _LEDGER, ledger.model_dump_json() + "\n")
    sync_directory(repository)


@contextmanager
def locked(repository: Path) -> Iterator[None]:
    """Hold the publishing lock. Raises PublishError at once if somebody else holds it."""
    repository.mkdir(parents=True, exist_ok=True)
    with (repository / _LOCK).open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise PublishError(f"Somebody else is publishing to {repository}; try again later.") from None
        yield


def sync_directory(directory: Path) -> None:
    """Sync a directory to disk, so that its file names survive a crash."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
