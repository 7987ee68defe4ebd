"""The one feature pipeline: events → encoder inputs, for the training log, streams and micro-batches alike.

Three steps. `look_up` turns ids into indexes (online, by their hashes; offline the log does it with a join).
`encode` is the Polars pipeline over indexed events. `pad` cuts windows out of its columns and pads them on the left.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from server.core.hash_index import HashIndex
from server.core.history import ACTION_HASHES, ITEM_HASHES, TIMESTAMPS, VALUES, History
from server.core.preprocessing import Preprocessing, ValueNormaliser

GAP_START = 1
"""Gap index of a window's first event, and of every event in a log without a clock. 0 is padding."""

GAP_BUCKETS = 31
"""Gaps are counted in powers of two seconds; the last bucket is open."""

GAP_COUNT = GAP_START + 1 + GAP_BUCKETS
"""How many gap indexes there are, padding included."""

CHUNK_SIZE = 32
"""Most histories in one encoder batch; larger ones pad more than they save."""

LARGE_CHUNK_SIZE = 64
"""The same where at least `LARGE_FROM` histories come at once: sorted by length, so many hardly pad at all."""

LARGE_FROM = 512

SHORTEST_PADDED = 8

Inputs = dict[str, NDArray[np.generic]]
"""Encoder inputs by name, each (B, L): item_index, action_index, gap_index int32; value float32. 0 is padding."""


