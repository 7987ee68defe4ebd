"""From `events.parquet` to encoder inputs: sequences by user, the split into train, validation and test, and windows.

The split is leave-one-out twice: of each user with at least `EVENTS_MIN` events the last one is the test target and
the one before it the validation target. Training ends before both, in each of two readings of a history: as it is,
and with only the first event of each user and item, the reading of the published figures. So neither gives away
what the other is tested on.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from server.core.features import Features, encode
from server.core.preprocessing import Preprocessing
from training.data.split import LEAVE_ONE_OUT, Split, read_split

EVENTS_MIN = 5
"""Users with fewer events (of the reading at hand) are for training only."""


@dataclass(frozen=True, slots=True)
class EventLog:
    """All users' events, encoded: user b's are `features.offsets[b]:features.offsets[b + 1]`.

    `train_ends` (U,) is one past each user's last event that training may see, an absolute place in the columns.
    `timestamp` (N,) is in milliseconds.
    """

    users: pl.Series
    features: Features
    timestamp: NDArray[np.int64]
    train_ends: NDArray[np.int64]
    split: Split = LEAVE_ONE_OUT


def read_log(prepared: Path, preprocessing: Preprocessing) -> EventLog:
    """Encode the whole of `events.parquet`, in its order."""
    events = _indexed(prepared, preprocessing).collect()
    split = read_split(prepared)
    return _log(events, preprocessing, _train_ends(events, split), split)


def read_first_events(prepared: Path, preprocessing: Preprocessing) -> EventLog:
    """Encode the first event of each user and item only. Training ends where it does in the whole log."""
    events = _indexed(prepared, preprocessing).collect()
    first = events.select(pl.struct("row", "item_index").is_first_distinct()).to_series()
    kept_before = np.concatenate([[0], np.cumsum(first.to_numpy())])
    split = read_split(prepared)
    return _log(events.filter(first), preprocessing, kept_before[_train_ends(events, split)], split)


def read_sequences(prepared: Path, preprocessing: Preprocessing) -> EventLog:
    """The reading that fits the log: first events where seen items are excluded, all events otherwise."""
    return (read_first_events if preprocessing.exclude_seen else read_log)(prepared, preprocessing)


def _indexed(prepared: Path, preprocessing: Preprocessing) -> pl.LazyFrame:
    """Events with row, item_index and action_index in place of user, item and action."""
    items = pl.scan_parquet(prepared / "items.parquet").select("item_id").with_row_index("item_index", 1)
    names = [action.name for action in preprocessing.actions]
    actions = pl.LazyFrame({"action": names}, {"action": pl.String}).with_row_index("action_index", 1)
    events = pl.scan_parquet(prepared / "events.parquet")
    return (
        events.with_columns(pl.col("user_id").rle_id().alias("row"))
        .join(items, on="item_id", how="left", maintain_order="left")
        .join(actions, on="action", how="left", maintain_order="left")
        .select("user_id", "row", pl.col("item_index", "action_index").cast(pl.Int32), "value", "timestamp")
    )


def _log(events: pl.DataFrame, preprocessing: Preprocessing, train_ends: NDArray[np.int64], split: Split) -> EventLog:
    encoded = encode(events.lazy(), preprocessing).collect()
    rows = encoded["row"].to_numpy()
    starts = np.flatnonzero(np.diff(rows, prepend=-1)) if len(rows) else np.empty(0, np.int64)
    features = Features(
        encoded["item_index"].to_numpy(),
        encoded["action_index"].to_numpy(),
        encoded["value"].to_numpy(),
        encoded["gap_index"].to_numpy(),
        np.append(starts, len(rows)).astype(np.int64),
        np.zeros(len(starts), np.int32),
    )
    return EventLog(events["user_id"].gather(starts), features, events["timestamp"].to_numpy(), train_ends, split)


def _train_ends(events: pl.DataFrame, split: Split) -> NDArray[np.int64]:
    """Before the validation target of both readings, the whole history of users too short for either.

    With a split by time, before the first event of the validation period.
    """
    if split.by_time:
        inside = (pl.col("timestamp") < split.validation_from).sum()
        users = events.lazy().group_by("row", maintain_order=True).agg(pl.len(), inside.alias("inside"))
        places = pl.col("len").cum_sum() - pl.col("len") + pl.col("inside")
        return users.select(places.cast(pl.Int64)).collect().to_series().to_numpy()
    first = pl.struct("row", "item_index").is_first_distinct()
    place = pl.int_range(pl.len(), dtype=pl.Int64)
    ends = (
        events.lazy()
        .select("row", place.alias("place"), first.alias("first"))
        .group_by("row", maintain_order=True)
        .agg(
            pl.len().alias("all"),
            pl.col("first").sum().alias("distinct"),
            pl.col("place").last().alias("last"),
            pl.col("place").filter("first").get(-2, null_on_oob=True).alias("second_last_first"),
        )
        .select(
            pl.min_horizontal(
                pl.col("last") + 1,
                pl.when(pl.col("all") >= EVENTS_MIN).then(pl.col("last") - 1),
                pl.when(pl.col("distinct") >= EVENTS_MIN).then("second_last_first"),
            )
        )
        .collect()
    )
    return ends.to_series().to_numpy()


@dataclass(frozen=True, slots=True)
class HeldOut:
    """One target each of some users: `rows` (T,) of the log, `ends` (T,) where their histories end, `targets` (T,).

    The target, an item index, is the event at `ends`.
    """

    rows: NDArray[np.intp]
    ends: NDArray[np.int64]
    targets: NDArray[np.int32]


def held_out(log: EventLog, from_end: int, positive: NDArray[np.bool_] | None = None) -> HeldOut:
    """The `from_end`-th last event of each user with enough events: 1 is the test target, 2 the validation target.

    With a split by time, each user's first event of the test period (1) or of the validation period (2), where an
    event lies before that period. With `positive`, by action index, a negative action is no target: leave-one-out
    leaves such a user out, the split by time takes the next event of the period.
    """
    if log.split.by_time:
        return _first_of_period(log, from_end, positive)
    rows = np.flatnonzero(log.features.lengths >= EVENTS_MIN)
    ends = log.features.offsets[1:][rows] - from_end
    if positive is not None:
        asked = positive[log.features.action_index[ends]]
        rows, ends = rows[asked], ends[asked]
    return HeldOut(rows, ends, log.features.item_index[ends])


def _first_of_period(log: EventLog, from_end: int, positive: NDArray[np.bool_] | None) -> HeldOut:
    starts, stops = period_starts(log, from_end), period_starts(log, from_end - 1)
    user = np.repeat(np.arange(len(starts)), log.features.lengths)
    place = np.arange(len(user))
    asked = (place >= starts[user]) & (place < stops[user]) & (starts[user] > log.features.offsets[user])
    if positive is not None:
        asked &= positive[log.features.action_index]
    rows, first = np.unique(user[asked], return_index=True)
    ends = np.flatnonzero(asked)[first]
    return HeldOut(rows, ends, log.features.item_index[ends])


def period_starts(log: EventLog, from_end: int) -> NDArray[np.int64]:
    """Where each user's test period (1) or validation period (2) of a split by time begins, (U,); 0: past the end."""
    if from_end == 0:
        return log.features.offsets[1:]
    moment = log.split.test_from if from_end == 1 else log.split.validation_from
    before = np.concatenate([[0], np.cumsum(log.timestamp < moment)])
    offsets = log.features.offsets
    starts: NDArray[np.int64] = offsets[:-1] + before[offsets[1:]] - before[offsets[:-1]]
    return starts


