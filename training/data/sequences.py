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
from server.core.preprocessing import Preprocessing, ValueNormaliser
from server.core.ragged import offsets_of, places_of
from training.data.split import LEAVE_ONE_OUT, Split, read_split

EVENTS_MIN = 5
"""Users with fewer events (of the reading at hand) are for training only."""


@dataclass(frozen=True, slots=True)
class EventLog:
    """Events of U users, encoded: user b's are `features.offsets[b]:features.offsets[b + 1]`. Users may have none.

    `train_ends` (U,) is one past each user's last event that training may see, an absolute place in the columns.
    `timestamp` (N,) is in milliseconds.
    """

    users: pl.Series
    features: Features
    timestamp: NDArray[np.int64]
    train_ends: NDArray[np.int64]
    split: Split = LEAVE_ONE_OUT

    @property
    def event_users(self) -> NDArray[np.int64]:
        """The user row of each event, (N,)."""
        return self.features.rows

    def before(self, ends: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which events (N,) lie before their user's end; `ends` (U,) are absolute places in the columns."""
        return np.arange(len(self.timestamp)) < np.repeat(ends, self.features.lengths)

    def histories(self, rows: NDArray[np.intp], ends: NDArray[np.int64], max_length: int | None = None) -> Features:
        """The events of the users `rows` (B,) before `ends` (B,): all of them, or the newest `max_length`."""
        starts = self.features.starts[rows]
        return self.features.slices(starts if max_length is None else np.maximum(starts, ends - max_length), ends)

    def only(self, kept: NDArray[np.bool_], rows: NDArray[np.intp], preprocessing: Preprocessing) -> "EventLog":
        """The events `kept` (N,) of the users `rows`, ascending; gaps are those between the events that are left."""
        wanted = np.zeros(len(self.users), np.bool_)
        wanted[rows] = True
        user = self.event_users
        kept = kept & wanted[user]
        # Rows of the users that stay are counted anew, from 0.
        row, columns = np.searchsorted(rows, user[kept]), self.features
        events = {
            "row": row,
            "item_index": columns.item_index[kept],
            "action_index": columns.action_index[kept],
            "value": columns.value[kept],
            "timestamp": (timestamp := self.timestamp[kept]),
        }
        scaled_already = preprocessing.model_copy(update={"value": ValueNormaliser()})
        encoded = encode(pl.LazyFrame(events), scaled_already).collect()
        features = Features.of(encoded, np.bincount(row, minlength=len(rows)))
        train_ends = offsets_of(kept)[self.train_ends[rows]]
        return EventLog(self.users.gather(rows), features, timestamp, train_ends, self.split)


def read_log(prepared: Path, preprocessing: Preprocessing) -> EventLog:
    """Encode the whole of `events.parquet`, in its order."""
    events = _indexed(prepared, preprocessing).collect()
    split = read_split(prepared)
    encoded = encode(events.lazy(), preprocessing).collect()
    features = Features.of(encoded, np.bincount(encoded["row"].to_numpy()))
    users = events["user_id"].gather(features.starts)
    return EventLog(users, features, events["timestamp"].to_numpy(), _train_ends(events, split), split)


def read_first_events(prepared: Path, preprocessing: Preprocessing) -> EventLog:
    """Encode the first event of each user and item only. Training ends where it does in the whole log."""
    log = read_log(prepared, preprocessing)
    pairs = pl.DataFrame({"row": log.event_users, "item_index": log.features.item_index})
    first = pairs.select(pl.struct("row", "item_index").is_first_distinct()).to_series().to_numpy()
    return log.only(first, np.arange(len(log.users)), preprocessing)


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
    ends = log.features.ends[rows] - from_end
    if positive is not None:
        asked = positive[log.features.action_index[ends]]
        rows, ends = rows[asked], ends[asked]
    return HeldOut(rows, ends, log.features.item_index[ends])


def _first_of_period(log: EventLog, from_end: int, positive: NDArray[np.bool_] | None) -> HeldOut:
    starts, stops = period_starts(log, from_end), period_starts(log, from_end - 1)
    user = log.event_users
    asked = log.before(stops) & ~log.before(starts) & (starts > log.features.starts)[user]
    if positive is not None:
        asked &= positive[log.features.action_index]
    rows, first = np.unique(user[asked], return_index=True)
    ends = np.flatnonzero(asked)[first]
    return HeldOut(rows, ends, log.features.item_index[ends])


def period_starts(log: EventLog, from_end: int) -> NDArray[np.int64]:
    """Where each user's test period (1) or validation period (2) of a split by time begins, (U,); 0: past the end."""
    if from_end == 0:
        return log.features.ends
    moment = log.split.test_from if from_end == 1 else log.split.validation_from
    before = offsets_of(log.timestamp < moment)  # (N + 1,): events before the moment that precede each place
    first, last = log.features.starts, log.features.ends
    starts: NDArray[np.int64] = first + before[last] - before[first]
    return starts


def known_ends(log: EventLog, from_end: int) -> NDArray[np.int64]:
    """Where each user's history ends that may be known before the targets of `held_out`, (U,); the whole one for 0."""
    if log.split.by_time or from_end == 0:
        return period_starts(log, from_end)
    ends = log.train_ends.copy()
    held = held_out(log, from_end)
    ends[held.rows] = held.ends
    return ends


def positive_actions(preprocessing: Preprocessing) -> NDArray[np.bool_]:
    """Whether an action may be a target, by action index; padding may not."""
    return np.array([False, *(action.weight >= 0 for action in preprocessing.actions)])


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
    past = log.histories(held.rows, held.ends)
    return past.rows, past.item_index.astype(np.intp) - 1


def in_training(log: EventLog) -> NDArray[np.bool_]:
    """Which events training may see, (N,)."""
    return log.before(log.train_ends)


def random_half(log: EventLog, seed: int) -> NDArray[np.bool_]:
    """Whether each event is in the first of two halves of its user's events, drawn at random, (N,).

    Of an odd number of events the second half has one more.
    """
    lengths, user = log.features.lengths, log.event_users
    # Each user's events in random order; the first half of that order is taken.
    order = np.lexsort((np.random.default_rng(seed).random(len(user)), user))
    one = np.zeros(len(user), np.bool_)
    one[order] = places_of(0, lengths) < lengths[user] // 2
    return one
