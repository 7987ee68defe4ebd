"""From `events.parquet` to encoder inputs: the histories of users, and the held-out targets of validation and test.

By visit: of each user with two visits or more the last visit is the test target, all its items as a set, and of each
user with three or more the visit before it is the validation target. Leave-one-out: for each user with at least
`EVENTS_MIN` events, the last event is the test target and the event before it is the validation target. There are two
readings of a log: all events, and only the first event of each user and item, which published results use. Training
ends before the targets of both readings, so that no reading trains on a target of the other.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from server.core.features import Features, encode
from server.core.preprocessing import Preprocessing, ValueNormaliser
from server.core.ragged import offsets_of, places_of
from server.core.visits import visit_starts
from training.data.split import LEAVE_ONE_OUT, Split, read_split
from training.data.ties import sort_ties

VISITS_FROM = 0.1
"""Share of events that continue a visit from which a log has visits."""

EVENTS_MIN = 5
"""Users with fewer events in a reading have no targets; all their events are for training."""


@dataclass(frozen=True, slots=True)
class EventLog:
    """The N encoded events of U users: those of user b are `features.offsets[b]:features.offsets[b + 1]`, perhaps none.

    `train_ends` (U,) is the end of each user's training events, as an absolute position in the columns.
    `timestamp` (N,) is in milliseconds.
    """

    users: pl.Series
    features: Features
    timestamp: NDArray[np.int64]
    train_ends: NDArray[np.int64]
    split: Split = LEAVE_ONE_OUT
    gap_seconds: float = 0.0

    @property
    def visits(self) -> NDArray[np.int64]:
        """The number of each event's visit, counted over the whole log from 0, (N,)."""
        return np.cumsum(visit_starts(self.event_users, self.timestamp, self.gap_seconds)) - 1

    @property
    def learns_visits(self) -> bool:
        """Whether training predicts the next visit, not the next event."""
        if not self.split.by_time:
            return self.split.by_visit
        return bool(1.0 - (self.visits[-1] + 1) / len(self.timestamp) >= VISITS_FROM) if len(self.timestamp) else False

    @property
    def event_users(self) -> NDArray[np.int64]:
        """The user row of each event, (N,)."""
        return self.features.rows

    def before(self, ends: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Mask (N,) of the events before their user's end; `ends` (U,) are absolute positions in the columns."""
        return np.arange(len(self.timestamp)) < np.repeat(ends, self.features.lengths)

    def histories(self, rows: NDArray[np.intp], ends: NDArray[np.int64], max_length: int | None = None) -> Features:
        """The events of the users `rows` (B,) before `ends` (B,): all events, or the newest `max_length`."""
        starts = self.features.starts[rows]
        return self.features.slices(starts if max_length is None else np.maximum(starts, ends - max_length), ends)

    def subset(self, kept: NDArray[np.bool_], rows: NDArray[np.intp], preprocessing: Preprocessing) -> "EventLog":
        """The events in the mask `kept` (N,) of the users `rows` (ascending), with new gaps and visits."""
        is_kept_user = np.zeros(len(self.users), np.bool_)
        is_kept_user[rows] = True
        user = self.event_users
        kept = kept & is_kept_user[user]
        # Renumber the remaining users from 0.
        row, columns = np.searchsorted(rows, user[kept]), self.features
        event_columns = {
            "row": row,
            "item_index": columns.item_index[kept],
            "action_index": columns.action_index[kept],
            "value": columns.value[kept],
            "timestamp": (timestamp := self.timestamp[kept]),
        }
        scaled_already = preprocessing.model_copy(update={"value": ValueNormaliser()})
        encoded = encode(pl.LazyFrame(event_columns), scaled_already).collect()
        features = Features.of(encoded, np.bincount(row, minlength=len(rows)))
        train_ends = offsets_of(kept)[self.train_ends[rows]]
        return replace(
            self, users=self.users.gather(rows), features=features, timestamp=timestamp, train_ends=train_ends
        )


def read_log(prepared: Path, preprocessing: Preprocessing) -> EventLog:
    """Encode all of `events.parquet`; see `in_canonical_order` for the order of tied events."""
    item_ids = pl.read_parquet(prepared / "items.parquet", columns=["item_id"])["item_id"].to_list()
    events = in_canonical_order(_indexed(prepared, preprocessing).collect(), item_ids, preprocessing)
    split = read_split(prepared)
    encoded = encode(events.lazy(), preprocessing).collect()
    features = Features.of(encoded, np.bincount(encoded["row"].to_numpy()))
    users = events["user_id"].gather(features.starts)
    timestamp, gap = events["timestamp"].to_numpy(), preprocessing.visits.gap_seconds
    log = EventLog(users, features, timestamp, features.ends, split, gap)
    return replace(log, train_ends=last_visits(log).train_ends() if split.by_visit else _train_ends(events, split))


def read_first_events(prepared: Path, preprocessing: Preprocessing) -> EventLog:
    """Encode only the first event of each user and item; `train_ends` is at the same events as in the whole log."""
    log = read_log(prepared, preprocessing)
    pairs = pl.DataFrame({"row": log.event_users, "item_index": log.features.item_index})
    first = pairs.select(pl.struct("row", "item_index").is_first_distinct()).to_series().to_numpy()
    reading = log.subset(first, np.arange(len(log.users)), preprocessing)
    if not log.split.by_visit:
        return reading
    # The last visit with a new item may be earlier than the last visit of all.
    return replace(reading, train_ends=np.minimum(reading.train_ends, last_visits(reading).train_ends()))


def read_sequences(prepared: Path, preprocessing: Preprocessing) -> EventLog:
    """The reading that fits the log: first events only if seen items are excluded, else all events."""
    return (read_first_events if preprocessing.exclude_seen else read_log)(prepared, preprocessing)


def _indexed(prepared: Path, preprocessing: Preprocessing) -> pl.LazyFrame:
    """Events with the indexes row, item_index (from 1) and action_index (from 1) instead of texts."""
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


def in_canonical_order(events: pl.DataFrame, item_ids: Sequence[str], preprocessing: Preprocessing) -> pl.DataFrame:
    """Indexed events of known items and actions, sorted by user and time, with tied events in canonical order.

    In a log with `Visits.ordered`, tied events keep their order.
    """
    if preprocessing.visits.ordered:
        return events
    row, item_index, action_index = (events[name].to_numpy() for name in ("row", "item_index", "action_index"))
    actions = [action.name for action in preprocessing.actions]
    return sort_ties(events, row, (item_index - 1, item_ids), (action_index - 1, actions))


def _train_ends(events: pl.DataFrame, split: Split) -> NDArray[np.int64]:
    """End of each user's training events, (U,): before the validation targets of both readings, or the whole history.

    With a split by time: before the user's first event of the validation period.
    """
    if split.by_time:
        inside = (pl.col("timestamp") < split.validation_from).sum()
        users = events.lazy().group_by("row", maintain_order=True).agg(pl.len(), inside.alias("inside"))
        places = pl.col("len").cum_sum() - pl.col("len") + pl.col("inside")
        return users.select(places.cast(pl.Int64)).collect().to_series().to_numpy()
    # Per user: the validation target is the second-last event, or the second-last first event of an item.
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
class LastVisits:
    """Bounds of each user's last visits, (U,) each, as positions in the log's columns.

    The last visit is `last` to the end of the user's events, the one before it `second_last` to `last`. `counts` are
    the visits of each user.
    """

    last: NDArray[np.int64]
    second_last: NDArray[np.int64]
    counts: NDArray[np.int64]

    def train_ends(self) -> NDArray[np.int64]:
        """The end of each user's training events: before the validation and test visits."""
        return np.where(self.counts > 1, self.second_last, self.last)


def last_visits(log: EventLog) -> LastVisits:
    """The last two visits of each user."""
    starts, ends = log.features.starts, log.features.ends
    visit_begins = np.flatnonzero(visit_starts(log.event_users, log.timestamp, log.gap_seconds))
    first = np.searchsorted(visit_begins, starts)
    after = np.searchsorted(visit_begins, ends)
    counts = after - first
    places = np.append(visit_begins, len(log.timestamp))
    last = np.where(counts > 1, places[np.maximum(after - 1, 0)], ends)
    second_last = np.where(counts > 2, places[np.maximum(after - 2, 0)], last)
    return LastVisits(last, second_last, counts)


@dataclass(frozen=True, slots=True)
class HeldOut:
    """T held-out targets: the user row of each, `rows` (T,), the end of the history, `ends` (T,), and `targets` (T,).

    A target is an item index: that of the event at `ends`, or each item of the visit that begins there. The targets of
    a user are consecutive.
    """

    rows: NDArray[np.intp]
    ends: NDArray[np.int64]
    targets: NDArray[np.int32]


def held_out(log: EventLog, from_end: int, positive: NDArray[np.bool_] | None = None) -> HeldOut:
    """The `from_end`-th last event of each user with enough events: 1 is the test target, 2 the validation target.

    With a split by visit: each item of the last visit (1) or the visit before it (2), once. With a split by time: the
    first event of the test period (1) or validation period (2) of each user with an event
    before that period. With `positive`, a mask by action index, events of other actions are no targets: leave-one-out
    skips these users, the split by time takes the user's next event of the period.
    """
    if log.split.by_time:
        return _first_of_period(log, from_end, positive)
    if log.split.by_visit:
        return _items_of_visit(log, from_end, positive)
    rows = np.flatnonzero(log.features.lengths >= EVENTS_MIN)
    ends = log.features.ends[rows] - from_end
    if positive is not None:
        is_target = positive[log.features.action_index[ends]]
        rows, ends = rows[is_target], ends[is_target]
    return HeldOut(rows, ends, log.features.item_index[ends])


def _items_of_visit(log: EventLog, from_end: int, positive: NDArray[np.bool_] | None) -> HeldOut:
    bounds = last_visits(log)
    starts, stops = (bounds.last, log.features.ends) if from_end == 1 else (bounds.second_last, bounds.last)
    user = log.event_users
    is_target = log.before(stops) & ~log.before(starts)
    if positive is not None:
        is_target &= positive[log.features.action_index]
    places = np.flatnonzero(is_target)
    pairs = pl.DataFrame({"row": user[places], "item": log.features.item_index[places]})
    first = pairs.select(pl.struct("row", "item").is_first_distinct()).to_series().to_numpy()
    rows = user[places][first].astype(np.intp)
    return HeldOut(rows, starts[rows], log.features.item_index[places][first])


def _first_of_period(log: EventLog, from_end: int, positive: NDArray[np.bool_] | None) -> HeldOut:
    starts, stops = period_starts(log, from_end), period_starts(log, from_end - 1)
    user = log.event_users
    is_target = log.before(stops) & ~log.before(starts) & (starts > log.features.starts)[user]
    if positive is not None:
        is_target &= positive[log.features.action_index]
    rows, first = np.unique(user[is_target], return_index=True)
    ends = np.flatnonzero(is_target)[first]
    return HeldOut(rows, ends, log.features.item_index[ends])


def period_starts(log: EventLog, from_end: int) -> NDArray[np.int64]:
    """Start of each user's test (1) or validation period (2) of a split by time, (U,); for 0 the end of the log."""
    if from_end == 0:
        return log.features.ends
    moment = log.split.test_from if from_end == 1 else log.split.validation_from
    before = offsets_of(log.timestamp < moment)  # (N + 1,): number of events before the moment, up to each position
    first, last = log.features.starts, log.features.ends
    starts: NDArray[np.int64] = first + before[last] - before[first]
    return starts


def known_ends(log: EventLog, from_end: int) -> NDArray[np.int64]:
    """End of each user's events that are known before the targets of `held_out`, (U,); for 0 the whole history."""
    if log.split.by_time or from_end == 0:
        return period_starts(log, from_end)
    if log.split.by_visit:
        return last_visits(log).last if from_end == 1 else log.train_ends
    ends = log.train_ends.copy()
    held = held_out(log, from_end)
    ends[held.rows] = held.ends
    return ends


def positive_actions(preprocessing: Preprocessing) -> NDArray[np.bool_]:
    """Mask by action index of the actions that can be targets: weight 0 or more, and no padding."""
    return np.array([False, *(action.weight >= 0 for action in preprocessing.actions)])


def sample_targets(held: HeldOut, count: int, seed: int) -> HeldOut:
    """At most `count` targets, drawn at random, in their original order."""
    if len(held.rows) <= count:
        return held
    return select_targets(held, np.sort(np.random.default_rng(seed).choice(len(held.rows), count, replace=False)))


def users_of(held: HeldOut, most: int, seed: int) -> HeldOut:
    """All targets of at most `most` users, drawn at random, in their order; a larger sample has them too."""
    users = np.unique(held.rows)
    if len(users) <= most:
        return held
    drawn = np.random.default_rng(seed).permutation(users)[:most]
    return select_targets(held, np.flatnonzero(np.isin(held.rows, drawn)))


def one_a_user(held: HeldOut, seed: int) -> HeldOut:
    """One target of each user, drawn at random where there are several."""
    order = np.random.default_rng(seed).permutation(len(held.rows))
    _, first = np.unique(held.rows[order], return_index=True)
    return select_targets(held, order[first])


def select_targets(held: HeldOut, places: NDArray[np.intp]) -> HeldOut:
    """The targets at `places`, in that order."""
    return HeldOut(held.rows[places], held.ends[places], held.targets[places])


def seen_pairs(log: EventLog, held: HeldOut) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """The items in histories before the targets: pairs of position in `held` and item row (index - 1), both (P,)."""
    histories = log.histories(held.rows, held.ends)
    return histories.rows, histories.item_index.astype(np.intp) - 1


def in_training(log: EventLog) -> NDArray[np.bool_]:
    """Mask (N,) of the training events."""
    return log.before(log.train_ends)


def random_half(log: EventLog, seed: int) -> NDArray[np.bool_]:
    """Mask (N,) of a random half of each user's events; if their number is odd, the other half has one more."""
    lengths, user = log.features.lengths, log.event_users
    # Shuffle each user's events and take the first half.
    order = np.lexsort((np.random.default_rng(seed).random(len(user)), user))
    in_half = np.zeros(len(user), np.bool_)
    in_half[order] = places_of(0, lengths) < lengths[user] // 2
    return in_half
