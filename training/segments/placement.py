"""Places the users of a log in the segments of a release, with the computation of the server."""

import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from server.core.features import Features, encode
from server.core.own_items import PastEvents
from server.core.release import Confidence, Release
from server.core.repository.layout import MODEL_NAME
from server.core.segments import Nearest, margin, normalised, segment_part
from server.core.visits import visit_starts
from training.config import Config
from training.data.account import Account, dropping_step
from training.data.cleaning import clean
from training.data.prepare import named_actions
from training.data.reading.item_table import read_users
from training.data.reading.log_reader import read_raw_log
from training.data.reading.sources import Log
from training.data.sequences import in_canonical_order
from training.errors import LogError
from training.kmeans.fit import assign
from training.model.onnx_inference import embed
from training.runs import Progress, no_progress


@dataclass(frozen=True, slots=True)
class ReadEvents:
    """Events of a log with the columns user_id, item_id and action (text), value and timestamp, and their account."""

    events: pl.DataFrame
    account: Account


@dataclass(frozen=True, slots=True)
class Histories:
    """Users (U) of a log, in the log's order, with the newest events that a release knows; a history may be empty.

    This is not an `EventLog`: the log may be unprepared, a release has no split, and only the events that the encoder
    reads are kept. `unknown_events` of the `event_count` events have an item or action that the release does not know.
    """

    users: pl.Series
    features: Features
    event_count: int
    unknown_events: int


@dataclass(frozen=True, slots=True)
class PlacedUsers:
    """The users (P) with at least one known event, and their `nearest` centroids.

    `rows` (P,) are the users' places in `Histories`, `event_counts` (P,) the events that the encoder read. `points`
    (P, E) are the segment parts of the embeddings, of length 1. `confidence` (P,) is 0 to 1, None for a release without
    a calibration.
    """

    users: pl.Series
    rows: NDArray[np.intp]
    event_counts: NDArray[np.int64]
    points: NDArray[np.float64]
    nearest: Nearest
    confidence: NDArray[np.float64] | None


def read_events(path: Log, config: Config, release: Release, users: Path | None = None) -> ReadEvents:
    """Events of the log at `path`, ordered by user and time, cleaned by `config` as before training; their account.

    Items with few events are kept, since the release has its own item list. `users` is the path of a table that limits
    the users. Raises ConfigError, and LogError for an unusable log or one without the times that the release reads.
    """
    with tempfile.TemporaryDirectory() as scratch:
        log = read_raw_log(path, config.columns, Path(scratch))
        requested = read_users(users, config.users, Path(scratch), config.columns.words) if users else None
    if release.preprocessing.has_clock and not log.has_clock:
        raise LogError(
            f"{path} has no times, but the encoder of release {release.number} needs them; add a time column."
        )
    log, _, _ = named_actions(log, config)
    settings = config.clean.model_copy(update={"min_events_per_item": 1})
    cleaned = clean(log, settings, int(time.time() * 1000), config.train.seed)
    events = cleaned.events.with_columns(pl.col("user_id", "item_id", "action").cast(pl.String))
    steps, notes = [*log.steps, *cleaned.steps], log.notes
    if requested is not None and users is not None:
        ids = requested.rows["user_id"]
        kept = events.filter(pl.col("user_id").is_in(ids.implode()))
        if kept.is_empty():
            raise LogError(f"None of the {len(ids):,} users in {users} has an event in {path}.")
        steps.append(dropping_step("other users", events, kept, f"of users who are not in {users.name}"))
        events, notes = kept, (*notes, *requested.notes)
    rows, tables = len(events), (requested.account,) if requested else ()
    account = Account(
        rows_in=log.row_count, rows_out=rows, steps=tuple(steps), notes=notes, files=log.parts, tables=tables
    )
    return ReadEvents(events, account)


def histories_of(events: pl.LazyFrame, release: Release) -> Histories:
    """Encode the newest known events of each user, at most the release's `max_length`.

    `events` has user_id, item_id, action (text), value and timestamp, ordered by user and time.
    """
    names = [action.name for action in release.preprocessing.actions]
    indexed = (
        events.with_columns(pl.col("user_id").rle_id().alias("row"))
        .join(_indexes("item_id", release.item_ids), on="item_id", how="left", maintain_order="left")
        .join(_indexes("action", names), on="action", how="left", maintain_order="left")
        .select("user_id", "row", "item_index", "action_index", "value", "timestamp")
        .collect()
    )
    users = indexed["user_id"].gather(np.flatnonzero(np.diff(indexed["row"].to_numpy().astype(np.int64), prepend=-1)))
    known = indexed.drop_nulls(["item_index", "action_index"])
    known = in_canonical_order(known, release.item_ids, release.preprocessing)
    from_end = pl.int_range(pl.len(), 0, -1).over("row")
    newest = known.lazy().filter(from_end <= release.preprocessing.max_length)
    columns = encode(newest, release.preprocessing).collect()
    features = Features.of(columns, np.bincount(columns["row"].to_numpy(), minlength=len(users)))
    return Histories(users, features, len(indexed), len(indexed) - len(known))