@dataclass(frozen=True, slots=True)
class Features:
    """Encoded histories, one after the other. Columns have shape (N,); history b is `offsets[b]:offsets[b + 1]`.

    `ignored` (B,) counts the events left out because the release knows neither their item nor action.
    """

    item_index: NDArray[np.int32]
    action_index: NDArray[np.int32]
    value: NDArray[np.float32]
    gap_index: NDArray[np.int32]
    offsets: NDArray[np.int64]
    ignored: NDArray[np.int32]

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Events of each history, (B,)."""
        return np.diff(self.offsets)


def _normalised(normaliser: ValueNormaliser) -> pl.Expr:
    value = pl.col("value").cast(pl.Float64)
    if normaliser.method == "log":
        value = value.sign() * value.abs().log1p()
    return ((value - normaliser.center) / normaliser.scale).fill_nan(0.0).fill_null(0.0).cast(pl.Float32)


def _gap(has_clock: bool) -> pl.Expr:
    if not has_clock:
        return pl.lit(GAP_START, pl.Int32)
    seconds = (pl.col("timestamp") - pl.col("timestamp").shift(1)).clip(0) / 1000.0
    bucket = (seconds + 1.0).log(2).floor().clip(0, GAP_BUCKETS - 1).cast(pl.Int32) + GAP_START + 1
    same_user = pl.col("row") == pl.col("row").shift(1)
    return pl.when(same_user).then(bucket).otherwise(pl.lit(GAP_START, pl.Int32))


def encode(events: pl.LazyFrame, preprocessing: Preprocessing) -> pl.LazyFrame:
    """Encode indexed events.

    `events` has `row` (whose history, in blocks), `item_index` and `action_index` (int32, from 1), `value` (float,
    null or NaN where missing) and `timestamp` (int64, milliseconds), each block in time order. The result has
    `row, item_index, action_index, value` (float32) and `gap_index` (int32), in the same order.
    """
    return events.select(
        "row",
        "item_index",
        "action_index",
        _normalised(preprocessing.value).alias("value"),
        _gap(preprocessing.has_clock).alias("gap_index"),
    )


def features_of(
    histories: Sequence[History], items: HashIndex, actions: HashIndex, preprocessing: Preprocessing
) -> Features:
    """Encode the newest `max_length` events of each history whose item and action are known."""
    events, offsets, ignored = look_up(histories, items, actions, preprocessing.max_length)
    encoded = encode(events.lazy(), preprocessing).collect()
    return Features(
        encoded["item_index"].to_numpy(),
        encoded["action_index"].to_numpy(),
        encoded["value"].to_numpy(),
        encoded["gap_index"].to_numpy(),
        offsets,
        ignored,
    )


def look_up(
    histories: Sequence[History], items: HashIndex, actions: HashIndex, max_length: int
) -> tuple[pl.DataFrame, NDArray[np.int64], NDArray[np.int32]]:
    """Index the newest `max_length` known events of each history.

    Returns the frame that `encode` takes, offsets (B + 1,) into it, and how many unknown events were passed over (B,).
    """
    window = _newest(histories, max_length)
    item_index, action_index = items.find(window.item_hashes), actions.find(window.action_hashes)
    known = (item_index > 0) & (action_index > 0)
    ignored = np.zeros(len(histories), np.int32)
    if not known.all():
        # A history with unknown events is looked at as a whole, since older known ones take their places.
        strange = np.unique(window.row[~known])
        window = _newest(histories, max(len(histories[row]) for row in strange.tolist()), strange, max_length)
        item_index, action_index = items.find(window.item_hashes), actions.find(window.action_hashes)
        known = (item_index > 0) & (action_index > 0)
        ignored = np.bincount(window.row[~known], minlength=len(histories)).astype(np.int32)
        known &= _among_newest(known, window.row, len(histories), max_length)
    lengths = np.bincount(window.row[known], minlength=len(histories))
    frame = pl.DataFrame(
        {
            "row": window.row[known],
            "item_index": item_index[known],
            "action_index": action_index[known],
            "value": window.values[known],
            "timestamp": window.timestamps[known],
        }
    )
    return frame, np.concatenate([[0], np.cumsum(lengths)]), ignored


@dataclass(frozen=True, slots=True)
class _Window:
    """Columns of many histories, one after the other, (N,); `row` says whose each event is."""

    row: NDArray[np.int64]
    timestamps: NDArray[np.int64]
    values: NDArray[np.float64]
    item_hashes: NDArray[np.uint64]
    action_hashes: NDArray[np.uint64]


def _newest(
    histories: Sequence[History], count: int, only: NDArray[np.int64] | None = None, other_count: int = 0
) -> _Window:
    """The newest `count` events of each history; where `only` names rows, of those, and `other_count` of the rest."""
    counts = [count] * len(histories)
    if only is not None:
        counts = [other_count] * len(histories)
        for row in only.tolist():
            counts[row] = count
    pairs = list(zip(histories, counts, strict=True))

    def column(name: int, dtype: str) -> NDArray[Any]:
        return np.frombuffer(b"".join([history.newest(name, most) for history, most in pairs]), dtype)

    lengths = [min(len(history), most) for history, most in pairs]
    return _Window(
        np.repeat(np.arange(len(histories)), lengths),
        column(TIMESTAMPS, "<i8"),
        column(VALUES, "<f8"),
        column(ITEM_HASHES, "<u8"),
        column(ACTION_HASHES, "<u8"),
    )


def _among_newest(known: NDArray[np.bool_], row: NDArray[np.int64], count: int, max_length: int) -> NDArray[np.bool_]:
    """Which events are among the newest `max_length` known ones of their history."""
    through = np.cumsum(known)
    last = np.zeros(count, np.int64)
    last[row] = through  # the last write of each row stays
    return last[row] - through < max_length


def pad(features: Features, ends: NDArray[np.int64], lengths: NDArray[np.int64], padded_length: int) -> Inputs:
    """Cut windows that end before `ends` (B,) and hold `lengths` (B,) events; pad on the left to `padded_length`.

    The newest event of each window stands in the last column. The gap before a window's first event is unknown to
    the encoder, wherever the window begins, so that training and serving see the same.
    """
    columns = np.arange(padded_length) - padded_length
    source = ends[:, None] + columns
    valid = columns >= -lengths[:, None]
    source = np.where(valid, source, 0)
    gap_index = np.where(columns == -lengths[:, None], GAP_START, _taken(features.gap_index, source))
    return {
        "item_index": np.where(valid, _taken(features.item_index, source), np.int32(0)),
        "action_index": np.where(valid, _taken(features.action_index, source), np.int32(0)),
        "value": np.where(valid, _taken(features.value, source), np.float32(0)),
        "gap_index": np.where(valid, gap_index, 0).astype(np.int32),
    }


def _taken(column: NDArray[np.generic], source: NDArray[np.int64]) -> NDArray[np.generic]:
    return column[source] if len(column) else np.zeros(source.shape, column.dtype)


def padded_length(longest: int, max_length: int) -> int:
    """The length to which a batch is padded: the next of 8, 12, 16, 24, 32, 48, …, but `max_length` at most."""
    length = SHORTEST_PADDED
    while length < longest:
        length = length * 3 // 2 if length & (length - 1) == 0 else length * 4 // 3
    return min(length, max_length)


def batches(features: Features, max_length: int) -> list[tuple[NDArray[np.intp], Inputs]]:
    """Sort histories by length and cut them into encoder batches.

    Returns (rows, inputs) pairs: `rows` (b,) says which histories the batch holds. Empty histories are in none.
    """
    lengths = np.minimum(features.lengths, max_length)
    order = np.argsort(lengths, kind="stable")
    order = order[lengths[order] > 0]
    ends = features.offsets[1:]
    size = CHUNK_SIZE if len(order) < LARGE_FROM else LARGE_CHUNK_SIZE
    chunks = [order[start : start + size] for start in range(0, len(order), size)]
    return [
        (rows, pad(features, ends[rows], lengths[rows], padded_length(int(lengths[rows[-1]]), max_length)))
        for rows in chunks
    ]
