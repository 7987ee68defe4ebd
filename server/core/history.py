"""Events and histories. A history is stored as one packed row; its columns are views of this row.

A row has a header, then five numbers of eight bytes per event, oldest event first (timestamp, value, hash of the item
id, hash of the action, key), then all item ids and all actions as text. The encoder needs only the numbers: the newest
events are one slice of the row, and the text is not split. The header has a checksum of all the rest, which is compared
whenever a row is read.
"""

import hashlib
import struct
import zlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

ID_MAX_BYTES = 256
"""Longest user, item or event id, in UTF-8 bytes."""

_SEPARATOR = "\0"
_HEADER = struct.Struct("<BxxxIQQII")  # version, event count, revision, origin, bytes of the item ids, of the actions
_CHECKSUM = struct.Struct("<Q")  # after the header
EVENTS_START = _HEADER.size + _CHECKSUM.size
"""Where the numbers of the events begin in a row."""
_UINT64 = np.dtype("<u8")
ROW_VERSION = 2
"""Version of the packed row. A store also keeps this version itself, so that an old store is refused as a whole."""

_UINT64_MASK = (1 << 64) - 1
_ACTION, _TIMESTAMP, _REPEAT = 0x9E3779B97F4A7C15, 0xFF51AFD7ED558CCD, 0xD6E8FEB86659FD93
"""Odd multipliers: events that differ in only one part always have different keys."""
_REPEAT_INVERSE = pow(_REPEAT, -1, 1 << 64)
_REPEATS_MAX = 1 << 32


def text_hash(text: str) -> int:
    """64-bit BLAKE2b hash of a text."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


_action_hash = lru_cache(maxsize=1024)(text_hash)


def content_keys(
    item_hashes: NDArray[np.uint64], action_hashes: NDArray[np.uint64], timestamps: NDArray[np.int64]
) -> NDArray[np.uint64]:
    """`Event.content_key` of n events, (n,), from the `text_hash` of their items and actions."""
    mixed: NDArray[np.uint64] = item_hashes + action_hashes * np.uint64(_ACTION)
    mixed += timestamps.view(np.uint64) * np.uint64(_TIMESTAMP)
    return mixed


def repeated_keys(contents: NDArray[np.uint64], repeats: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Keys of n events without event ids, (n,): `repeats` is the number of equal events of the log before each."""
    return contents + repeats * np.uint64(_REPEAT)


@dataclass(frozen=True, slots=True)
class Event:
    """One thing a user did.

    `value` is the raw number of the log (a price, a rating, a quantity), NaN without one. `timestamp` is in
    milliseconds since the epoch, UTC; in a log without a clock it is the number of the row. Events with the same
    `event_id` are duplicates; where one of two has none, those with the same item, action and timestamp are.
    """

    item_id: str
    action: str
    value: float = float("nan")
    timestamp: int = 0
    event_id: str = ""

    def key(self) -> int:
        """64-bit key: of the event id, or of the content without one."""
        return text_hash(self.event_id) if self.event_id else self.content_key()

    def content_key(self) -> int:
        """64-bit key of item, action and timestamp. The value has no part in it: cleaning of a log may change it."""
        return (
            text_hash(self.item_id) + _action_hash(self.action) * _ACTION + self.timestamp * _TIMESTAMP
        ) & _UINT64_MASK


TIMESTAMP, VALUE, ITEM_HASH, ACTION_HASH, KEY = range(5)
"""Positions of the five numbers of an event."""

COLUMN_TYPES = tuple(map(np.dtype, ("<i8", "<f8", "<u8", "<u8", "<u8")))
EVENT_BYTES = 8 * len(COLUMN_TYPES)
"""Bytes of the numbers of one event."""


def column_of(events: bytes, column: int) -> NDArray[Any]:
    """One number of each event, (n,), from their bytes in a row, also those of several rows joined."""
    return np.frombuffer(events, _UINT64).reshape(-1, len(COLUMN_TYPES))[:, column].view(COLUMN_TYPES[column])