def place_users(
    histories: Histories, release: Release, repository: Path, progress: Progress = no_progress
) -> PlacedUsers:
    """Embed histories with the release's encoder and find the nearest centroids; users without events are left out."""
    model = repository / MODEL_NAME / str(release.number) / "model.onnx"
    embeddings = embed(model, histories.features, release.preprocessing.max_length, progress)
    return place_embeddings(histories, release, embeddings)


def place_embeddings(histories: Histories, release: Release, embeddings: NDArray[np.float32]) -> PlacedUsers:
    """Find the nearest centroids of user embeddings (U, D); users without events are left out."""
    lengths = histories.features.lengths
    rows = np.flatnonzero(lengths)
    parts = segment_part(embeddings, release.manifest.embedding_dim)[rows]
    nearest = assign(parts, release.centroids)
    calibration = release.manifest.confidence
    return PlacedUsers(
        histories.users.gather(rows),
        rows,
        lengths[rows],
        normalised(parts),
        nearest,
        calibration.at(margin(nearest)) if calibration else None,
    )


def assignment_table(
    users: pl.Series,
    segment_ids: Sequence[int],
    nearest: Nearest,
    event_counts: NDArray[np.int64],
    calibration: Confidence | None,
) -> pl.DataFrame:
    """One row per user (U), with the values that the server answers.

    `segment_ids` (K,) are by centroid; `event_counts` (U,) are the events that the encoder read. Without a calibration
    every segment is confident and no history is short. With one centroid the runner-up is 0.
    """
    ids = np.array(segment_ids, np.int64)
    confidence = calibration.at(margin(nearest)) if calibration else None
    confident, short = np.ones(len(users), np.bool_), np.zeros(len(users), np.bool_)
    if calibration is not None and confidence is not None:
        confident, short = confidence >= calibration.min_confidence, event_counts < calibration.min_history
    columns = {
        "user_id": users,
        "segment_id": ids[nearest.first],
        "distance": nearest.first_distance.astype(np.float32),
        "confidence": confidence,
        "runner_up_segment_id": np.where(nearest.first == nearest.second, 0, ids[nearest.second]),
        "confident": confident,
        "short_history": short,
    }
    return pl.DataFrame(columns, schema_overrides={"confidence": pl.Float32})


def _indexes(name: str, ids: Sequence[str]) -> pl.LazyFrame:
    """A table from `item_id` to `item_index`, or from `action` to `action_index`; indexes start at 1."""
    index = f"{name.removesuffix('_id')}_index"
    frame = pl.LazyFrame({name: ids}, {name: pl.String}).with_row_index(index, 1)
    return frame.with_columns(pl.col(index).cast(pl.Int32))


def past_events_of(events: pl.DataFrame, release: Release) -> list[PastEvents]:
    """The events of each user with items that the release knows, from columns of a log sorted by user and time."""
    catalogue = pl.DataFrame({"item_id": release.item_ids}).with_row_index("item_row")
    weights = {action.name: action.weight for action in release.preprocessing.actions}
    indexed = events.select(
        pl.col("user_id").rle_id().alias("row"),
        "item_id",
        pl.col("action").cast(pl.String).replace_strict(weights, default=0.0, return_dtype=pl.Float32).alias("weight"),
        "timestamp",
    )
    known = indexed.join(catalogue, on="item_id", maintain_order="left")
    row, time = known["row"].to_numpy().astype(np.int64), known["timestamp"].to_numpy()
    columns = known["item_row"].to_numpy().astype(np.int64), known["weight"].to_numpy(), time
    starts = visit_starts(row, time, release.preprocessing.visits.gap_seconds)
    bounds = np.searchsorted(row, np.arange(1, int(indexed["row"].to_numpy()[-1]) + 1))  # of users 1, 2, …
    return [
        PastEvents(*parts) for parts in zip(*(np.split(column, bounds) for column in (*columns, starts)), strict=True)
    ]


def seen_item_rows(events: pl.DataFrame, release: Release) -> list[NDArray[np.intp]]:
    """The catalogue rows of each user's items, ascending, including items of events that the encoder does not read."""
    catalogue = pl.DataFrame({"item_id": release.item_ids}).with_row_index("item_row")
    indexed = events.select(pl.col("user_id").rle_id().alias("row"), "item_id")
    pairs = indexed.unique().join(catalogue, on="item_id").sort("row", "item_row")
    user_count = int(indexed["row"].to_numpy()[-1]) + 1
    starts = np.searchsorted(pairs["row"].to_numpy(), np.arange(1, user_count))  # of users 1, 2, …
    return [item_rows.astype(np.intp) for item_rows in np.split(pairs["item_row"].to_numpy(), starts)]
