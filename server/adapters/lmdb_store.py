"""History store in a directory on this machine: LMDB, one packed row a user.

Reads are memory reads. Writes go through one thread that puts all that wait into one transaction, syncs it to disk and
only then answers. Several processes may use one directory: LMDB lets them write in turn, and the revision is drawn from
a counter in the same transaction as the write that uses it. Never use a store across a fork.

The user id itself is the key: LMDB takes keys of up to 511 bytes and ids have at most `ID_MAX_BYTES`, so there is no
hash that two users could share and nothing to compare on reading.
"""

import asyncio
import contextlib
import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, TypeVar

import lmdb

from server.adapters.bulk_load import BootstrapLog, Users, load
from server.adapters.history_rows import erasure_mark, loaded_row, read_row, read_row_or_none
from server.adapters.ports import LoadProgress
from server.core.errors import SetupError, StoreUnavailable
from server.core.history import ID_MAX_BYTES, ROW_VERSION, Event, History, event_count_of, merge

log = logging.getLogger(__name__)
T = TypeVar("T")

MAP_SIZE_BYTES = 1 << 40
"""Address space, not disk: the file grows with what is stored, up to this."""

GROUP_MAX = 1024
"""Most writes in one transaction."""

READ_IN_THREAD_FROM = 16
"""Fewer histories than this are read quicker than a thread is woken."""

_Operation = Callable[["_Transaction", int], T]
"""Reads and writes within a transaction, given the revision for what it writes."""

if TYPE_CHECKING:
    _Transaction = lmdb.Transaction[bytes]


@dataclass(frozen=True, slots=True)
class _WriteJob:
    operation: _Operation[object]
    answer: asyncio.Future[object]


