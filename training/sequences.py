"""From `events.parquet` to encoder inputs: sequences by user, the split into train, validation and test, and windows.

The split is leave-one-out twice: of each user with at least `EVENTS_MIN` events the last one is the test target and
the one before it the validation target. Training ends before both, in each of two readings of a history: as it is,
and with only the first event of each user and item, the reading of the published figures. So neither gives away
what the other is tested on.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from server.core.features import Features, batches, encode, pad, padded_length
from server.core.preprocessing import Preprocessing
from training.split import LEAVE_ONE_OUT, Split, read_split

EVENTS_MIN = 5
"""Users with fewer events (of the reading at hand) are for training only."""

TARGETS_A_STEP = 1280
"""How many next items a step of the default size predicts: small steps learn more from an event than large ones."""

Batch = dict[str, Tensor]
"""Encoder inputs by name, (B, L) each; `target` (B, L) int64: the next item's index, 0 where none is asked for; and
`weight` (): how much the mean loss of this part of a step counts, 1 on average over the parts."""


@dataclass(frozen=True, slots=True)
class Log:
    """All users' events, encoded: user b's are `features.offsets[b]:features.offsets[b + 1]`.

    `train_ends` (U,) is one past each user's last event that training may see, an absolute place in the columns.
    `timestamp` (N,) is in milliseconds.
    """

    users: pl.Series
    features: Features
    timestamp: NDArray[np.int64]
    train_ends: NDArray[np.int64]
    split: Split = LEAVE_ONE_OUT


def read_log(prepared: Path, preprocessing: Preprocessing) -> Log:
    """Encode the whole of `events.parquet`, in its order."""
    events = _indexed(prepared, preprocessing).collect()
    split = read_split(prepared)
    return _log(events, preprocessing, _train_ends(events, split), split)


def read_first_events(prepared: Path, preprocessing: Preprocessing) -> Log:
    """Encode the first event of each user and item only. Training ends where it does in the whole log."""
    events = _indexed(prepared, preprocessing).collect()
    first = events.select(pl.struct("row", "item_index").is_first_distinct()).to_series()
    kept_before = np.concatenate([[0], np.cumsum(first.to_numpy())])
    split = read_split(prepared)
    return _log(events.filter(first), preprocessing, kept_before[_train_ends(events, split)], split)


def read_sequences(prepared: Path, preprocessing: Preprocessing) -> Log:
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


def _log(events: pl.DataFrame, preprocessing: Preprocessing, train_ends: NDArray[np.int64], split: Split) -> Log:
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
    return Log(events["user_id"].gather(starts), features, events["timestamp"].to_numpy(), train_ends, split)


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


def held_out(log: Log, from_end: int, positive: NDArray[np.bool_] | None = None) -> HeldOut:
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


def _first_of_period(log: Log, from_end: int, positive: NDArray[np.bool_] | None) -> HeldOut:
    starts, stops = period_starts(log, from_end), period_starts(log, from_end - 1)
    user = np.repeat(np.arange(len(starts)), log.features.lengths)
    place = np.arange(len(user))
    asked = (place >= starts[user]) & (place < stops[user]) & (starts[user] > log.features.offsets[user])
    if positive is not None:
        asked &= positive[log.features.action_index]
    rows, first = np.unique(user[asked], return_index=True)
    ends = np.flatnonzero(asked)[first]
    return HeldOut(rows, ends, log.features.item_index[ends])


def period_starts(log: Log, from_end: int) -> NDArray[np.int64]:
    """Where each user's test period (1) or validation period (2) of a split by time begins, (U,); 0: past the end."""
    if from_end == 0:
        return log.features.offsets[1:]
    moment = log.split.test_from if from_end == 1 else log.split.validation_from
    before = np.concatenate([[0], np.cumsum(log.timestamp < moment)])
    offsets = log.features.offsets
    starts: NDArray[np.int64] = offsets[:-1] + before[offsets[1:]] - before[offsets[:-1]]
    return starts


def known_ends(log: Log, from_end: int) -> NDArray[np.int64]:
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


def history_features(log: Log, held: HeldOut, max_length: int) -> Features:
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


