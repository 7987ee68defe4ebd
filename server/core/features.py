"""The one feature pipeline: events → encoder inputs, for the training log, streams and micro-batches alike.

Three steps. `look_up` turns strings into indexes (online, through dicts; offline the log does it with a join).
`encode` is the Polars pipeline over indexed events. `pad` cuts windows out of its columns and pads them on the left.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import repeat

import numpy as np
import polars as pl
from numpy.typing import NDArray

from server.core.history import History
from server.core.preprocessing import Preprocessing, ValueNormaliser

GAP_START = 1
"""Gap index of a window's first event, and of every event in a log without a clock. 0 is padding."""

GAP_BUCKETS = 31
"""Gaps are counted in powers of two seconds; the last bucket is open."""

GAP_COUNT = GAP_START + 1 + GAP_BUCKETS
"""How many gap indexes there are, padding included."""

CHUNK_SIZE = 32
"""Most histories in one encoder batch; larger ones pad more than they save."""

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
    histories: Sequence[History],
    vocabulary: Mapping[str, int],
    actions: Mapping[str, int],
    preprocessing: Preprocessing,
) -> Features:
    """Encode the newest `max_length` events of each history that the release knows.

    `vocabulary` and `actions` map ids and names to indexes from 1.
    """
    events, offsets, ignored = look_up(histories, vocabulary, actions, preprocessing.max_length)
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
    histories: Sequence[History], vocabulary: Mapping[str, int], actions: Mapping[str, int], max_length: int
) -> tuple[pl.DataFrame, NDArray[np.int64], NDArray[np.int32]]:
    """Index the newest `max_length` known events of each history, by dict look-ups.

    Returns the frame that `encode` takes, offsets (B + 1,) into it, and how many unknown events were passed over (B,).
    """
    item_index: list[int] = []
    action_index: list[int] = []
    values: list[NDArray[np.float64]] = []
    timestamps: list[NDArray[np.int64]] = []
    lengths = np.zeros(len(histories), np.int64)
    ignored = np.zeros(len(histories), np.int32)
    for row, history in enumerate(histories):
        window = slice(-max_length, None)
        items = list(map(vocabulary.get, history.item_ids[window], repeat(0)))
        kinds = list(map(actions.get, history.actions[window], repeat(0)))
        if 0 in items or 0 in kinds:
            kept, items, kinds, ignored[row] = _newest_known(history, vocabulary, actions, max_length)
            values.append(history.values[kept])
            timestamps.append(history.timestamps[kept])
        else:
            values.append(history.values[window])
            timestamps.append(history.timestamps[window])
        lengths[row] = len(items)
        item_index += items
        action_index += kinds
    frame = pl.DataFrame(
        {
            "row": np.repeat(np.arange(len(histories), dtype=np.uint32), lengths),
            "item_index": np.array(item_index, np.int32),
            "action_index": np.array(action_index, np.int32),
            "value": np.concatenate(values) if values else np.empty(0, np.float64),
            "timestamp": np.concatenate(timestamps) if timestamps else np.empty(0, np.int64),
        }
    )
    return frame, np.concatenate([[0], np.cumsum(lengths)]), ignored


def _newest_known(
    history: History, vocabulary: Mapping[str, int], actions: Mapping[str, int], max_length: int
) -> tuple[NDArray[np.intp], list[int], list[int], int]:
    """Positions, item and action indexes of the newest known events, and how many unknown ones there are in all."""
    items = np.fromiter(map(vocabulary.get, history.item_ids, repeat(0)), np.int32, len(history))
    kinds = np.fromiter(map(actions.get, history.actions, repeat(0)), np.int32, len(history))
    known = np.flatnonzero((items > 0) & (kinds > 0))
    kept = known[-max_length:]
    return kept, items[kept].tolist(), kinds[kept].tolist(), len(history) - len(known)


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
    """Sort histories by length and cut them into encoder batches of at most `CHUNK_SIZE`.

    Returns (rows, inputs) pairs: `rows` (b,) says which histories the batch holds. Empty histories are in none.
    """
    lengths = np.minimum(features.lengths, max_length)
    order = np.argsort(lengths, kind="stable")
    order = order[lengths[order] > 0]
    ends = features.offsets[1:]
    chunks = [order[start : start + CHUNK_SIZE] for start in range(0, len(order), CHUNK_SIZE)]
    return [
        (rows, pad(features, ends[rows], lengths[rows], padded_length(int(lengths[rows[-1]]), max_length)))
        for rows in chunks
    ]
