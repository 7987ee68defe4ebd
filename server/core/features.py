"""The features of events: encoder inputs, the same for the training log, streams and micro-batches.

They have three steps. `look_up` turns ids into indexes by their hashes; for the training log a join does this.
`features_of` computes values and gaps of indexed events, for few histories as for many; `encode` is the same in Polars,
for the training log, bit by bit. `pad` cuts windows out of their columns and pads them on the left.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import polars as pl
from numpy.typing import NDArray

from server.core.hash_index import HashIndex
from server.core.histories import Histories
from server.core.history import ACTION_HASH, ITEM_HASH, TIMESTAMP, VALUE, History, column_of
from server.core.preprocessing import NORMALISED_MAX, Preprocessing, ValueNormaliser
from server.core.ragged import offsets_of, places_of, rows_of
from server.core.value_cleaning import cleaned_values, usable_values
from server.core.visits import canonical_order

GAP_START = 1
"""Gap index of the first event of a window, and of every event in a log without a clock. 0 is padding."""

GAP_BUCKETS = 31
"""Number of gap buckets. Their bounds are powers of two, in seconds; the last bucket is open."""

GAP_COUNT = GAP_START + 1 + GAP_BUCKETS
"""Number of gap indexes, padding included."""

CHUNK_SIZE = 32
"""Histories in one encoder batch; a larger batch costs more in padding than it saves in calls."""

BATCH_EVENTS = 32 * 1024
"""Largest number of events in one encoder batch, padding included; it bounds the memory of the encoder."""

FEW_VALUES = 256
"""From this number of values on, Polars computes their logarithms: a call of it takes as long as 500 of Python's."""

SHORTEST_PADDED = 8

Inputs = dict[str, NDArray[np.generic]]
"""Encoder inputs by name, each (B, L): item_index, action_index, gap_index int32; value float32. 0 is padding."""