@dataclass(frozen=True, slots=True)
class Parts:
    """Into how many parts each step is cut, and which of them this process computes, one after the other.

    A step of N windows on `ranks` processes, in `accumulate` pieces on each, has `ranks * accumulate` parts. The step
    is the same however it is cut.
    """

    rank: int = 0
    ranks: int = 1
    accumulate: int = 1

    @property
    def count(self) -> int:
        """Parts of a step."""
        return self.ranks * self.accumulate

    def part(self, turn: int) -> int:
        """Which part of its step this process computes at its batch number `turn` of an epoch."""
        return turn % self.accumulate * self.ranks + self.rank


@dataclass(frozen=True, slots=True)
class Window:
    """Windows of one step: they end before `ends` (B,) and hold `lengths` (B,) events, the last only as target.

    Part number `part` of `parts` of the step is asked for.
    """

    ends: NDArray[np.int64]
    lengths: NDArray[np.int64]
    part: int = 0
    parts: int = 1


class Windows(Dataset[Batch]):
    """Training batches, cut out of the log by the same `pad` that serving uses."""

    def __init__(self, log: Log, preprocessing: Preprocessing) -> None:
        self._features = log.features
        self._max_length = preprocessing.max_length
        self._positive = positive_actions(preprocessing)
        self._positive_before = np.concatenate([[0], np.cumsum(self._positive[log.features.action_index])])

    def __getitem__(self, window: Window) -> Batch:
        """Inputs are all events but the last; the target of each is the item of the event after it.

        A part without any window, as in a step of fewer windows than parts, gets one without targets.
        """
        asked = self._positive_before[window.ends] - self._positive_before[window.ends - window.lengths + 1]
        mine = slice(window.part, None, window.parts)
        ends, lengths = window.ends[mine], window.lengths[mine]
        if not len(ends):
            ends, lengths = window.ends[:1], np.ones(1, np.int64)
        weight = window.parts * asked[mine].sum() / max(asked.sum(), 1)
        longest = int(lengths.max()) - 1
        padded = pad(self._features, ends, lengths, padded_length(longest, self._max_length) + 1)
        target = np.where(self._positive[padded["action_index"][:, 1:]], padded["item_index"][:, 1:], 0)
        target = np.where(padded["action_index"][:, :-1] != 0, target, 0)
        batch = {name: torch.from_numpy(np.ascontiguousarray(column[:, :-1])) for name, column in padded.items()}
        return batch | {
            "target": torch.from_numpy(target.astype(np.int64)),
            "weight": torch.tensor(weight, dtype=torch.float32),
        }


