"""History store in a directory on this machine: LMDB, one packed row per user.

A read is a memory read. One thread does all writes: it puts all queued writes into one transaction, syncs it to disk,
and only then answers. Several processes may use one directory: LMDB lets them write in turn, and a write takes its
revision from a counter in the same transaction. Never use a store across a fork.

The key is the user id itself: LMDB allows keys of 511 bytes, ids have at most `ID_MAX_BYTES`. A hash of the id could
belong to two users.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import lmdb

from server.adapters.bulk_load import BootstrapLog, Users, load
from server.adapters.history_rows import (
    Kept,
    Retention,
    loaded_row,
    read_row,
    recorded_row,
    swept_row,
)
from server.adapters.lmdb_copy import ERASED_SINCE, StoreLock, open_cleaned
from server.adapters.lmdb_file import MAP_SIZE_BYTES, Transaction
from server.adapters.lmdb_writer import LmdbWriter
from server.adapters.ports import LoadProgress, Recorded
from server.core.erasure import erasure_mark
from server.core.errors import StoreUnavailable
from server.core.histories import Histories
from server.core.history import ID_MAX_BYTES, Event, History, event_count_of

log = logging.getLogger(__name__)

READ_IN_THREAD_FROM = 16
"""Fewer histories than this are read without a thread, which is quicker."""

SWEEP_ROWS, SWEEP_SECONDS, SWEEP_PAUSE_SECONDS = 1000, 1.0, 600.0
"""The sweep for events beyond the retention looks at so many rows a second, and rests after the last row."""

_EVENT_BYTES = 400
"""Memory of an event that waits, beside its texts."""

Clock = Callable[[], float]
"""Seconds since the epoch."""


class LmdbStore:
    """A `HistoryStore`. Methods are called from one event loop."""

    answers_at_once = True

    def __init__(
        self,
        environment: lmdb.Environment,
        lock: StoreLock,
        path: Path,
        history_limit: int,
        clock: Clock = time.time,
        retention_days: int | None = None,
    ) -> None:
        """Use `open`."""
        self._environment = environment
        self._lock = lock
        self._path = path
        self._limit = history_limit
        self._clock = clock
        self._retention = Retention(retention_days, clock)
        self._swept_to = b""
        self._histories = environment.open_db(b"histories")
        self._erased = environment.open_db(b"erased")
        self._meta = environment.open_db(b"meta")
        with environment.begin(self._meta) as transaction:
            self._erasure_key = transaction.get(b"erasure_key", b"")
        self._closed = False
        self._readers = ThreadPoolExecutor(1, "history-reader")
        self.writer = LmdbWriter(environment, self._explain, self._sweep)

    @classmethod
    def open(
        cls,
        path: Path,
        history_limit: int,
        map_size_bytes: int = MAP_SIZE_BYTES,
        clock: Clock = time.time,
        retention_days: int | None = None,
    ) -> "LmdbStore":
        """Open or create the store in directory `path`; it keeps the newest `history_limit` events of each user.

        Events of more than `retention_days` ago are not read; they are deleted by and by.

        Raises `SetupError` when the directory cannot be used.
        """
        environment, lock = open_cleaned(path, map_size_bytes)
        return cls(environment, lock, path, history_limit, clock, retention_days)

    async def get(self, user_id: str) -> History:
        """See `HistoryStore.get`. A damaged history raises `StoreUnavailable`."""
        key = _key(user_id)
        self._check_open()
        try:  # not by `_translate_errors`, which costs as much as the read
            with self._environment.begin(self._histories) as transaction:
                row = transaction.get(key)
        except lmdb.Error as error:
            raise self._explain(error) from error
        return self._retention.view(read_row(row))

    async def get_many(self, user_ids: Sequence[str]) -> Histories:
        """See `HistoryStore.get_many`. A damaged history is logged and returned as None."""
        self._check_open()
        keys = [_key(user_id) for user_id in user_ids]
        with self._translate_errors():
            if len(keys) < READ_IN_THREAD_FROM:
                return self._read(keys)
            return await asyncio.get_running_loop().run_in_executor(self._readers, self._read, keys)

    async def record(self, user_id: str, events: Sequence[Event]) -> Recorded:
        """See `HistoryStore.record`."""
        key = _key(user_id)
        self._check_open()
        if not events:
            return Recorded()

        def add(transaction: Transaction, revision: int) -> Recorded:
            row = transaction.get(key, db=self._histories)
            new_row, recorded = recorded_row(row, events, self._kept(transaction, user_id), revision)
            if new_row is not None:
                transaction.put(key, new_row, db=self._histories)
            return recorded

        texts = sum(len(event.item_id) + len(event.action) + len(event.event_id) for event in events)
        return await self.writer.write(add, texts + _EVENT_BYTES * len(events))

    async def erase(self, user_id: str) -> int:
        """See `HistoryStore.erase`."""
        key = _key(user_id)
        self._check_open()

        def remove(transaction: Transaction, _: int) -> int:
            row = transaction.pop(key, db=self._histories)
            transaction.put(ERASED_SINCE, b"", db=self._meta)
            erased_ms = int(self._clock() * 1000)
            transaction.put(erasure_mark(self._erasure_key, user_id), erased_ms.to_bytes(8, "big"), db=self._erased)
            return 0 if row is None else event_count_of(row)

        return await self.writer.write(remove, len(key))

    async def erasure_mark(self, user_id: str) -> bytes:
        """See `HistoryStore.erasure_mark`."""
        return erasure_mark(self._erasure_key, user_id)

    async def bulk_load(self, source: Path, on_progress: LoadProgress) -> int:
        """See `HistoryStore.bulk_load`. Raises `SetupError` when `source` cannot be read."""
        event_log = await asyncio.to_thread(BootstrapLog.open, source, self._limit)
        self._check_open()
        mark = f"loaded:{event_log.mark}".encode()
        with self._translate_errors(), self._environment.begin(self._meta) as transaction:
            if transaction.get(mark) is not None:
                return 0
        loaded = await load(event_log, self._clock(), self._load_users, on_progress)
        self._check_open()
        await self.writer.write(lambda transaction, _: transaction.put(mark, b"", db=self._meta), len(mark))
        return loaded

    async def close(self) -> None:
        """Finish the queued writes, then close. Later calls raise `StoreUnavailable`."""
        if not self._closed:
            self._closed = True
            await self.writer.close()
            self._readers.shutdown()
            self._environment.close()
            self._lock.close()

    async def _load_users(self, users: Users) -> None:
        def add(transaction: Transaction, revision: int) -> None:
            for user_id, added in users:
                key = user_id.encode()
                row = transaction.get(key, db=self._histories)
                new_row = loaded_row(row, added, self._kept(transaction, user_id), revision)
                if new_row is not None:
                    transaction.put(key, new_row, db=self._histories)

        self._check_open()
        await self.writer.write(add, 0, bounded=False)

    def _kept(self, transaction: Transaction, user_id: str) -> Kept:
        erased = transaction.get(erasure_mark(self._erasure_key, user_id), db=self._erased)
        return Kept(self._limit, self._retention.oldest_ms, None if erased is None else int.from_bytes(erased, "big"))

    def _sweep(self, writer: LmdbWriter) -> float:
        """Delete events beyond the retention from the next rows; returns the seconds until the next time."""
        oldest_ms = self._retention.oldest_ms
        if oldest_ms is None:
            return SWEEP_PAUSE_SECONDS
        keys: list[bytes] = []
        with self._environment.begin(self._histories) as transaction:
            cursor = transaction.cursor()
            more = cursor.set_range(self._swept_to) if self._swept_to else cursor.first()
            for _ in range(SWEEP_ROWS):
                if not more:
                    break
                if swept_row(cursor.value(), oldest_ms, 0) != cursor.value():
                    keys.append(cursor.key())
                more = cursor.next()
            self._swept_to = cursor.key() if more else b""
        if keys:
            writer.write_now(partial(self._delete_old, keys, oldest_ms))
        return SWEEP_SECONDS if self._swept_to else SWEEP_PAUSE_SECONDS

    def _delete_old(self, keys: Sequence[bytes], oldest_ms: int, transaction: Transaction, revision: int) -> None:
        for key in keys:
            row = transaction.get(key, db=self._histories)
            new_row = None if row is None else swept_row(row, oldest_ms, revision)
            if new_row is None:
                transaction.delete(key, db=self._histories)
            elif new_row != row:
                transaction.put(key, new_row, db=self._histories)

    def _read(self, keys: Sequence[bytes]) -> Histories:
        with self._environment.begin(self._histories) as transaction:
            rows = [transaction.get(key) for key in keys]
        return self._retention.views(Histories.read(rows))

    def _check_open(self) -> None:
        if self._closed:
            raise StoreUnavailable(f"the history store in {self._path} is closed")

    @contextlib.contextmanager
    def _translate_errors(self) -> Iterator[None]:
        """Turn errors of LMDB into `StoreUnavailable`."""
        try:
            yield
        except lmdb.Error as error:
            raise self._explain(error) from error

    def _explain(self, error: lmdb.Error) -> StoreUnavailable:
        if isinstance(error, lmdb.MapFullError):
            size = self._environment.info()["map_size"]
            failure = f"is full at {size:,} bytes; open it with a larger map size"
        else:
            failure = f"does not work: {error}; check the disk's health and free space"
        unavailable = StoreUnavailable(f"the history store in {self._path} {failure}")
        unavailable.__cause__ = error
        return unavailable


def _key(user_id: str) -> bytes:
    key = user_id.encode()
    if not 1 <= len(key) <= ID_MAX_BYTES:
        raise ValueError(f"a user id has 1 to {ID_MAX_BYTES} bytes, not {len(key)}")
    return key
