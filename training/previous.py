"""Where the release before put the users of a log, by its own encoder and centroids."""

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from server.core.release import Release
from training.kmeans import assign
from training.placing import histories_of, place
from training.runs import Progress, no_progress


@dataclass(frozen=True, slots=True)
class Previous:
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
) -> Previous:
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
    placed = place(histories, release, repository, progress)
    rows = (
        pl.DataFrame({"user_id": users}).with_row_index("row").filter(pl.col("user_id").is_in(placed.users.implode()))
    )
    ids = np.array([profile.segment_id for profile in release.segments], np.int64)
    return Previous(release, rows["row"].to_numpy().astype(np.intp), ids[placed.place.first], overlaps)


def _before(until: datetime) -> pl.Expr:
    return pl.col("timestamp") <= int(until.astimezone(UTC).timestamp() * 1000)


def starts_from(points: NDArray[np.float64], previous: Previous, k: int, seed: int) -> NDArray[np.float32]:
    """`k` first centroids (k, D) for points (U, D) of today: the means of the previous segments' users, largest first.

    Means of today's embeddings are right for any encoder; the previous centroids are in another one's space. Where
    there are more to make than there were, users far from all are drawn as k-means++ does.
    """
    found = _means(points[previous.rows], previous.segment_ids)[:k]
    rng = np.random.default_rng(seed)
    while len(found) < k:
        squared = _squared(points, found)
        chance = squared / squared.sum() if squared.sum() else None
        found = np.vstack([found, points[rng.choice(len(points), p=chance)]])
    return found.astype(np.float32)


def _squared(points: NDArray[np.float64], centroids: NDArray[np.float64]) -> NDArray[np.float64]:
    """Squared distance of each point (U,) to the nearest centroid."""
    found: NDArray[np.float64] = assign(points.astype(np.float32), centroids.astype(np.float32)).first_distance ** 2
    return found


def _means(points: NDArray[np.float64], segment_ids: NDArray[np.int64]) -> NDArray[np.float64]:
    ids, member, sizes = np.unique(segment_ids, return_inverse=True, return_counts=True)
    sums = np.zeros((len(ids), points.shape[1]))
    np.add.at(sums, member, points)
    means: NDArray[np.float64] = (sums / sizes[:, None])[np.argsort(-sizes, kind="stable")]
    return means
