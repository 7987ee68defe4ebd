"""Deletes runs that nothing needs, and what is older than the retention."""

import shutil
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl

from server.core.errors import SegrecError
from server.core.repository.layout import MODEL_NAME, read_preprocessing
from training.errors import RunError
from training.privacy.tables import EVENTS, Removed, cut_runs, expired, rewriting, run_directories
from training.runs import Run

_TRASH = ".pruned"
_LONGEST_STAGE = timedelta(days=7)
"""A stage that began earlier and has not ended was killed."""


@dataclass(frozen=True, slots=True)
class PrunedRuns:
    """Names of the deleted (`gone`) and of the kept runs, ascending, and the changed files of the kept runs."""

    gone: tuple[str, ...]
    kept: tuple[str, ...]
    cut: tuple[Removed, ...]


@dataclass(frozen=True, slots=True)
class _Found:
    """A run: when it was created, and the time of its newest event, or for a log without a clock of its creation."""

    path: Path
    stages: dict[str, Any]
    created: datetime
    data_time: datetime


def prune_runs(
    runs: Path,
    repository: Path,
    retain: int | None,
    retention: timedelta | None,
    now: datetime,
    dry_run: bool = False,
) -> PrunedRuns:
    """Delete runs that are older than the `retain` newest runs and not needed, and events beyond the `retention`.

    A run is needed while a stage of it runs, while `repository` has its release, and while a kept run reads its
    prepared log. A run without events younger than the retention is deleted unless a stage of it runs; other runs lose
    older events. None stands for no limit. A dry run changes nothing. Raises RunError for a missing directory, while
    somebody else deletes, and for files that cannot be read or written.
    """
    with rewriting(runs):
        try:
            before = now - retention if retention else None
            found = sorted(map(_look, run_directories(runs)), key=lambda run: (run.created, run.path.name))
            kept = [run for run in found if not (before and run.data_time < before) or _is_running(run, now)]
            if retain is not None:
                kept = _needed(kept, retain, repository, now)
            gone = [run for run in found if run not in kept]
            if not dry_run:
                _delete(runs, [run.path for run in gone])
            cut = cut_runs(runs, expired(int(before.timestamp() * 1000))) if before and not dry_run else []
        except OSError as error:
            raise RunError(f"Runs under {runs} cannot be deleted: {error.strerror}.") from error
    names = [tuple(sorted(run.path.name for run in part)) for part in (gone, kept)]
    return PrunedRuns(names[0], names[1], tuple(cut))


def _look(directory: Path) -> _Found:
    """A damaged run has no stages, and counts as created when its record was written last."""
    try:
        record = Run(directory).record()
        stages, created = record["stages"], datetime.fromisoformat(record["created"])
    except RunError:
        stages, created = {}, datetime.fromtimestamp((directory / "run.json").stat().st_mtime, UTC)
    return _Found(directory, stages, created, _newest_event(directory / "prepare") or created)


def _newest_event(prepared: Path) -> datetime | None:
    """None without readable times."""
    try:
        if not read_preprocessing(prepared).has_clock:
            return None
        newest = pl.scan_parquet(prepared / EVENTS).select(pl.col("timestamp").max()).collect().item()
    except (OSError, SegrecError, pl.exceptions.PolarsError):
        return None
    return None if newest is None else datetime.fromtimestamp(newest / 1000, UTC)


def _needed(found: list[_Found], retain: int, repository: Path, now: datetime) -> list[_Found]:
    """The `retain` last of the runs, those that are needed, and those whose log one of these reads."""
    newest = found[max(0, len(found) - retain) :]
    chosen = [run for run in found if run in newest or _is_running(run, now) or _has_release(run, repository)]
    logs = {(run.path / "prepare").resolve() for run in chosen}
    return [run for run in found if (run.path / "prepare").resolve() in logs]


def _is_running(run: _Found, now: datetime) -> bool:
    begun = [datetime.fromisoformat(stage["started"]) for stage in run.stages.values() if stage["state"] == "running"]
    return any(now - time < _LONGEST_STAGE for time in begun)


def _has_release(run: _Found, repository: Path) -> bool:
    figures = run.stages.get("publish", {}).get("figures", {})
    is_same = figures.get("repository") == str(repository.resolve())
    return is_same and (repository / MODEL_NAME / str(figures["release"])).is_dir()


def _delete(runs: Path, gone: list[Path]) -> None:
    """Rename the runs away, then delete them and what an earlier deletion left."""
    if gone:
        trash = runs / _TRASH / uuid.uuid4().hex
        trash.mkdir(parents=True)
        for path in gone:
            path.rename(trash / path.name)
    if (runs / _TRASH).is_dir():
        shutil.rmtree(runs / _TRASH)