class History:
    """A user's events in time order, oldest first, as columns of equal length n. Never changes.

    `values` are float64 (n,), NaN for an event without value; `timestamps` int64 (n,), milliseconds; `item_hashes` and
    `action_hashes` uint64 (n,), see `text_hash`; `keys` uint64 (n,), see `Event.key`. `revision` changes with every
    write to the history and is never used twice for a user; 0 means that nothing is stored. `origin` is the revision of
    the first write: a user who was erased and comes back has another.
    """

    __slots__ = ("_count", "_item_bytes", "origin", "revision", "row")

    def __init__(self, row: bytes) -> None:
        """Read a packed row. Raises `ValueError` for a damaged row or a row of another version."""
        self._count, self.revision, self.origin, self._item_bytes = self.check(row)
        self.row = row

    @staticmethod
    def check(row: bytes) -> tuple[int, int, int, int]:
        """Event count, revision, origin and bytes of the item ids of a row. Raises `ValueError` as reading does."""
        if len(row) < EVENTS_START:
            raise ValueError(f"history row of {len(row)} bytes is shorter than its header")
        version, count, revision, origin, item_bytes, action_bytes = _HEADER.unpack_from(row)
        if version != ROW_VERSION:
            raise ValueError(f"history row has version {version}, this build reads {ROW_VERSION}")
        size = EVENTS_START + EVENT_BYTES * count + item_bytes + action_bytes
        if len(row) != size:
            raise ValueError(f"history row has {len(row)} bytes, not the {size} of its {count} events")
        if (
            _checksum(row[: _HEADER.size], memoryview(row)[EVENTS_START:])
            != _CHECKSUM.unpack_from(row, _HEADER.size)[0]
        ):
            raise ValueError("history row does not have the checksum in its header")
        return count, revision, origin, item_bytes

    @classmethod
    def trusted(cls, row: bytes) -> Self:
        """Read a row that `check` has passed."""
        history = cls.__new__(cls)
        _, history._count, history.revision, history.origin, history._item_bytes, _ = _HEADER.unpack_from(row)
        history.row = row
        return history

    @classmethod
    def of(
        cls,
        item_ids: Sequence[str],
        actions: Sequence[str],
        columns: Sequence[NDArray[np.generic]],
        revision: int = 0,
        origin: int = 0,
    ) -> Self:
        """A history of n events in time order; `columns` has the five columns of `COLUMN_TYPES`, (n,) each.

        Without `origin` the revision is the first one. Raises `ValueError` for an id or action that contains NUL.
        """
        count = len(item_ids)
        item_text, action_text = _SEPARATOR.join(item_ids).encode(), _SEPARATOR.join(actions).encode()
        if count and not item_text.count(0) == action_text.count(0) == count - 1:
            raise ValueError("item ids and actions must not contain the character NUL")
        events = np.empty((count, len(COLUMN_TYPES)), _UINT64)
        for position, (column, dtype) in enumerate(zip(columns, COLUMN_TYPES, strict=True)):
            events[:, position] = column.astype(dtype, copy=False).view(_UINT64)
        body = b"".join((events.tobytes(), item_text, action_text))
        return cls._packed(count, revision, origin or revision, len(item_text), len(action_text), body)

    @classmethod
    def _packed(cls, count: int, revision: int, origin: int, item_bytes: int, action_bytes: int, body: bytes) -> Self:
        history = cls.__new__(cls)
        header = _HEADER.pack(ROW_VERSION, count, revision, origin, item_bytes, action_bytes)
        history._count, history.revision, history.origin, history._item_bytes = count, revision, origin, item_bytes
        history.row = header + _CHECKSUM.pack(_checksum(header, body)) + body
        return history

    def __len__(self) -> int:
        return int(self._count)

    @property
    def item_ids(self) -> list[str]:
        start = EVENTS_START + EVENT_BYTES * self._count
        return _texts(self.row[start : start + self._item_bytes], self._count)

    @property
    def actions(self) -> list[str]:
        return _texts(self.row[EVENTS_START + EVENT_BYTES * self._count + self._item_bytes :], self._count)

    @property
    def timestamps(self) -> NDArray[np.int64]:
        """Milliseconds since the epoch (n,)."""
        return self._column(TIMESTAMP)

    @property
    def values(self) -> NDArray[np.float64]:
        """Raw values (n,), NaN for an event without value."""
        return self._column(VALUE)

    @property
    def item_hashes(self) -> NDArray[np.uint64]:
        """`text_hash` of the item ids (n,)."""
        return self._column(ITEM_HASH)

    @property
    def action_hashes(self) -> NDArray[np.uint64]:
        """`text_hash` of the actions (n,)."""
        return self._column(ACTION_HASH)

    @property
    def keys(self) -> NDArray[np.uint64]:
        """`Event.key` of the events (n,)."""
        return self._column(KEY)

    def content_keys(self) -> NDArray[np.uint64]:
        """`Event.content_key` of the events (n,)."""
        return content_keys(self.item_hashes, self.action_hashes, self.timestamps)

    def _column(self, column: int) -> NDArray[Any]:
        return column_of(self.row[EVENTS_START : EVENTS_START + EVENT_BYTES * self._count], column)

    def events(self) -> list[Event]:
        """The events, oldest first, without their event ids, which are not stored."""
        columns = zip(self.item_ids, self.actions, self.values.tolist(), self.timestamps.tolist(), strict=True)
        return [Event(item_id, action, value, timestamp) for item_id, action, value, timestamp in columns]

    def shortened(self, limit: int) -> "History":
        """The newest `limit` events."""
        if self._count <= limit:
            return self
        return _select(self, _newest_places(_columns(self), limit))

    def since(self, timestamp: int) -> "History":
        """The events at `timestamp` (milliseconds) and later."""
        start = int(np.searchsorted(self.timestamps, timestamp)) if self._count else 0
        return _select(self, np.arange(start, self._count)) if start else self

    def with_revision(self, revision: int) -> "History":
        """The same events with another revision; it is the first one of a history that was not stored yet."""
        _, count, _, origin, item_bytes, action_bytes = _HEADER.unpack_from(self.row)
        return History._packed(count, revision, origin or revision, item_bytes, action_bytes, self.row[EVENTS_START:])