def known_ends(log: EventLog, from_end: int) -> NDArray[np.int64]:
    """Where each user's history ends that may be known before the targets of `held_out`, (U,)."""
    if log.split.by_time:
        return period_starts(log, from_end)
    ends = log.train_ends.copy()
    held = held_out(log, from_end)
    ends[held.rows] = held.ends
    return ends


def positive_actions(preprocessing: Preprocessing) -> NDArray[np.bool_]:
    """Whether an action may be a target, by action index; padding may not."""
    return np.array([False, *(action.weight >= 0 for action in preprocessing.actions)])


def history_features(log: EventLog, held: HeldOut, max_length: int) -> Features:
    """Features of the newest `max_length` events before each target, in the order of `held`."""
    starts = np.maximum(log.features.offsets[held.rows], held.ends - max_length)
    lengths = held.ends - starts
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    taken = np.arange(offsets[-1]) + np.repeat(starts - offsets[:-1], lengths)
    columns = log.features
    return Features(
        columns.item_index[taken],
        columns.action_index[taken],
        columns.value[taken],
        columns.gap_index[taken],
        offsets,
        np.zeros(len(starts), np.int32),
    )


def sampled(held: HeldOut, count: int, seed: int) -> HeldOut:
    """At most `count` of them, drawn by seed, in their order."""
    if len(held.rows) <= count:
        return held
    return chosen(held, np.sort(np.random.default_rng(seed).choice(len(held.rows), count, replace=False)))


def chosen(held: HeldOut, places: NDArray[np.intp]) -> HeldOut:
    """Those at `places`, in that order."""
    return HeldOut(held.rows[places], held.ends[places], held.targets[places])


def seen_pairs(log: EventLog, held: HeldOut) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Everything in the histories before the targets, as pairs of place in `held` and item row, both (P,)."""
    starts = log.features.offsets[held.rows]
    lengths = held.ends - starts
    places = np.repeat(np.arange(len(starts)), lengths)
    taken = np.arange(len(places)) + np.repeat(starts - np.cumsum(lengths) + lengths, lengths)
    return places, log.features.item_index[taken].astype(np.intp) - 1


def in_training(log: EventLog) -> NDArray[np.bool_]:
    """Which events training may see, (N,)."""
    steps = np.zeros(len(log.features.item_index) + 1, np.int64)
    np.add.at(steps, log.features.offsets[:-1], 1)
    np.add.at(steps, log.train_ends, -1)
    return np.cumsum(steps[:-1]) > 0
