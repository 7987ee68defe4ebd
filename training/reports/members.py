"""The users of a segment, from the run that a release came from or from a log.

A release holds no user ids, so the users come from one of these two.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from server.core.release import Release
from training.config import Config
from training.data.account import Account
from training.data.reading.sources import Log
from training.errors import ConfigError, RunError
from training.repository import find_release, read_ledger, release_numbers
from training.runs import Progress, Run, no_progress
from training.segments.placement import PlacedUsers, assignment_table, histories_of, place_users, read_events
from training.segments.result import Segmentation, same_segments


@dataclass(frozen=True, slots=True)
class MembersOfLog:
    """`users` with the columns of `members_of_run`, and the account of the log.

    `unknown_users` users are left out, since the release knows none of their events.
    """

    users: pl.DataFrame
    unknown_users: int
    account: Account


def members_of_run(
    repository: Path, number: int, segment_id: int | None, runs: Path, run_id: str | None = None
) -> pl.DataFrame:
    """Rows of `assignments.parquet` of the run that made release `number`: all users, or the users of one segment.

    The run is `run_id`, or the run under `runs` whose record says that it was published as this release in this
    repository. Raises PublishError for a missing release, ConfigError for a segment that the release does not have,
    RunError for a missing run or a run whose segments have changed.
    """
    release = find_release(repository, number)
    check_segment(repository, release, segment_id)
    run = Run.open(runs, run_id) if run_id else run_of(release, repository, runs)
    if not same_segments(run, Segmentation.read(run.require("segment")), release):
        raise RunError(
            f"{run.path} does not have the segments of release {number}: the run was segmented again, or another run "
            "made the release. Name that run with --run, or give a log with --events."
        )
    return _of_segment(pl.read_parquet(run.path / "segment" / "assignments.parquet"), segment_id)


def members_of_log(
    repository: Path,
    number: int,
    segment_id: int | None,
    events: Log,
    config: Config,
    progress: Progress = no_progress,
) -> MembersOfLog:
    """Users of a log, assigned to segments by release `number`.

    Raises PublishError for a missing release, ConfigError for a segment that it does not have, LogError for an unusable
    log.
    """
    release = find_release(repository, number)
    check_segment(repository, release, segment_id)
    read = read_events(events, config, release)
    histories = histories_of(read.events.lazy(), release)
    placed = place_users(histories, release, repository, progress)
    unknown_users = len(histories.users) - len(placed.users)
    return MembersOfLog(_of_segment(_table(placed, release), segment_id), unknown_users, read.account)


def check_segment(repository: Path, release: Release, segment_id: int | None) -> None:
    """Raises ConfigError for a segment that the release does not have, with the releases that had it."""
    existing_ids = [profile.segment_id for profile in release.segments]
    if segment_id is None or segment_id in existing_ids:
        return
    holders = [number for number in release_numbers(repository) if segment_id in _segment_ids(repository, number)]
    if earlier := [number for number in holders if number < release.number]:
        reason = f"the segment is retired; release {earlier[-1]} was the last release before that had it"
    elif holders:
        reason = f"the segment is new in release {holders[0]}"
    elif 0 < segment_id < read_ledger(repository).next_segment_id:
        reason = "the segment belonged to a release that is not in the repository any more"
    else:
        reason = "no release of the repository ever had this segment"
    listed = ", ".join(map(str, sorted(existing_ids)))
    raise ConfigError(f"Release {release.number} has no segment {segment_id}: {reason}. Its segments: {listed}.")


def _segment_ids(repository: Path, number: int) -> set[int]:
    return {profile.segment_id for profile in find_release(repository, number).segments}


def run_of(release: Release, repository: Path, runs: Path) -> Run:
    """The run that was published as the release; of several, the first that has the release's segments.

    Raises RunError if no run was published as the release.
    """
    candidates = list(published_as(release.number, repository, runs))
    for run in candidates:
        if same_segments(run, Segmentation.read(run.path / "segment"), release):
            return run
    if candidates:
        return candidates[0]
    raise RunError(
        f"No run under {runs} was published as release {release.number} in {repository}; name the run with --run, the "
        "directory of runs with --runs, or give a log with --events."
    )


def published_as(number: int, repository: Path, runs: Path) -> Iterator[Run]:
    """The runs under `runs` whose records say that they were published as release `number` in `repository`."""
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
