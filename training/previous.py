"""Where the release before put the users of a log, by its own encoder and centroids."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from server.core.features import Features, encode
from server.core.release import Release
from server.core.repository import MODEL_NAME
from server.core.segments import segment_part
from training.embed import embed
from training.kmeans import assign
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


def place_before(release: Release, repository: Path, prepared: Path, progress: Progress = no_progress) -> Previous:
    """Place all users of a prepared log who were known to an earlier release.

    Known is who has an event, of an item and an action that the release knows, from the time of its data. A log
    without clock, and one that begins later, does not tell: there known is who has any such event.
    """
    until = release.manifest.data_cutoff_time if release.preprocessing.has_clock else None
    events = _known_events(release, prepared, until)
    overlaps = not events.is_empty() or until is None
    if not overlaps:
        events = _known_events(release, prepared, None)
    rows, features = _features(events, release)
    if not len(rows):
        return Previous(release, rows, np.empty(0, np.int64), overlaps)
    model = repository / MODEL_NAME / str(release.number) / "model.onnx"
    embeddings = embed(model, features, max_length=release.preprocessing.max_length, progress=progress)
    placed = assign(segment_part(embeddings, release.item_embeddings.shape[1]), release.centroids)
    ids = np.array([profile.segment_id for profile in release.segments], np.int64)
    return Previous(release, rows, ids[placed.first], overlaps)


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


def _known_events(release: Release, prepared: Path, until: datetime | None) -> pl.DataFrame:
    """Events that a release knows: `row`, `item_index`, `action_index`, `value` and `timestamp`, in the log's order."""
    names: Sequence[str] = [action.name for action in release.preprocessing.actions]
    items = pl.LazyFrame({"item_id": release.item_ids}).with_row_index("item_index", 1)
    actions = pl.LazyFrame({"action": names}, {"action": pl.String}).with_row_index("action_index", 1)
    events = pl.scan_parquet(prepared / "events.parquet").with_columns(pl.col("user_id").rle_id().alias("row"))
    if until is not None:
        events = events.filter(pl.col("timestamp") <= int(until.astimezone(UTC).timestamp() * 1000))
    return (
        events.join(items, on="item_id", maintain_order="left")
        .join(actions, on="action", maintain_order="left")
        .select("row", pl.col("item_index", "action_index").cast(pl.Int32), "value", "timestamp")
        .collect()
    )


def _features(events: pl.DataFrame, release: Release) -> tuple[NDArray[np.intp], Features]:
    """Rows of the users who have such events (N,), and their histories."""
    encoded = encode(events.lazy(), release.preprocessing).collect()
    rows = encoded["row"].to_numpy()
    starts = np.flatnonzero(np.diff(rows.astype(np.int64), prepend=-1)) if len(rows) else np.empty(0, np.intp)
    features = Features(
        encoded["item_index"].to_numpy(),
        encoded["action_index"].to_numpy(),
        encoded["value"].to_numpy(),
        encoded["gap_index"].to_numpy(),
        np.append(starts, len(rows)).astype(np.int64),
        np.zeros(len(starts), np.int32),
    )
    return rows[starts].astype(np.intp), features
