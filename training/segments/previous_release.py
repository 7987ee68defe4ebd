"""Places the users of a log in the segments of the previous release, with that release's encoder and centroids."""

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
    """The users whom the previous release knows: their `rows` (N,) in the log, ascending, and `segment_ids` (N,).

    `overlaps` is true if the log has events from before the previous release's data cut-off. If false, users are placed
    by their later events.
    """

    release: Release
    rows: NDArray[np.intp]
    segment_ids: NDArray[np.int64]
    overlaps: bool

    @property
    def known_ids(self) -> list[int]:
        """The ids of all segments of the previous release."""
        return [profile.segment_id for profile in self.release.segments]

    @property
    def notes(self) -> list[str]:
        """Warnings for people, as sentences."""
        if self.overlaps or not len(self.rows):
            return []
        return [
            f"The log begins after the data of release {self.release.number} ends, so users are placed in that "
            "release's segments by later events."
        ]


def place_previous_users(
    release: Release, repository: Path, prepared: Path, users: pl.Series, progress: Progress = no_progress
) -> PreviousSegments:
    """Place the users of a prepared log whom the release knows; `users` (U,) are all users of the log.

    The release knows a user who has an event with a known item and action, up to the release's data cut-off. In a log
    without a clock, and in a log that begins after the cut-off, events of any time count.
    """
    cutoff = release.manifest.data_cutoff_time if release.preprocessing.has_clock else None
    events = pl.scan_parquet(prepared / "events.parquet")
    histories = histories_of(events if cutoff is None else events.filter(_up_to(cutoff)), release)
    overlaps = cutoff is None or histories.event_count > histories.unknown_events
    if not overlaps:
        histories = histories_of(events, release)
    placed = place_users(histories, release, repository, progress)
    rows = (
        pl.DataFrame({"user_id": users}).with_row_index("row").filter(pl.col("user_id").is_in(placed.users.implode()))
    )
    ids = np.array([profile.segment_id for profile in release.segments], np.int64)
    return PreviousSegments(release, rows["row"].to_numpy().astype(np.intp), ids[placed.nearest.first], overlaps)


def _up_to(cutoff: datetime) -> pl.Expr:
    return pl.col("timestamp") <= int(cutoff.astimezone(UTC).timestamp() * 1000)


def segment_means(points: NDArray[np.float64], previous: PreviousSegments) -> NDArray[np.float32]:
    """Mean points (P, D) of each previous segment's users among the new points (U, D).

    A K-means fit can start from these means with any encoder; the previous centroids are points of the old encoder.
    """
    # The sum of each segment's points (P, D), divided by the segment's number of users.
    ids, member, sizes = np.unique(previous.segment_ids, return_inverse=True, return_counts=True)
    sums = np.zeros((len(ids), points.shape[1]))
    np.add.at(sums, member, points[previous.rows])
    return (sums / sizes[:, None]).astype(np.float32)