@dataclass(frozen=True, slots=True)
class Features:
    """N encoded events of B histories, one history after the other; history b is `offsets[b]:offsets[b + 1]`.

    `ignored` (B,) counts the events that were left out because their item or action is unknown to the release.
    """

    item_index: NDArray[np.int32]
    action_index: NDArray[np.int32]
    value: NDArray[np.float32]
    gap_index: NDArray[np.int32]
    offsets: NDArray[np.int64]
    ignored: NDArray[np.int32]

    @classmethod
    def of(cls, encoded: pl.DataFrame, lengths: NDArray[np.int64]) -> Self:
        """The output of `encode` for histories of these lengths (B,)."""
        return cls(
            item_index=encoded["item_index"].to_numpy(),
            action_index=encoded["action_index"].to_numpy(),
            value=encoded["value"].to_numpy(),
            gap_index=encoded["gap_index"].to_numpy(),
            offsets=offsets_of(lengths),
            ignored=np.zeros(len(lengths), np.int32),
        )

    @property
    def starts(self) -> NDArray[np.int64]:
        """First event of each history, (B,)."""
        return self.offsets[:-1]

    @property
    def ends(self) -> NDArray[np.int64]:
        """End of each history, exclusive, (B,)."""
        return self.offsets[1:]

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Events of each history, (B,)."""
        return np.diff(self.offsets)

    @property
    def rows(self) -> NDArray[np.int64]:
        """History of each event, (N,)."""
        return rows_of(self.lengths)

    def slices(self, starts: NDArray[np.int64], ends: NDArray[np.int64]) -> "Features":
        """C histories, of which history c has the events `starts[c]:ends[c]` of these columns."""
        lengths = ends - starts
        places = places_of(starts, lengths)
        return Features(
            item_index=self.item_index[places],
            action_index=self.action_index[places],
            value=self.value[places],
            gap_index=self.gap_index[places],
            offsets=offsets_of(lengths),
            ignored=np.zeros(len(lengths), np.int32),
        )


def _normalised(normaliser: ValueNormaliser) -> pl.Expr:
    value = pl.col("value").cast(pl.Float64)
    if normaliser.method == "log":
        value = value.sign() * value.abs().log1p()
    scaled = ((value - normaliser.center) / normaliser.scale).fill_nan(0.0).fill_null(0.0)
    scaled = scaled.clip(-NORMALISED_MAX, NORMALISED_MAX).cast(pl.Float32)
    return pl.when(scaled == 0).then(pl.lit(0.0, pl.Float32)).otherwise(scaled)  # no negative zero


def _gap(has_clock: bool) -> pl.Expr:
    """The bucket of a gap of s seconds is floor(log2(1 + s)), computed exactly with integers."""
    if not has_clock:
        return pl.lit(GAP_START, pl.Int32)
    seconds = (pl.col("timestamp") - pl.col("timestamp").shift(1)).clip(0) // 1000
    bucket = 63 - (seconds + 1).bitwise_leading_zeros().cast(pl.Int32)
    same_user = pl.col("row") == pl.col("row").shift(1)
    return pl.when(same_user).then(bucket.clip(0, GAP_BUCKETS - 1) + GAP_START + 1).otherwise(GAP_START).cast(pl.Int32)


def encode(events: pl.LazyFrame, preprocessing: Preprocessing) -> pl.LazyFrame:
    """Encode indexed events.

    `events` has `row` (the history of the event), `item_index` and `action_index` (int32, from 1), `value` (float; null
    or NaN if missing) and `timestamp` (int64, milliseconds). The events of a history are consecutive and in time order.
    The result has `row, item_index, action_index, value` (float32) and `gap_index` (int32), in the same order.
    """
    return events.select(
        "row",
        "item_index",
        "action_index",
        _normalised(preprocessing.value).alias("value"),
        _gap(preprocessing.has_clock).alias("gap_index"),
    )


def features_of(
    histories: Sequence[History | None], items: HashIndex, actions: HashIndex, preprocessing: Preprocessing
) -> Features:
    """Encode the newest `max_length` events of each history whose item and action are known; None has no events.

    Values are cleaned as those of the log were; events that the cleaning of the log would drop count as unknown.
    """
    indexed = look_up(Histories.of(histories), items, actions, preprocessing)
    return Features(
        item_index=indexed.item_index,
        action_index=indexed.action_index,
        value=_normalised_values(indexed.value, preprocessing.value),
        gap_index=_gaps(indexed, has_clock=preprocessing.has_clock),
        offsets=offsets_of(np.bincount(indexed.row, minlength=len(histories))),
        ignored=indexed.ignored,
    )


@dataclass(frozen=True, slots=True)
class Indexed:
    """Known events of B histories, one history after the other, as the columns of `encode`, (N,) each.

    `ignored` (B,) counts the unknown events that were left out.
    """

    row: NDArray[np.int64]
    item_index: NDArray[np.int32]
    action_index: NDArray[np.int32]
    value: NDArray[np.float64]
    timestamp: NDArray[np.int64]
    ignored: NDArray[np.int32]


def _normalised_values(value: NDArray[np.float64], normaliser: ValueNormaliser) -> NDArray[np.float32]:
    """The bits of `_normalised`."""
    if normaliser.method == "log":
        value = np.copysign(_log1p(np.abs(value)), value)
    with np.errstate(over="ignore"):  # by a tiny scale; infinities are clipped too
        value = (value - normaliser.center) / normaliser.scale
    value[np.isnan(value)] = 0.0
    value32: NDArray[np.float32] = value.clip(-NORMALISED_MAX, NORMALISED_MAX).astype(np.float32)
    value32[value32 == 0] = 0.0  # no negative zero
    return value32


def _log1p(value: NDArray[np.float64]) -> NDArray[np.float64]:
    """The C library's log(1 + x) of x ≥ 0 and NaN, as Python and Polars call it; NumPy's has other bits somewhere."""
    if len(value) < FEW_VALUES:
        return np.array([math.log1p(x) for x in value.tolist()], np.float64)
    return pl.Series(value).log1p().to_numpy()


def _gaps(events: Indexed, *, has_clock: bool) -> NDArray[np.int32]:
    """The numbers of `_gap`."""
    gap_index = np.full(len(events.row), GAP_START, np.int32)
    if has_clock and len(gap_index) > 1:
        seconds = np.maximum(np.diff(events.timestamp), 0) // 1000
        bucket = np.frexp((seconds + 1).astype(np.float64))[1] - 1
        same_user = events.row[1:] == events.row[:-1]
        gap_index[1:] = np.where(same_user, np.minimum(bucket, GAP_BUCKETS - 1) + GAP_START + 1, GAP_START)
    return gap_index


def look_up(histories: Histories, items: HashIndex, actions: HashIndex, preprocessing: Preprocessing) -> Indexed:
    """Index the newest `max_length` known events of each history, tied events in canonical order unless `ordered`."""
    max_length = preprocessing.max_length
    if preprocessing.visits.ordered:
        counts = np.minimum(histories.counts, max_length)
    else:
        counts = histories.counts_with_ties(max_length)
    window = _newest(histories, counts, actions, preprocessing)
    item_index, action_index, known = _indexes(window, items, actions, preprocessing)
    ignored = np.zeros(len(histories), np.int32)
    if known.all() and counts.max(initial=0) <= max_length:
        return Indexed(window.row, item_index, action_index, window.values, window.timestamps, ignored)
    if not known.all():
        # Histories with unknown events are read whole: older known events take the places of the unknown ones.
        incomplete = np.unique(window.row[~known])
        counts[incomplete] = histories.counts[incomplete]
        window = _newest(histories, counts, actions, preprocessing)
        item_index, action_index, known = _indexes(window, items, actions, preprocessing)
        ignored = np.bincount(window.row[~known], minlength=len(histories)).astype(np.int32)
    kept = known & _among_newest(known, window.row, len(histories), max_length)
    return Indexed(
        window.row[kept],
        item_index[kept],
        action_index[kept],
        window.values[kept],
        window.timestamps[kept],
        ignored,
    )


def ignored_count(history: History, items: HashIndex, actions: HashIndex, preprocessing: Preprocessing) -> int:
    """How many events of the whole history are unknown, or would be dropped by the cleaning of the log."""
    whole = Histories.of([history])
    window = _newest(whole, whole.counts, actions, preprocessing)
    known = _indexes(window, items, actions, preprocessing)[2]
    return len(history) - int(known.sum())


def _indexes(
    window: "_Window", items: HashIndex, actions: HashIndex, preprocessing: Preprocessing
) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.bool_]]:
    """Indexes of item and action of each event (N,), and which events are known and kept by the cleaning."""
    item_index, action_index = items.find(window.item_hashes), actions.find(window.action_hashes)
    known = (item_index > 0) & (action_index > 0)
    usable = usable_values(window.values, preprocessing.value_cleaning)
    return item_index, action_index, known if usable is None else known & usable


@dataclass(frozen=True, slots=True)
class _Window:
    """Columns of many histories, one history after the other, (N,) each; `row` is the history of the event."""

    row: NDArray[np.int64]
    timestamps: NDArray[np.int64]
    values: NDArray[np.float64]
    item_hashes: NDArray[np.uint64]
    action_hashes: NDArray[np.uint64]

    def in_order(self, order: NDArray[np.intp]) -> "_Window":
        """The same histories, their events in the order of the places `order` (N,)."""
        return _Window(
            self.row,
            self.timestamps,
            self.values[order],
            self.item_hashes[order],
            self.action_hashes[order],
        )


def _newest(
    histories: Histories, counts: NDArray[np.int64], actions: HashIndex, preprocessing: Preprocessing
) -> _Window:
    """The newest `counts` (B,) events of each history, with cleaned values and the names of actions in the release.

    Tied events are in canonical order unless `ordered`.
    """
    events = histories.newest(counts)
    row = rows_of(counts)
    window = _Window(
        row,
        column_of(events, TIMESTAMP),
        cleaned_values(column_of(events, VALUE), row, preprocessing.value_cleaning),
        column_of(events, ITEM_HASH),
        actions.without_aliases(column_of(events, ACTION_HASH)),
    )
    if preprocessing.visits.ordered:
        return window
    order = canonical_order(window.row, window.timestamps, window.item_hashes, window.action_hashes, window.values)
    return window if order is None else window.in_order(order)


def _among_newest(known: NDArray[np.bool_], row: NDArray[np.int64], count: int, max_length: int) -> NDArray[np.bool_]:
    """Which events are among the newest `max_length` known ones of their history."""
    through = np.cumsum(known)
    last = np.zeros(count, np.int64)
    last[row] = through  # the last assignment to a row wins
    return last[row] - through < max_length


def pad(features: Features, ends: NDArray[np.int64], lengths: NDArray[np.int64], padded_length: int) -> Inputs:
    """Cut B windows with `lengths` events before `ends` (exclusive), and pad them on the left to `padded_length` (L).

    No window is longer than L. The newest event of a window is in the last column. The first event of a window always
    gets the gap `GAP_START`, so that training and serving give the encoder the same inputs.
    """
    window_ends = lengths.cumsum()
    event = np.arange(window_ends[-1] if len(lengths) else 0)
    sources = event + (ends - window_ends).repeat(lengths)
    targets = event + (np.arange(1, len(lengths) + 1) * padded_length - window_ends).repeat(lengths)

    places, shape = (sources, targets), (len(lengths), padded_length)
    inputs: Inputs = {
        "item_index": _scattered(features.item_index, places, shape),
        "action_index": _scattered(features.action_index, places, shape),
        "value": _scattered(features.value, places, shape),
        "gap_index": _scattered(features.gap_index, places, shape),
    }
    begun = np.flatnonzero(lengths)
    inputs["gap_index"][begun, padded_length - lengths[begun]] = GAP_START
    return inputs


def _scattered(
    column: NDArray[np.generic], places: tuple[NDArray[np.int64], NDArray[np.int64]], shape: tuple[int, int]
) -> NDArray[np.generic]:
    """Zeros of a shape, with the numbers from `places[0]` of a column at the flat `places[1]`."""
    sources, targets = places
    filled = np.zeros(shape[0] * shape[1], column.dtype)
    filled[targets] = column[sources]
    return filled.reshape(shape)


def padded_length(longest: int, max_length: int) -> int:
    """The padded length of a batch: the next of 8, 12, 16, 24, 32, 48, …, at most `max_length`."""
    length = SHORTEST_PADDED
    while length < longest:
        length = length * 3 // 2 if length & (length - 1) == 0 else length * 4 // 3
    return min(length, max_length)


def batches(features: Features, max_length: int, size: int = CHUNK_SIZE) -> list[tuple[NDArray[np.intp], Inputs]]:
    """Sort histories by length and cut them into encoder batches of at most `size`, and of `BATCH_EVENTS` events.

    Returns (rows, inputs) pairs: `rows` (b,) are the histories of the batch. Empty histories are in no batch.
    """
    lengths = np.minimum(features.lengths, max_length)
    order = np.argsort(lengths, kind="stable")
    order = order[lengths[order] > 0]
    ends = features.offsets[1:]
    encoder_batches = []
    while len(order):
        most = BATCH_EVENTS // padded_length(int(lengths[order[:size][-1]]), max_length)
        rows, order = np.split(order, [min(size, max(most, 1))])
        longest = padded_length(int(lengths[rows[-1]]), max_length)
        encoder_batches.append((rows, pad(features, ends[rows], lengths[rows], longest)))
    return encoder_batches
