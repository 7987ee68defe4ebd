"""Where the release before put the users of a log, by its own encoder and centroids."""

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from server.core.release import Release
from training.runs import Progress, no_progress
from training.segments.placement import histories_of, place_users


@dataclass(frozen=True, slots=True)
class PreviousSegments:
    """Users known to the release before: `rows` (N,) of the log, ascending, and `segment_ids` (N,), theirs then.

    `overlaps` says whether the log holds what they did when that release was made. Where it does not, they are placed
    by what they have done since.
    """

    release: Release
    rows: NDArray[np.intp]
    segment_ids: NDArray[np.int64]
    overlaps: bool

    @property
    def known_ids(self) -> list[int]:
        """All segments of that release."""
        return [profile.segment_id for profile in self.release.segments]

    @property
    def notes(self) -> list[str]:
        """What people should know of it, in sentences."""
        if self.overlaps or not len(self.rows):
            return []
        return [
            f"The log begins after the data of release {self.release.number} ended; its users are placed among that "
            "release's segments by what they have done since."
        ]


def place_before(
    release: Release, repository: Path, prepared: Path, users: pl.Series, progress: Progress = no_progress
) -> PreviousSegments:
    """Place those of the `users` (U,) of a prepared log who were known to an earlier release.

    Known is who has an event, of an item and an action that the release knows, from the time of its data. A log
    without clock, and one that begins later, does not tell: there known is who has any such event.
    """
    until = release.manifest.data_cutoff_time if release.preprocessing.has_clock else None
    events = pl.scan_parquet(prepared / "events.parquet")
    histories = histories_of(events if until is None else events.filter(_before(until)), release)
    overlaps = until is None or histories.event_count > histories.unknown_events
    if not overlaps:
        histories = histories_of(events, release)
    placed = place_users(histories, release, repository, progress)
    rows = (
        pl.DataFrame({"user_id": users}).with_row_index("row").filter(pl.col("user_id").is_in(placed.users.implode()))
    )
    ids = np.array([profile.segment_id for profile in release.segments], np.int64)
    return PreviousSegments(release, rows["row"].to_numpy().astype(np.intp), ids[placed.place.first], overlaps)


def _before(until: datetime) -> pl.Expr:
    return pl.col("timestamp") <= int(until.astimezone(UTC).timestamp() * 1000)


def means_of(points: NDArray[np.float64], previous: PreviousSegments) -> NDArray[np.float32]:
    """Means (P, D) of the previous segments' users among points (U, D) of today.

    They are right for any encoder to start from; the previous centroids are in another one's space.
    """
    # The sum of each segment's users (P, D), over how many they are.
    ids, member, sizes = np.unique(previous.segment_ids, return_inverse=True, return_counts=True)
    sums = np.zeros((len(ids), points.shape[1]))
    np.add.at(sums, member, points[previous.rows])
    return (sums / sizes[:, None]).astype(np.float32)
