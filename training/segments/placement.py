"""Places the users of a log among the segments of a release, as the server does with their histories."""

import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from server.core.features import Features, encode
from server.core.release import Confidence, Release
from server.core.repository.layout import MODEL_NAME
from server.core.segments import Nearest, margin, normalised, segment_part
from training.config import Config
from training.data.cleaning import clean
from training.data.log_reader import read_raw_log, read_users
from training.data.prepare import named_actions
from training.errors import LogError
from training.kmeans.fit import assign
from training.model.onnx_inference import embed
from training.runs import Progress, no_progress


@dataclass(frozen=True, slots=True)
class Histories:
    """Users (U) of a log, in its order, with their newest events that a release knows; some users have none.

    Not an `EventLog`: the log need not be prepared, a release has no split, and only what the encoder reads is kept.
    `unknown_events` of all `event_count` events are of an item or action that the release does not know.
    """

    users: pl.Series
    features: Features
    event_count: int
    unknown_events: int


@dataclass(frozen=True, slots=True)
class PlacedUsers:
    """Users with a place, (P,): their `rows` among those of the histories, and how many events (P,) it rests on.

    `points` (P, E) are the parts of their embeddings that place them, of length 1. `confidence` (P,) is 0 to 1, None
    for a release that has no calibration of it.
    """

    users: pl.Series
    rows: NDArray[np.intp]
    event_counts: NDArray[np.int64]
    points: NDArray[np.float64]
    place: Nearest
    confidence: NDArray[np.float64] | None


def read_events(path: Path, config: Config, release: Release, users: Path | None = None) -> pl.DataFrame:
    """Events of the log in `path` in the order of users and time, cleaned by `config` as before training.

    Items with few events stay in: the release tells which items count. `users` is a table of the only users wanted.
    Raises LogError and ConfigError, and LogError for a log without times where the release reads times.
    """
    with tempfile.TemporaryDirectory() as scratch:
        log = read_raw_log(path, config.columns, Path(scratch))
        wanted = read_users(users, config.users, Path(scratch))["user_id"] if users else None
    if release.preprocessing.has_clock and not log.has_clock:
        raise LogError(f"{path} has no times, and the encoder of release {release.number} reads them; add a column.")
    log, _, _ = named_actions(log, config)
    settings = config.clean.model_copy(update={"min_events_per_item": 1})
    events = clean(log, settings, int(time.time() * 1000), config.train.seed).events
    events = events.with_columns(pl.col("user_id", "item_id", "action").cast(pl.String))
    if wanted is None:
        return events
    events = events.filter(pl.col("user_id").is_in(wanted.implode()))
    if events.is_empty():
        raise LogError(f"None of the {len(wanted):,} users in {users} has an event in {path}.")
    return events


def histories_of(events: pl.LazyFrame, release: Release) -> Histories:
    """Encode the newest known events of each user, as many as the release reads.

    `events` has user_id, item_id, action (text), value and timestamp, in the order of users and time.
    """
    names = [action.name for action in release.preprocessing.actions]
    marked = (
        events.with_columns(pl.col("user_id").rle_id().alias("row"))
        .join(_indexes("item_id", release.item_ids), on="item_id", how="left", maintain_order="left")
        .join(_indexes("action", names), on="action", how="left", maintain_order="left")
        .select("user_id", "row", "item_index", "action_index", "value", "timestamp")
        .collect()
    )
    users = marked["user_id"].gather(np.flatnonzero(np.diff(marked["row"].to_numpy().astype(np.int64), prepend=-1)))
    known = marked.drop_nulls(["item_index", "action_index"])
    from_end = pl.int_range(pl.len(), 0, -1).over("row")
    newest = known.lazy().filter(from_end <= release.preprocessing.max_length)
    columns = encode(newest, release.preprocessing).collect()
    features = Features.of(columns, np.bincount(columns["row"].to_numpy(), minlength=len(users)))
    return Histories(users, features, len(marked), len(marked) - len(known))


def place_users(
    histories: Histories, release: Release, repository: Path, progress: Progress = no_progress
) -> PlacedUsers:
    """Embed histories with the release's encoder and find the nearest centroids; users without events have no place."""
    model = repository / MODEL_NAME / str(release.number) / "model.onnx"
    embeddings = embed(model, histories.features, release.preprocessing.max_length, progress)
    return placed_at(histories, release, embeddings)


def placed_at(histories: Histories, release: Release, embeddings: NDArray[np.float32]) -> PlacedUsers:
    """The places of histories whose user embeddings (U, D) are known; users without events have none."""
    lengths = histories.features.lengths
    rows = np.flatnonzero(lengths)
    parts = segment_part(embeddings, release.manifest.embedding_dim)[rows]
    found = assign(parts, release.centroids)
    calibration = release.manifest.confidence
    return PlacedUsers(
        histories.users.gather(rows),
        rows,
        lengths[rows],
        normalised(parts),
        found,
        calibration.at(margin(found)) if calibration else None,
    )


def assignment_table(
    users: pl.Series,
    segment_ids: Sequence[int],
    found: Nearest,
    event_counts: NDArray[np.int64],
    calibration: Confidence | None,
) -> pl.DataFrame:
    """One row a user (U,), as the server answers; `segment_ids` (K,) are by centroid, `event_counts` (U,) what is read.

    Without a calibration nobody is in doubt and no history is short. With one centroid there is no runner-up: 0.
    """
    ids = np.array(segment_ids, np.int64)
    confidence = calibration.at(margin(found)) if calibration else None
    confident, short = np.ones(len(users), np.bool_), np.zeros(len(users), np.bool_)
    if calibration is not None and confidence is not None:
        confident, short = confidence >= calibration.min_confidence, event_counts < calibration.min_history
    columns = {
        "user_id": users,
        "segment_id": ids[found.first],
        "distance": found.first_distance.astype(np.float32),
        "confidence": confidence,
        "runner_up_segment_id": np.where(found.first == found.second, 0, ids[found.second]),
        "confident": confident,
        "short_history": short,
    }
    return pl.DataFrame(columns, schema_overrides={"confidence": pl.Float32})


def _indexes(name: str, ids: Sequence[str]) -> pl.LazyFrame:
    """`item_id` → `item_index`, or `action` → `action_index`, from 1."""
    index = f"{name.removesuffix('_id')}_index"
    frame = pl.LazyFrame({name: ids}, {name: pl.String}).with_row_index(index, 1)
    return frame.with_columns(pl.col(index).cast(pl.Int32))


def seen_rows(events: pl.DataFrame, release: Release) -> list[NDArray[np.intp]]:
    """Rows in the catalogue of all items that each user has events with, also those that the encoder does not read."""
    catalogue = pl.DataFrame({"item_id": release.item_ids}).with_row_index("item_row")
    marked = events.select(pl.col("user_id").rle_id().alias("row"), "item_id")
    found = marked.unique().join(catalogue, on="item_id").sort("row", "item_row")
    count = int(marked["row"].to_numpy()[-1]) + 1
    ends = np.searchsorted(found["row"].to_numpy(), np.arange(1, count))  # where the rows of users 1, 2, … begin
    return [part.astype(np.intp) for part in np.split(found["item_row"].to_numpy(), ends)]