class LmdbStore:
    """A `HistoryStore`. Methods are called from one event loop."""

    def __init__(self, environment: lmdb.Environment, path: Path, history_limit: int) -> None:
        """Use `open`."""
        self._environment = environment
        self._path = path
        self._limit = history_limit
        self._histories = environment.open_db(b"histories")
        self._erased = environment.open_db(b"erased")
        self._meta = environment.open_db(b"meta")
        self._jobs: SimpleQueue[_WriteJob | None] = SimpleQueue()
        self._closed = False
        self._readers = ThreadPoolExecutor(1, "history-reader")
        self._writer = threading.Thread(target=self._write_forever, name="history-writer", daemon=True)
        self._writer.start()

    @classmethod
    def open(cls, path: Path, history_limit: int, map_size_bytes: int = MAP_SIZE_BYTES) -> "LmdbStore":
        """Open or create the store in directory `path`, keeping `history_limit` newest events a user.

        Raises `SetupError` when the directory cannot be used.
        """
        try:
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            environment = lmdb.open(str(path), map_size=map_size_bytes, mode=0o600, max_dbs=3, max_spare_txns=4)
            environment.reader_check()
            _check_format(environment, path)
            return cls(environment, path, history_limit)
        except (OSError, lmdb.Error, MemoryError) as error:
            raise SetupError(
                f"the history store in {path} cannot be opened: {error}; give it a directory that can be written"
            ) from error

    async def get(self, user_id: str) -> History:
        """See `HistoryStore.get`. A damaged history raises `StoreUnavailable`."""
        key = _key(user_id)
        with self._reporting(), self._environment.begin(self._histories) as transaction:
            row = transaction.get(key)
        return read_row(row)

    async def get_many(self, user_ids: Sequence[str]) -> list[History | None]:
        """See `HistoryStore.get_many`. A damaged history is logged and comes as None: others get their answers."""
        self._check_open()
        keys = [_key(user_id) for user_id in user_ids]
        with self._reporting():
            if len(keys) < READ_IN_THREAD_FROM:
                return self._read(keys)
            return await asyncio.get_running_loop().run_in_executor(self._readers, self._read, keys)

    async def record(self, user_id: str, events: Sequence[Event]) -> tuple[int, int]:
        """See `HistoryStore.record`."""
        key = _key(user_id)
        if not events:
            return 0, 0

        def add(transaction: "_Transaction", revision: int) -> tuple[int, int]:
            row = transaction.get(key, db=self._histories)
            history = read_row(row)
            merged, duplicates = merge(history, events, self._limit, revision)
            if merged is not history:
                transaction.put(key, merged.row, db=self._histories)
            return len(events) - duplicates, duplicates

        return await self._write(add)

    async def erase(self, user_id: str) -> int:
        """See `HistoryStore.erase`. Bulk loads leave the user out from now on."""
        key, mark = _key(user_id), erasure_mark(user_id)

        def remove(transaction: "_Transaction", _: int) -> int:
            row = transaction.pop(key, db=self._histories)
            transaction.put(mark, b"", db=self._erased)
            return 0 if row is None else event_count_of(row)

        return await self._write(remove)

    async def bulk_load(self, source: Path, on_progress: LoadProgress) -> int:
        """See `HistoryStore.bulk_load`. Raises `SetupError` when `source` cannot be read."""
        event_log = await asyncio.to_thread(BootstrapLog.open, source, self._limit)
        mark = f"loaded:{event_log.mark}".encode()
        with self._reporting(), self._environment.begin(self._meta) as transaction:
            if transaction.get(mark) is not None:
                return 0
        loaded = await load(event_log, self._load_users, on_progress)
        await self._write(lambda transaction, _: transaction.put(mark, b"", db=self._meta))
        return loaded

    async def close(self) -> None:
        """Finish the writes that wait, then close. Later calls raise `StoreUnavailable`."""
        if not self._closed:
            self._closed = True
            self._jobs.put(None)
            await asyncio.to_thread(self._writer.join)
            self._readers.shutdown()
            self._environment.close()

    async def _load_users(self, users: Users) -> None:
        def add(transaction: "_Transaction", revision: int) -> None:
            for user_id, added in users:
                if transaction.get(erasure_mark(user_id), db=self._erased) is not None:
                    continue
                key = user_id.encode()
                row = loaded_row(transaction.get(key, db=self._histories), added, self._limit, revision)
                if row is not None:
                    transaction.put(key, row, db=self._histories)

        await self._write(add)

    def _read(self, keys: Sequence[bytes]) -> list[History | None]:
        with self._environment.begin(self._histories) as transaction:
            rows = [transaction.get(key) for key in keys]
        return [read_row_or_none(row) for row in rows]

    def _check_open(self) -> None:
        if self._closed:
            raise StoreUnavailable(f"the history store in {self._path} is closed")

    async def _write(self, operation: _Operation[T]) -> T:
        self._check_open()
        answer: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._jobs.put(_WriteJob(operation, answer))  # type: ignore[arg-type]  # a future of T takes the operation's T
        return await answer

    def _write_forever(self) -> None:
        going_on = True
        while going_on:
            first = self._jobs.get()
            jobs = [] if first is None else [first, *self._waiting()]
            going_on = first is not None
            if jobs:
                self._commit(jobs)

    def _waiting(self) -> Iterator[_WriteJob]:
        """Jobs that wait, without waiting for more; the end of all jobs is put back."""
        for _ in range(GROUP_MAX - 1):
            try:
                job = self._jobs.get_nowait()
            except Empty:
                return
            if job is None:
                self._jobs.put(None)
                return
            yield job

    def _commit(self, jobs: Sequence[_WriteJob]) -> None:
        try:
            with self._reporting(), self._environment.begin(write=True) as transaction:
                revision = self._next_revision(transaction)
                results = [_attempt(job.operation, transaction, revision) for job in jobs]
        except Exception as error:
            if not isinstance(error, StoreUnavailable):
                log.exception("a write to the history store failed")
            results = [error] * len(jobs)
        with contextlib.suppress(RuntimeError):  # the loop has ended: nobody waits any more
            jobs[0].answer.get_loop().call_soon_threadsafe(_answer, jobs, results)

    def _next_revision(self, transaction: "_Transaction") -> int:
        revision = int.from_bytes(transaction.get(b"revision", b"", db=self._meta), "big") + 1
        transaction.put(b"revision", revision.to_bytes(8, "big"), db=self._meta)
        return revision

    @contextlib.contextmanager
    def _reporting(self) -> Iterator[None]:
        """Turn LMDB's errors into `StoreUnavailable`."""
        try:
            yield
        except lmdb.MapFullError as error:
            size = self._environment.info()["map_size"]
            raise StoreUnavailable(
                f"the history store in {self._path} is full at {size:,} bytes; open it with a larger map size"
            ) from error
        except lmdb.Error as error:
            raise StoreUnavailable(
                f"the history store in {self._path} does not work: {error}; check the disk's health and free space"
            ) from error


def _check_format(environment: lmdb.Environment, path: Path) -> None:
    """Note the version of the rows in a new store; refuse a store with another."""
    meta = environment.open_db(b"meta")
    with environment.begin(meta, write=True) as transaction:
        found = transaction.get(b"format")
        if found is None:
            transaction.put(b"format", str(ROW_VERSION).encode())
        elif found != str(ROW_VERSION).encode():
            environment.close()
            raise SetupError(
                f"the history store in {path} has format {found.decode()}, this version of Segrec reads {ROW_VERSION}; "
                "use the version that wrote it, or give another directory"
            )


def _key(user_id: str) -> bytes:
    key = user_id.encode()
    if not 1 <= len(key) <= ID_MAX_BYTES:
        raise ValueError(f"a user id has 1 to {ID_MAX_BYTES} bytes, not {len(key)}")
    return key


def _attempt(operation: _Operation[T], transaction: "_Transaction", revision: int) -> T | StoreUnavailable:
    """The operation's result. One that finds a damaged history has written nothing yet and fails alone."""
    try:
        return operation(transaction, revision)
    except StoreUnavailable as error:
        return error


def _answer(jobs: Sequence[_WriteJob], results: Sequence[object]) -> None:
    for job, result in zip(jobs, results, strict=True):
        if job.answer.done():  # the caller has gone
            continue
        if isinstance(result, BaseException):
            job.answer.set_exception(result)
        else:
            job.answer.set_result(result)
