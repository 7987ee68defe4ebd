"""Events and histories, and the packed row in which a store keeps one user's history."""

import hashlib
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

ID_MAX_BYTES = 256
"""Longest user, item or event id, in UTF-8 bytes."""

_SEPARATOR = "\0"
_HEADER = struct.Struct("<BxxxIQ")  # version, events kept, revision
ROW_VERSION = 1
"""Version of the packed row. A store keeps it apart as well, so that an old store is refused as a whole."""


def event_key(item_id: str, action: str, value: float, timestamp: int, repeat: int = 0) -> int:
    """64-bit key of an event without an id; `repeat` counts the equal ones before it in a log that keeps those."""
    text = f"{item_id}\0{action}\0{float(value)!r}\0{timestamp}"
    return _hash64(f"{text}\0{repeat}" if repeat else text)


def _hash64(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


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
            return _hash64(self.event_id)
        return event_key(self.item_id, self.action, self.value, self.timestamp)


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
    text = _SEPARATOR.join([*history.item_ids, *history.actions]).encode()
    if history and text.count(b"\0") != 2 * len(history) - 1:
        raise ValueError("item ids and actions must not hold the character NUL")
    return b"".join(
        (
            _HEADER.pack(ROW_VERSION, len(history), history.revision),
            history.timestamps.astype("<i8").tobytes(),
            history.values.astype("<f8").tobytes(),
            history.keys.astype("<u8").tobytes(),
            text,
        )
    )


def unpack(row: bytes | memoryview) -> History:
    """Decode a row written by `pack`. Raises `ValueError` when it is damaged or of another version."""
    row = bytes(row)
    if len(row) < _HEADER.size:
        raise ValueError(f"history row of {len(row)} bytes is shorter than its header")
    version, count, revision = _HEADER.unpack_from(row)
    if version != ROW_VERSION:
        raise ValueError(f"history row has version {version}, this build reads {ROW_VERSION}")
    if not count:
        return History(revision=revision)
    start = _HEADER.size
    if len(row) < start + 24 * count:
        raise ValueError(f"history row of {len(row)} bytes is too short for {count} events")
    text = row[start + 24 * count :].decode().split(_SEPARATOR)
    if len(text) != 2 * count:
        raise ValueError(f"history row names {len(text)} ids and actions for {count} events")
    return History(
        text[:count],
        text[count:],
        np.frombuffer(row, "<f8", count, start + 8 * count),
        np.frombuffer(row, "<i8", count, start),
        np.frombuffer(row, "<u8", count, start + 16 * count),
        revision,
    )


def revision_of(row: bytes | memoryview) -> int:
    """Read only the revision of a packed row."""
    return int(_HEADER.unpack_from(row)[2])


def event_count_of(row: bytes | memoryview) -> int:
    """Read only how many events a packed row holds; 0 when it is too short to say."""
    return int(_HEADER.unpack_from(row)[1]) if len(row) >= _HEADER.size else 0