def _checksum(header: bytes, body: "bytes | memoryview") -> int:
    return zlib.crc32(body, zlib.crc32(header))


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


class Merged(NamedTuple):
    """What became of events that were added to a history. The others were older than all that is kept."""

    history: History
    stored_count: int
    duplicate_count: int


def merge(history: History, events: Sequence[Event], limit: int, revision: int) -> Merged:
    """Add events to a history, keeping the newest `limit`.

    An event without event id is a duplicate of any event with the same content. An event with one takes the place of an
    event of the same content that has none, which came from a log, and counts as its duplicate. A history to which
    nothing is added is returned unchanged, with its revision.
    """
    keys, contents = history.keys, history.content_keys()
    known_keys, known_contents = set(keys.tolist()), set(contents.tolist())
    fresh: list[Event] = []
    named = False
    for event in events:
        key, content = event.key(), event.content_key()
        if key in known_keys:
            continue
        known_keys.add(key)
        if content in known_contents:
            if not event.event_id or _name_fresh(fresh, event):
                continue
            if (place := _without_id(keys, contents, content)) is not None:
                keys = keys.copy()
                keys[place] = key
                named = True
                continue
        known_contents.add(content)
        fresh.append(event)
    duplicate_count = len(events) - len(fresh)
    if not fresh and not named:
        return Merged(history, 0, duplicate_count)
    columns = _columns(history)
    columns[KEY] = keys
    joined, stored_count = _joined(history, columns, history_of(fresh), limit, revision)
    return Merged(joined if stored_count or named else history, stored_count, duplicate_count)


def _name_fresh(fresh: list[Event], event: Event) -> bool:
    """Give the id of `event` to an event of the same content without one."""
    for place, other in enumerate(fresh):
        if not other.event_id and other.content_key() == event.content_key():
            fresh[place] = replace(other, event_id=event.event_id)
            return True
    return False


def _without_id(keys: NDArray[np.uint64], contents: NDArray[np.uint64], content: int) -> int | None:
    """The place of an event with this content and without event id, whose key is one of `repeated_keys`."""
    places = np.flatnonzero(contents == np.uint64(content))
    repeats = (keys[places] - contents[places]) * np.uint64(_REPEAT_INVERSE)
    unnamed = places[repeats < _REPEATS_MAX]
    return int(unnamed[0]) if len(unnamed) else None


def merge_histories(history: History, added: History, limit: int, revision: int) -> History:
    """Add the events of `added`, which have no event ids, to a history, keeping the newest `limit`.

    Of an event that occurs n times in `added` and m times in `history`, the larger number is kept. A history to which
    nothing is added is returned unchanged, with its revision.
    """
    contents = added.content_keys()
    fresh = np.isin(contents, history.content_keys(), invert=True, kind="sort")
    if not fresh.all() and not np.array_equal(contents, added.keys):  # equal events in the log: compare numbers
        known_keys, remaining = set(history.keys.tolist()), Counter(history.content_keys().tolist())
        for place, (key, content) in enumerate(zip(added.keys.tolist(), contents.tolist(), strict=True)):
            fresh[place] = key not in known_keys and remaining[content] <= 0
            remaining[content] -= 1
    if not fresh.any():
        return history
    joined, stored_count = _joined(history, _columns(history), _select(added, np.flatnonzero(fresh)), limit, revision)
    return joined if stored_count else history


def _columns(history: History) -> list[NDArray[np.generic]]:
    return [history.timestamps, history.values, history.item_hashes, history.action_hashes, history.keys]


def _joined(
    older: History, older_columns: Sequence[NDArray[np.generic]], newer: History, limit: int, revision: int
) -> tuple[History, int]:
    """The newest `limit` events of two histories, and how many of them are of `newer`."""
    columns = [np.concatenate(pair) for pair in zip(older_columns, _columns(newer), strict=True)]
    places = _newest_places(columns, limit)
    item_ids, actions = older.item_ids + newer.item_ids, older.actions + newer.actions
    joined = History.of(
        [item_ids[i] for i in places.tolist()],
        [actions[i] for i in places.tolist()],
        [column[places] for column in columns],
        revision,
        older.origin,
    )
    return joined, int((places >= len(older)).sum())


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


def _select(history: History, places: NDArray[np.intp]) -> History:
    item_ids, actions, chosen = history.item_ids, history.actions, places.tolist()
    return History.of(
        [item_ids[i] for i in chosen],
        [actions[i] for i in chosen],
        [column[places] for column in _columns(history)],
        history.revision,
        history.origin,
    )


def oldest_timestamp(row: bytes) -> int | None:
    """The time stamp of the oldest event of a row in milliseconds, not checked; None for a row without events."""
    if len(row) < EVENTS_START + EVENT_BYTES:
        return None
    return int.from_bytes(row[EVENTS_START : EVENTS_START + 8], "little", signed=True)


def event_count_of(row: bytes) -> int:
    """The number of events of a row, from its header; for a damaged row at most the number that it has room for."""
    if len(row) < EVENTS_START:
        return 0
    return min(int(_HEADER.unpack_from(row)[1]), (len(row) - EVENTS_START) // EVENT_BYTES)
