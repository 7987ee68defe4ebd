"""Events and histories. A history is stored as one packed row; its columns are views of this row.

A row has a header, then five numbers of eight bytes per event, oldest event first (timestamp, value, hash of the item
id, hash of the action, key), then all item ids and all actions as text. The encoder needs only the numbers: the newest
events are one slice of the row, and the text is not split.
"""

import hashlib
import math
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

ID_MAX_BYTES = 256
"""Longest user, item or event id, in UTF-8 bytes."""

_SEPARATOR = "\0"
_HEADER = struct.Struct("<BxxxIQII")  # version, event count, revision, bytes of the item ids, bytes of the actions
_UINT64 = np.dtype("<u8")
_DOUBLE, _BITS = struct.Struct("<d"), struct.Struct("<Q")
ROW_VERSION = 1
"""Version of the packed row. A store also keeps this version itself, so that an old store is refused as a whole."""


_UINT64_MASK = (1 << 64) - 1
_ACTION, _VALUE, _TIMESTAMP, _REPEAT = 0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0xFF51AFD7ED558CCD, 0xD6E8FEB86659FD93
"""Odd multipliers: events that differ in only one part always have different keys."""


def text_hash(text: str) -> int:
    """64-bit BLAKE2b hash of a text."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


_action_hash = lru_cache(maxsize=1024)(text_hash)


def event_keys(
    item_hashes: NDArray[np.uint64],
    action_hashes: NDArray[np.uint64],
    values: NDArray[np.float64],
    timestamps: NDArray[np.int64],
    repeats: NDArray[np.uint64],
) -> NDArray[np.uint64]:
    """`Event.key` of n events without event ids, (n,), from the `text_hash` of their items and actions.

    `repeats` is the number of equal events before each event; it gives equal events of a log different keys.
    """
    bits = np.where(np.isnan(values), np.nan, values + 0.0).view(np.uint64)
    mixed: NDArray[np.uint64] = item_hashes + action_hashes * np.uint64(_ACTION) + bits * np.uint64(_VALUE)
    mixed += timestamps.view(np.uint64) * np.uint64(_TIMESTAMP) + repeats * np.uint64(_REPEAT)
    return mixed


@dataclass(frozen=True, slots=True)
class Event:
    """One thing a user did.

    `value` is the raw number of the log (a price, a rating, a quantity), NaN without one. `timestamp` is in
    milliseconds since the epoch, UTC; in a log without a clock it is the number of the row. Events with the same
    `event_id` are duplicates; with an empty one, events with equal fields are.
    """

    item_id: str
    action: str
    value: float = float("nan")
    timestamp: int = 0
    event_id: str = ""

    def key(self) -> int:
        """64-bit key; a second event with the same key is a duplicate."""
        if self.event_id:
            return text_hash(self.event_id)
        value = math.nan if math.isnan(self.value) else self.value + 0.0
        bits: int = _BITS.unpack(_DOUBLE.pack(value))[0]
        mixed = text_hash(self.item_id) + _action_hash(self.action) * _ACTION + bits * _VALUE
        return (mixed + self.timestamp * _TIMESTAMP) & _UINT64_MASK


TIMESTAMP, VALUE, ITEM_HASH, ACTION_HASH, KEY = range(5)
"""Positions of the five numbers of an event."""

COLUMN_TYPES = tuple(map(np.dtype, ("<i8", "<f8", "<u8", "<u8", "<u8")))
_EVENT_BYTES = 8 * len(COLUMN_TYPES)


def column_of(events: bytes, column: int) -> NDArray[Any]:
    """One number of each event, (n,), from the bytes of `History.newest`, also of several histories joined."""
    return np.frombuffer(events, _UINT64).reshape(-1, len(COLUMN_TYPES))[:, column].view(COLUMN_TYPES[column])


class History:
    """A user's events in time order, oldest first, as columns of equal length n. Never changes.

    `values` are float64 (n,), NaN for an event without value; `timestamps` int64 (n,), milliseconds; `item_hashes` and
    `action_hashes` uint64 (n,), see `text_hash`; `keys` uint64 (n,), see `Event.key`. `revision` changes with every
    write to the history and is never used twice for a user; 0 means that nothing is stored.
    """

    __slots__ = ("_count", "_item_bytes", "revision", "row")

    def __init__(self, row: bytes) -> None:
        """Read a packed row. Raises `ValueError` for a damaged row or a row of another version."""
        if len(row) < _HEADER.size:
            raise ValueError(f"history row of {len(row)} bytes is shorter than its header")
        version, self._count, self.revision, self._item_bytes, action_bytes = _HEADER.unpack_from(row)
        if version != ROW_VERSION:
            raise ValueError(f"history row has version {version}, this build reads {ROW_VERSION}")
        size = _HEADER.size + _EVENT_BYTES * self._count + self._item_bytes + action_bytes
        if len(row) != size:
            raise ValueError(f"history row has {len(row)} bytes, not the {size} of its {self._count} events")
        self.row = row

    @classmethod
    def of(
        cls,
        item_ids: Sequence[str],
        actions: Sequence[str],
        columns: Sequence[NDArray[np.generic]],
        revision: int = 0,
    ) -> Self:
        """A history of n events in time order; `columns` has the five columns of `COLUMN_TYPES`, (n,) each.

        Raises `ValueError` for an id or action that contains NUL.
        """
        count = len(item_ids)
        item_text, action_text = _SEPARATOR.join(item_ids).encode(), _SEPARATOR.join(actions).encode()
        if count and not item_text.count(0) == action_text.count(0) == count - 1:
            raise ValueError("item ids and actions must not contain the character NUL")
        header = _HEADER.pack(ROW_VERSION, count, revision, len(item_text), len(action_text))
        events = np.empty((count, len(COLUMN_TYPES)), _UINT64)
        for position, (column, dtype) in enumerate(zip(columns, COLUMN_TYPES, strict=True)):
            events[:, position] = column.astype(dtype, copy=False).view(_UINT64)
        return cls(b"".join((header, events.tobytes(), item_text, action_text)))

    def __len__(self) -> int:
        return int(self._count)

    @property
    def item_ids(self) -> list[str]:
        start = _HEADER.size + _EVENT_BYTES * self._count
        return _texts(self.row[start : start + self._item_bytes], self._count)

    @property
    def actions(self) -> list[str]:
        return _texts(self.row[_HEADER.size + _EVENT_BYTES * self._count + self._item_bytes :], self._count)

    @property
    def timestamps(self) -> NDArray[np.int64]:
        """Milliseconds since the epoch (n,)."""
        return column_of(self.newest(self._count), TIMESTAMP)

    @property
    def values(self) -> NDArray[np.float64]:
        """Raw values (n,), NaN for an event without value."""
        return column_of(self.newest(self._count), VALUE)

    @property
    def item_hashes(self) -> NDArray[np.uint64]:
        """`text_hash` of the item ids (n,)."""
        return column_of(self.newest(self._count), ITEM_HASH)

    @property
    def action_hashes(self) -> NDArray[np.uint64]:
        """`text_hash` of the actions (n,)."""
        return column_of(self.newest(self._count), ACTION_HASH)

    @property
    def keys(self) -> NDArray[np.uint64]:
        """`Event.key` of the events (n,)."""
        return column_of(self.newest(self._count), KEY)

    def newest(self, count: int) -> bytes:
        """The numbers of the newest `count` events as bytes, oldest event first, for `column_of`."""
        end = _HEADER.size + _EVENT_BYTES * self._count
        return self.row[end - _EVENT_BYTES * min(count, self._count) : end]

    def count_with_ties(self, count: int) -> int:
        """The number of the newest `count` events and of the older events with the time stamp of the oldest of them."""
        if count >= self._count:
            return int(self._count)
        # Two adjacent time stamps, at the start of each event's bytes, are compared without a NumPy call.
        edge = _HEADER.size + _EVENT_BYTES * (self._count - count)
        if self.row[edge : edge + 8] != self.row[edge - _EVENT_BYTES : edge - _EVENT_BYTES + 8]:
            return count
        timestamps = self.timestamps
        return int(self._count - np.searchsorted(timestamps, timestamps[-count]))

    def events(self) -> list[Event]:
        """The events, oldest first, without their event ids, which are not stored."""
        columns = zip(self.item_ids, self.actions, self.values.tolist(), self.timestamps.tolist(), strict=True)
        return [Event(item_id, action, value, timestamp) for item_id, action, value, timestamp in columns]

    def shortened(self, limit: int) -> "History":
        """The newest `limit` events."""
        if self._count <= limit:
            return self
        columns = _columns(self)
        return _select(self.item_ids, self.actions, columns, _newest_places(columns, limit), self.revision)

    def with_revision(self, revision: int) -> "History":
        """The same events with another revision."""
        header = list(_HEADER.unpack_from(self.row))
        header[2] = revision
        return History(_HEADER.pack(*header) + self.row[_HEADER.size :])


def _texts(joined: bytes, count: int) -> list[str]:
    return joined.decode().split(_SEPARATOR) if count else []


EMPTY = History.of((), (), [np.empty(0)] * len(COLUMN_TYPES))


def history_of(events: Iterable[Event], revision: int = 0) -> History:
    """Build a history from events in any order; events with equal timestamps keep their order."""
    ordered = sorted(events, key=lambda event: event.timestamp)
    return History.of(
        [event.item_id for event in ordered],
        [event.action for event in ordered],
        (
            np.array([event.timestamp for event in ordered], np.int64),
            np.array([event.value for event in ordered], np.float64),
            np.array([text_hash(event.item_id) for event in ordered], np.uint64),
            np.array([_action_hash(event.action) for event in ordered], np.uint64),
            np.array([event.key() for event in ordered], np.uint64),
        ),
        revision,
    )


def merge(history: History, events: Sequence[Event], limit: int, revision: int) -> tuple[History, int]:
    """Add events to a history, keeping the newest `limit`.

    Returns the new history and the number of duplicates among `events` (by `Event.key`). When all are duplicates, the
    history is returned unchanged, with its revision.
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

    When all are duplicates, the history is returned unchanged, with its revision.
    """
    fresh = np.isin(added.keys, history.keys, invert=True, kind="sort")
    if not fresh.any():
        return history
    if not fresh.all():
        added = _select(added.item_ids, added.actions, _columns(added), np.flatnonzero(fresh), added.revision)
    return _joined(history, added, limit, revision)


def _columns(history: History) -> list[NDArray[np.generic]]:
    return [history.timestamps, history.values, history.item_hashes, history.action_hashes, history.keys]


def _joined(older: History, newer: History, limit: int, revision: int) -> History:
    columns = [np.concatenate(pair) for pair in zip(_columns(older), _columns(newer), strict=True)]
    newest = _newest_places(columns, limit)
    return _select(older.item_ids + newer.item_ids, older.actions + newer.actions, columns, newest, revision)


def _newest_places(columns: Sequence[NDArray[np.generic]], limit: int) -> NDArray[np.intp]:
    """Places of the newest `limit` events in time order; tied events keep their order.

    Where the limit cuts a tie, the hashes of its events decide which of them stay, not their order.
    """
    timestamps = columns[TIMESTAMP]
    order = np.argsort(timestamps, kind="stable")
    if len(order) <= limit or timestamps[order[-limit]] != timestamps[order[-limit - 1]]:
        return order[-limit:]
    sort_columns = [columns[column] for column in (KEY, VALUE, ACTION_HASH, ITEM_HASH, TIMESTAMP)]
    return order[np.isin(order, np.lexsort(sort_columns)[-limit:])]


def _select(
    item_ids: list[str],
    actions: list[str],
    columns: Sequence[NDArray[np.generic]],
    rows: NDArray[np.intp],
    revision: int,
) -> History:
    places = rows.tolist()
    return History.of(
        [item_ids[i] for i in places], [actions[i] for i in places], [column[rows] for column in columns], revision
    )


def event_count_of(row: bytes) -> int:
    """The number of events of a row, from its header; 0 for a row without a whole header."""
    return int(_HEADER.unpack_from(row)[1]) if len(row) >= _HEADER.size else 0
