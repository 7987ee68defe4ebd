"""The users of a segment: as the run found them that a release came from, or placed anew from a log.

A release holds no user ids, so they come from where they were.
"""

from collections.abc import Iterator
from pathlib import Path

import polars as pl

from server.core.release import Release
from training.config import Config
from training.errors import ConfigError, RunError
from training.repository import find_release, read_ledger, release_numbers
from training.runs import Progress, Run, no_progress
from training.segments.placement import PlacedUsers, assignment_table, histories_of, place_users, read_events
from training.segments.result import Segmentation, same_segments


def members_of_run(
    repository: Path, number: int, segment_id: int | None, runs: Path, run_id: str | None = None
) -> pl.DataFrame:
    """`assignments.parquet` of the run that made release `number`, all of it or one segment's users.

    The run is `run_id`, or the one under `runs` that says that it was published as this release in this repository.
    Raises PublishError for a release that is not there, ConfigError for a segment that it does not have, RunError where
    there is no such run or it has other segments by now.
    """
    release = find_release(repository, number)
    check_segment(repository, release, segment_id)
    run = Run.open(runs, run_id) if run_id else run_of(release, repository, runs)
    if not same_segments(run, Segmentation.read(run.require("segment")), release):
        raise RunError(
            f"{run.path} does not have the segments of release {number}: they were made again, or by another run. "
            "Name that run by --run, or give the log by --events."
        )
    return _of_segment(pl.read_parquet(run.path / "segment" / "assignments.parquet"), segment_id)


def members_of_log(
    repository: Path,
    number: int,
    segment_id: int | None,
    events: Path,
    config: Config,
    progress: Progress = no_progress,
) -> tuple[pl.DataFrame, int]:
    """The same columns for the users of a log, placed by release `number` itself; and how many users it leaves out.

    Those are users of whom the release knows nothing. Raises PublishError, ConfigError and LogError.
    """
    release = find_release(repository, number)
    check_segment(repository, release, segment_id)
    histories = histories_of(read_events(events, config, release).lazy(), release)
    placed = place_users(histories, release, repository, progress)
    return _of_segment(_table(placed, release), segment_id), len(histories.users) - len(placed.users)


def check_segment(repository: Path, release: Release, segment_id: int | None) -> None:
    """Raises ConfigError for a segment that the release does not have, and says what became of it."""
    there = [profile.segment_id for profile in release.segments]
    if segment_id is None or segment_id in there:
        return
    known = ", ".join(map(str, sorted(there)))
    had = [number for number in release_numbers(repository) if segment_id in _segment_ids(repository, number)]
    if earlier := [number for number in had if number < release.number]:
        why = f"it is retired; release {earlier[-1]} was the last before that had it"
    elif had:
        why = f"it came in with release {had[0]}"
    elif 0 < segment_id < read_ledger(repository).next_segment_id:
        why = "it belonged to a release that is not here any more"
    else:
        why = "no release here ever had it"
    raise ConfigError(f"Release {release.number} has no segment {segment_id}: {why}. It has {known}.")


def _segment_ids(repository: Path, number: int) -> set[int]:
    return {profile.segment_id for profile in find_release(repository, number).segments}


def run_of(release: Release, repository: Path, runs: Path) -> Run:
    """The run that was published as the release; where several say so, one that has its segments.

    Raises RunError where no run says so.
    """
    found = list(published_as(release.number, repository, runs))
    for run in found:
        if same_segments(run, Segmentation.read(run.path / "segment"), release):
            return run
    if found:
        return found[0]
    raise RunError(
        f"No run under {runs} was published as release {release.number} in {repository}; name the run by --run, its "
        "place by --runs, or give a log by --events."
    )


def published_as(number: int, repository: Path, runs: Path) -> Iterator[Run]:
    """The runs under `runs` that say that they were published as release `number` in `repository`."""
    for path in sorted(runs.glob("*/run.json")):
        run = Run(path.parent)
        stage = run.record()["stages"].get("publish", {})
        figures = stage.get("figures", {})
        if (figures.get("release"), figures.get("repository")) == (number, str(repository.resolve())):
            yield run


def _of_segment(table: pl.DataFrame, segment_id: int | None) -> pl.DataFrame:
    return table if segment_id is None else table.filter(pl.col("segment_id") == segment_id)


def _table(placed: PlacedUsers, release: Release) -> pl.DataFrame:
    ids = [profile.segment_id for profile in release.segments]
    return assignment_table(placed.users, ids, placed.nearest, placed.event_counts, release.manifest.confidence)