class EpochPlan(Sampler[Window]):
    """Which windows make up an epoch, batch by batch: every event once as target, long histories in tiles.

    The places of the tiles change from epoch to epoch. Windows of like length share a batch of `batch_size`, and
    batches come in random order. The plan depends on seed and epoch only, and is the same for all processes: with
    `parts` each takes its part of every step. An epoch that was cut off goes on at the batch named by `start_at`.
    """

    def __init__(
        self, log: Log, max_length: int, batch_size: int | None, seed: int, parts: Parts | None = None
    ) -> None:
        starts = log.features.offsets[:-1]
        target_counts = log.train_ends - starts - 1
        users = np.flatnonzero(target_counts > 0)
        tiles = -(-target_counts[users] // max_length)
        self._start = np.repeat(starts[users], tiles)
        self._targets = np.repeat(target_counts[users], tiles)
        self._tile = np.arange(tiles.sum()) - np.repeat(np.cumsum(tiles) - tiles, tiles)
        self._slack = np.repeat(tiles * max_length - target_counts[users], tiles)
        self._user = np.repeat(np.arange(len(users)), tiles)
        self._user_count = len(users)
        self._max_length = max_length
        self.batch_size = batch_size or max(1, TARGETS_A_STEP * len(self._tile) // max(int(target_counts.sum()), 1))
        self.steps = math.ceil(len(self._tile) / self.batch_size)
        self.parts = parts or Parts()
        self._seed = seed
        self._epoch = 0
        self._first_batch = 0

    def set_epoch(self, epoch: int) -> None:
        """Called by Lightning before each epoch."""
        self._epoch = epoch

    def start_at(self, batch: int) -> None:
        """Leave out the first batches of the next epoch that is asked for; the one after it is whole again."""
        self._first_batch = batch

    def __len__(self) -> int:
        """Batches of a whole epoch for this process: a step has `parts.accumulate` of them."""
        return self.steps * self.parts.accumulate

    def __iter__(self) -> Iterator[Window]:
        rng = np.random.default_rng((self._seed, self._epoch))
        shift = (rng.random(self._user_count)[self._user] * (self._slack + 1)).astype(np.int64)
        shift = np.where(self._targets > self._max_length, shift, 0)
        first = np.maximum(self._tile * self._max_length - shift, 0)
        last = np.minimum((self._tile + 1) * self._max_length - shift, self._targets)
        ends, lengths = self._start + last + 1, last - first + 1
        order = np.argsort(lengths + rng.random(len(lengths)) * 0.99, kind="stable")
        parts = np.array_split(order, np.arange(self.batch_size, len(order), self.batch_size))
        steps = rng.permutation(len(parts))
        first_batch, self._first_batch = self._first_batch, 0
        for turn in range(first_batch, len(self)):
            chosen_part = parts[steps[turn // self.parts.accumulate]]
            yield Window(ends[chosen_part], lengths[chosen_part], self.parts.part(turn), self.parts.count)


def sampled(held: HeldOut, count: int, seed: int) -> HeldOut:
    """At most `count` of them, drawn by seed, in their order."""
    if len(held.rows) <= count:
        return held
    return chosen(held, np.sort(np.random.default_rng(seed).choice(len(held.rows), count, replace=False)))


def chosen(held: HeldOut, places: NDArray[np.intp]) -> HeldOut:
    """Those at `places`, in that order."""
    return HeldOut(held.rows[places], held.ends[places], held.targets[places])


def seen_pairs(log: Log, held: HeldOut) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Everything in the histories before the targets, as pairs of place in `held` and item row, both (P,)."""
    starts = log.features.offsets[held.rows]
    lengths = held.ends - starts
    places = np.repeat(np.arange(len(starts)), lengths)
    taken = np.arange(len(places)) + np.repeat(starts - np.cumsum(lengths) + lengths, lengths)
    return places, log.features.item_index[taken].astype(np.intp) - 1


class Validation(Dataset[Batch]):
    """Batches that ask for one target each.

    Encoder inputs (B, L); `target` (B,) item rows; and `seen_place`, `seen_row` (P,): pairs of place in the batch and
    row of an item that is not to be ranked, empty unless the log excludes seen items.
    """

    def __init__(self, log: Log, held: HeldOut, preprocessing: Preprocessing) -> None:
        self._log = log
        self._held = held
        self._exclude_seen = preprocessing.exclude_seen
        self._batches = batches(history_features(log, held, preprocessing.max_length), preprocessing.max_length)

    def __len__(self) -> int:
        return len(self._batches)

    def __getitem__(self, index: int) -> Batch:
        rows, inputs = self._batches[index]
        held = chosen(self._held, rows)
        places, seen = seen_pairs(self._log, held) if self._exclude_seen else (np.empty(0, np.intp),) * 2
        more = {"target": held.targets.astype(np.int64) - 1, "seen_place": places, "seen_row": seen}
        return {name: torch.from_numpy(column) for name, column in {**inputs, **more}.items()}


def in_training(log: Log) -> NDArray[np.bool_]:
    """Which events training may see, (N,)."""
    steps = np.zeros(len(log.features.item_index) + 1, np.int64)
    np.add.at(steps, log.features.offsets[:-1], 1)
    np.add.at(steps, log.train_ends, -1)
    return np.cumsum(steps[:-1]) > 0


def target_counts(log: Log, item_count: int) -> Tensor:
    """How often training sees each item, (V,) int64."""
    rows = log.features.item_index[in_training(log)] - 1
    return torch.from_numpy(np.bincount(rows, minlength=item_count))
