"""Takes old releases out of the model repository: none that answers, could answer, or that a roll-back goes to."""

import shutil
import uuid
from dataclasses import dataclass
from pathlib import Path

from server.core.errors import DamagedRelease, NothingToRollBack
from server.core.repository.audit import AuditEntry, append_audit
from server.core.repository.layout import MODEL_NAME
from server.core.repository.read import read_release
from server.core.repository.traffic import Traffic, locked_traffic, read_traffic
from training.errors import PublishError
from training.publish.traffic import goal_of_roll_back
from training.repository import locked, release_numbers, sync_directory

_GONE = ".pruned"


@dataclass(frozen=True, slots=True)
class Pruned:
    """Numbers of the releases that went and that stay, ascending, and how many bytes that frees."""

    gone: tuple[int, ...]
    kept: tuple[int, ...]
    freed_bytes: int


def prune(repository: Path, retain: int, who: str, reason: str = "", dry_run: bool = False) -> Pruned:
    """Take out what is older than the `retain` newest good releases and not needed; a dry run only says what.

    A release is first renamed out of the model's directory, then deleted. Raises DamagedTraffic where nobody can say
    what is needed, and PublishError while somebody publishes or where the repository cannot be written.
    """
    try:
        with locked(repository), locked_traffic(repository):
            pruned = _planned(repository, retain)
            if dry_run or not pruned.gone:
                return pruned
            away = repository / _GONE / uuid.uuid4().hex
            _tell(repository, pruned, who, reason)
            _move_away(repository, pruned.gone, away)
        shutil.rmtree(repository / _GONE)
    except OSError as error:
        raise PublishError(f"Old releases of {repository} cannot be taken out: {error.strerror}.") from error
    return pruned


def _planned(repository: Path, retain: int) -> Pruned:
    numbers = release_numbers(repository)
    newest = _newest_good(repository, numbers, retain)
    spared = _spared(repository, read_traffic(repository), retain)
    oldest = newest[-1] if newest else 0
    gone = tuple(number for number in numbers if number < oldest and number not in spared)
    kept = tuple(number for number in numbers if number not in gone)
    return Pruned(gone, kept, sum(_size(repository / MODEL_NAME / str(number)) for number in gone))


def _newest_good(repository: Path, numbers: list[int], count: int) -> list[int]:
    """The newest `count` releases that pass their checks, newest first."""
    found: list[int] = []
    for number in reversed(numbers):
        if len(found) == count:
            break
        try:
            read_release(repository / MODEL_NAME / str(number))
        except DamagedRelease:
            continue
        found.append(number)
    return found


def _spared(repository: Path, traffic: Traffic, retain: int) -> set[int]:
    """What the traffic names, the latest that were stable before, and where a roll-back goes."""
    spared = traffic.named_releases() | set(traffic.previous[:retain])
    try:
        return spared | {goal_of_roll_back(repository, traffic)}
    except NothingToRollBack:
        return spared


def _tell(repository: Path, pruned: Pruned, who: str, reason: str) -> None:
    details = {"gone": list(pruned.gone), "kept": list(pruned.kept), "freed_bytes": pruned.freed_bytes}
    entry = AuditEntry(who=who, what="prune", release=pruned.gone[-1], reason=reason, details=details)
    append_audit(repository, entry)


def _move_away(repository: Path, numbers: tuple[int, ...], away: Path) -> None:
    away.mkdir(parents=True)
    for number in numbers:
        (repository / MODEL_NAME / str(number)).rename(away / str(number))
    sync_directory(repository / MODEL_NAME)


def _size(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())
