"""Events and histories, and the packed row in which a store keeps one user's history."""

import hashlib
import math
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import overload

import numpy as np
from numpy.typing import NDArray

ID_MAX_BYTES = 256
"""Longest user, item or event id, in UTF-8 bytes."""

_SEPARATOR = "\0"
_HEADER = struct.Struct("<BxxxIQI")  # version, events kept, revision, bytes of the item ids
_INTS, _FLOATS, _WORDS = np.dtype("<i8"), np.dtype("<f8"), np.dtype("<u8")
_DOUBLE, _BITS = struct.Struct("<d"), struct.Struct("<Q")
ROW_VERSION = 1
"""Version of the packed row. A store keeps it apart as well, so that an old store is refused as a whole."""


_WORD = (1 << 64) - 1
_ACTION, _VALUE, _TIMESTAMP, _REPEAT = 0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0xFF51AFD7ED558CCD, 0xD6E8FEB86659FD93
"""Odd numbers, so that events that differ in one part only always differ in their keys."""


def text_hash(text: str) -> int:
    """64-bit hash of a text."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


_action_hash = lru_cache(maxsize=1024)(text_hash)


def event_keys(
    item_hashes: NDArray[np.uint64],
    action_hashes: NDArray[np.uint64],
    values: NDArray[np.float64],
    timestamps: NDArray[np.int64],
    repeats: NDArray[np.uint64],
) -> NDArray[np.uint64]:
    """`Event.key` of many events without event ids, (n,), from the `text_hash` of their items and actions.

    `repeats` counts the equal events before each, in a log that keeps those.
    """
    bits = np.where(np.isnan(values), np.nan, values + 0.0).view(np.uint64)
    mixed: NDArray[np.uint64] = item_hashes + action_hashes * np.uint64(_ACTION) + bits * np.uint64(_VALUE)
    mixed += timestamps.view(np.uint64) * np.uint64(_TIMESTAMP) + repeats * np.uint64(_REPEAT)
    return mixed


@dataclass(frozen=True, slots=True)
class Event:
    """One thing a user did.

    `value` is the raw number of the log (a price, a rating, a quantity), NaN where it has none.
    `timestamp` is milliseconds since the epoch, UTC; logs without a clock use the row's order.
    `event_id` makes recording idempotent; left empty, it is derived from the event itself.
    """

    item_id: str
    action: str
    value: float = float("nan")
    timestamp: int = 0
    event_id: str = ""

    def key(self) -> int:
        """64-bit key by which a repeated event is recognised."""
        if self.event_id:
            return text_hash(self.event_id)
        value = math.nan if math.isnan(self.value) else self.value + 0.0
        bits: int = _BITS.unpack(_DOUBLE.pack(value))[0]
        mixed = text_hash(self.item_id) + _action_hash(self.action) * _ACTION + bits * _VALUE
        return (mixed + self.timestamp * _TIMESTAMP) & _WORD


@dataclass(frozen=True, slots=True)
class History:
    """A user's events in time order, oldest first, as columns of equal length n.

    `values` is float64 (n,), NaN where an event has none; `timestamps` int64 (n,), milliseconds;
    `keys` uint64 (n,), see `Event.key`. `revision` changes with every write to the history and is
    never used twice for a user; 0 means that nothing is stored.
    """

    item_ids: Sequence[str] = ()
    actions: Sequence[str] = ()
    values: NDArray[np.float64] = field(default_factory=lambda: np.empty(0, np.float64))
    timestamps: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    keys: NDArray[np.uint64] = field(default_factory=lambda: np.empty(0, np.uint64))
    revision: int = 0

    def __len__(self) -> int:
        return len(self.item_ids)

    def events(self) -> list[Event]:
        """The history as a list of events, oldest first; event ids are not kept."""
        columns = zip(self.item_ids, self.actions, self.values.tolist(), self.timestamps.tolist(), strict=True)
        return [Event(item_id, action, value, timestamp) for item_id, action, value, timestamp in columns]


EMPTY = History()


def history_of(events: Iterable[Event], revision: int = 0) -> History:
    """Build a history from events in any order; equal timestamps keep the order given."""
    ordered = sorted(events, key=lambda event: event.timestamp)
    return History(
        [event.item_id for event in ordered],
        [event.action for event in ordered],
        np.array([event.value for event in ordered], np.float64),
        np.array([event.timestamp for event in ordered], np.int64),
        np.array([event.key() for event in ordered], np.uint64),
        revision,
    )


def merge(history: History, events: Sequence[Event], limit: int, revision: int) -> tuple[History, int]:
    """Add events to a history, keeping the newest `limit`.

    Returns the new history and how many of `events` were already there (by `Event.key`). When all
    were, the history comes back as it was, revision included.
    """
    known = set(history.keys.tolist())
    fresh: list[Event] = []
    for event in events:
        key = event.key()
        if key not in known:
            known.add(key)
            fresh.append(event)
    duplicate_count = len(events) - len(fresh)
    if not fresh:
        return history, duplicate_count
    return _joined(history, history_of(fresh), limit, revision), duplicate_count


def merge_histories(history: History, added: History, limit: int, revision: int) -> History:
    """Add the events of `added`, whose keys are distinct, to a history, keeping the newest `limit`.

    When nothing is new, the history comes back as it was, revision included.
    """
    fresh = np.isin(added.keys, history.keys, invert=True, kind="sort")
    if not fresh.any():
        return history
    if not fresh.all():
        rows = np.flatnonzero(fresh)
        added = _taken(added, rows, added.revision)
    return _joined(history, added, limit, revision)


def _joined(older: History, newer: History, limit: int, revision: int) -> History:
    both = History(
        [*older.item_ids, *newer.item_ids],
        [*older.actions, *newer.actions],
        np.concatenate([older.values, newer.values]),
        np.concatenate([older.timestamps, newer.timestamps]),
        np.concatenate([older.keys, newer.keys]),
    )
    return _taken(both, np.argsort(both.timestamps, kind="stable")[-limit:], revision)


def _taken(history: History, rows: NDArray[np.intp], revision: int) -> History:
    places = rows.tolist()
    return History(
        [history.item_ids[i] for i in places],
        [history.actions[i] for i in places],
        history.values[rows],
        history.timestamps[rows],
        history.keys[rows],
        revision,
    )


def pack(history: History) -> bytes:
    """Encode a history as one row. `unpack` reverses it to the bit. Raises `ValueError` for an id with a NUL in it."""
    item_ids = _SEPARATOR.join(history.item_ids).encode()
    actions = _SEPARATOR.join(history.actions).encode()
    if history and not item_ids.count(0) == actions.count(0) == len(history) - 1:
        raise ValueError("item ids and actions must not hold the character NUL")
    return b"".join(
        (
            _HEADER.pack(ROW_VERSION, len(history), history.revision, len(item_ids)),
            history.timestamps.astype("<i8").tobytes(),
            history.values.astype("<f8").tobytes(),
            history.keys.astype("<u8").tobytes(),
            item_ids,
            actions,
        )
    )


def unpack(row: bytes) -> History:
    """Decode a row written by `pack`. Raises `ValueError` when it is damaged or of another version.

    Ids and actions are split only when they are read, and no more of them than is asked for.
    """
    if len(row) < _HEADER.size:
        raise ValueError(f"history row of {len(row)} bytes is shorter than its header")
    version, count, revision, item_bytes = _HEADER.unpack_from(row)
    if version != ROW_VERSION:
        raise ValueError(f"history row has version {version}, this build reads {ROW_VERSION}")
    if not count:
        return History(revision=revision)
    start = _HEADER.size
    texts = start + 24 * count
    if len(row) < texts + item_bytes:
        raise ValueError(f"history row of {len(row)} bytes is too short for {count} events")
    return History(
        _Texts(row[texts : texts + item_bytes], count),
        _Texts(row[texts + item_bytes :], count),
        np.frombuffer(row, _FLOATS, count, start + 8 * count),
        np.frombuffer(row, _INTS, count, start),
        np.frombuffer(row, _WORDS, count, start + 16 * count),
        revision,
    )


class _Texts(Sequence[str]):
    """A column of texts, split when first read; of a long one only the newest when no more are asked for."""

    __slots__ = ("_joined", "_length", "_list")

    def __init__(self, joined: bytes, length: int) -> None:
        if joined.count(0) != length - 1:
            raise ValueError(f"history row names {joined.count(0) + 1} ids or actions for {length} events")
        self._joined = joined.decode()
        self._length = length
        self._list: list[str] | None = None

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[str]:
        return iter(self._whole())

    def __eq__(self, other: object) -> bool:
        return self._whole() == (other._whole() if isinstance(other, _Texts) else other)

    __hash__ = None  # type: ignore[assignment]  # like a list

    def __repr__(self) -> str:
        return repr(self._whole())

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if self._list is None and isinstance(index, slice):
            start, stop, step = index.indices(self._length)
            if 0 < start < stop == self._length and step == 1:
                return self._joined.rsplit(_SEPARATOR, stop - start)[1:]
        return self._whole()[index]

    def _whole(self) -> list[str]:
        if self._list is None:
            self._list = self._joined.split(_SEPARATOR)
        return self._list


def revision_of(row: bytes) -> int:
    """Read only the revision of a packed row."""
    return int(_HEADER.unpack_from(row)[2])


def event_count_of(row: bytes) -> int:
    """Read only how many events a packed row holds; 0 when it is too short to say."""
    return int(_HEADER.unpack_from(row)[1]) if len(row) >= _HEADER.size else 0
