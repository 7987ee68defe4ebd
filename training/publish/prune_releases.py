"""Deletes old releases, except those that answer or can answer, and the target of a roll-back."""

import shutil
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from server.core.errors import DamagedRelease, NothingToRollBack
from server.core.repository.audit import AuditEntry, append_audit
from server.core.repository.layout import MODEL_NAME
from server.core.repository.read import read_manifest
from server.core.repository.traffic import Traffic, locked_traffic, read_traffic
from training.errors import PublishError
from training.publish.traffic import rollback_target
from training.repository import locked, read_trusted, release_numbers, sync_directory

_TRASH = ".pruned"


@dataclass(frozen=True, slots=True)
class Pruned:
    """Numbers of the deleted (`gone`) and of the kept releases, ascending, and the freed bytes.

    `overdue` are kept releases whose data are beyond the retention, because they answer or can answer.
    """

    gone: tuple[int, ...]
    kept: tuple[int, ...]
    overdue: tuple[int, ...]
    freed_bytes: int


def prune(
    repository: Path,
    retain: int,
    who: str,
    reason: str = "",
    dry_run: bool = False,
    data_before: datetime | None = None,
) -> Pruned:
    """Delete releases that are older than the `retain` newest good releases and not needed; a dry run deletes none.

    Releases without an event from `data_before` on are deleted too, unless the traffic names them. A release is first
    renamed out of the model's directory, then deleted. Raises DamagedTraffic when the traffic, which names the needed
    releases, cannot be read; PublishError while somebody publishes and for a repository that cannot be written.
    """
    try:
        with locked(repository), locked_traffic(repository):
            pruned = _plan(repository, retain, data_before)
            if dry_run or not pruned.gone:
                return pruned
            trash = repository / _TRASH / uuid.uuid4().hex
            _note_in_audit(repository, pruned, who, reason)
            _move(repository, pruned.gone, trash)
        shutil.rmtree(repository / _TRASH)
    except OSError as error:
        raise PublishError(f"Old releases of {repository} cannot be deleted: {error.strerror}.") from error
    return pruned


def _plan(repository: Path, retain: int, data_before: datetime | None) -> Pruned:
    numbers = release_numbers(repository)
    newest = _newest_good(repository, numbers, retain)
    traffic = read_traffic(repository)
    needed = _needed(repository, traffic, retain)
    named = traffic.named_releases() | set([] if traffic.stable else newest[:1])
    expired = {number for number in numbers if data_before and _data_time(repository, number) < data_before}
    oldest = newest[-1] if newest else 0
    gone = tuple(n for n in numbers if (n < oldest and n not in needed) or (n in expired and n not in named))
    kept = tuple(n for n in numbers if n not in gone)
    overdue = tuple(n for n in kept if n in expired)
    return Pruned(gone, kept, overdue, sum(_size(repository / MODEL_NAME / str(number)) for number in gone))


def _newest_good(repository: Path, numbers: list[int], count: int) -> list[int]:
    """The newest `count` releases that pass their checks, newest first."""
    good: list[int] = []
    for number in reversed(numbers):
        if len(good) == count:
            break
        try:
            read_trusted(repository / MODEL_NAME / str(number))
        except DamagedRelease:
            continue
        good.append(number)
    return good


def _data_time(repository: Path, number: int) -> datetime:
    """The time of a release's newest event; its creation without a clock; the file's time for a damaged manifest."""
    directory = repository / MODEL_NAME / str(number)
    try:
        manifest = read_manifest(directory)
    except DamagedRelease:
        return datetime.fromtimestamp(directory.stat().st_mtime, UTC)
    return manifest.data_cutoff_time or manifest.created_time


def _needed(repository: Path, traffic: Traffic, retain: int) -> set[int]:
    """Releases that the traffic names, the latest earlier stable releases, and the target of a roll-back."""
    needed = traffic.named_releases() | set(traffic.previous[:retain])
    try:
        return needed | {rollback_target(repository, traffic)}
    except NothingToRollBack:
        return needed


def _note_in_audit(repository: Path, pruned: Pruned, who: str, reason: str) -> None:
    details = {"gone": list(pruned.gone), "kept": list(pruned.kept), "freed_bytes": pruned.freed_bytes}
    entry = AuditEntry(who=who, what="prune", release=pruned.gone[-1], reason=reason, details=details)
    append_audit(repository, entry)


def _move(repository: Path, numbers: tuple[int, ...], trash: Path) -> None:
    trash.mkdir(parents=True)
    for number in numbers:
        (repository / MODEL_NAME / str(number)).rename(trash / str(number))
    sync_directory(repository / MODEL_NAME)


def _size(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())
