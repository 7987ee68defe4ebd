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
Result = TypeVar("Result")

MAP_SIZE_BYTES = 1 << 40
"""Largest size of the file. It takes address space, not disk space: the file grows with the data."""

TRANSACTION_MAX_WRITES = 1024

READ_IN_THREAD_FROM = 16
"""Fewer histories than this are read without a thread, which is quicker."""

_Operation = Callable[["_Transaction", int], Result]
"""Reads and writes in a transaction; the second argument is the revision for the rows that it writes."""

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
        """Open or create the store in directory `path`; it keeps the newest `history_limit` events of each user.

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
        with self._translate_errors(), self._environment.begin(self._histories) as transaction:
            row = transaction.get(key)
        return read_row(row)

    async def get_many(self, user_ids: Sequence[str]) -> list[History | None]:
        """See `HistoryStore.get_many`. A damaged history is logged and returned as None."""
        self._check_open()
        keys = [_key(user_id) for user_id in user_ids]
        with self._translate_errors():
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
        """See `HistoryStore.erase`. Later bulk loads leave the user out."""
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
        with self._translate_errors(), self._environment.begin(self._meta) as transaction:
            if transaction.get(mark) is not None:
                return 0
        loaded = await load(event_log, self._load_users, on_progress)
        await self._write(lambda transaction, _: transaction.put(mark, b"", db=self._meta))
        return loaded

    async def close(self) -> None:
        """Finish the queued writes, then close. Later calls raise `StoreUnavailable`."""
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

    async def _write(self, operation: _Operation[Result]) -> Result:
        self._check_open()
        answer: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._jobs.put(_WriteJob(operation, answer))  # type: ignore[arg-type]  # the future takes the operation's result
        return await answer

    def _write_forever(self) -> None:
        is_open = True
        while is_open:
            first = self._jobs.get()
            jobs = [] if first is None else [first, *self._queued_jobs()]
            is_open = first is not None
            if jobs:
                self._commit(jobs)

    def _queued_jobs(self) -> Iterator[_WriteJob]:
        """The queued jobs, without waiting for more. None, which ends the thread, is put back into the queue."""
        for _ in range(TRANSACTION_MAX_WRITES - 1):
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
            with self._translate_errors(), self._environment.begin(write=True) as transaction:
                revision = self._next_revision(transaction)
                results = [_attempt(job.operation, transaction, revision) for job in jobs]
        except Exception as error:
            if not isinstance(error, StoreUnavailable):
                log.exception("a write to the history store failed")
            results = [error] * len(jobs)
        with contextlib.suppress(RuntimeError):  # the event loop has ended
            jobs[0].answer.get_loop().call_soon_threadsafe(_answer, jobs, results)

    def _next_revision(self, transaction: "_Transaction") -> int:
        revision = int.from_bytes(transaction.get(b"revision", b"", db=self._meta), "big") + 1
        transaction.put(b"revision", revision.to_bytes(8, "big"), db=self._meta)
        return revision

    @contextlib.contextmanager
    def _translate_errors(self) -> Iterator[None]:
        """Turn errors of LMDB into `StoreUnavailable`."""
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
    """Write the row version into a new store. Raises `SetupError` for a store of another version."""
    meta = environment.open_db(b"meta")
    with environment.begin(meta, write=True) as transaction:
        stored = transaction.get(b"format")
        if stored is None:
            transaction.put(b"format", str(ROW_VERSION).encode())
        elif stored != str(ROW_VERSION).encode():
            environment.close()
            raise SetupError(
                f"the history store in {path} has format {stored.decode()}, this Segrec reads format {ROW_VERSION}; "
                "use the version of Segrec that wrote the store, or give another directory"
            )


def _key(user_id: str) -> bytes:
    key = user_id.encode()
    if not 1 <= len(key) <= ID_MAX_BYTES:
        raise ValueError(f"a user id has 1 to {ID_MAX_BYTES} bytes, not {len(key)}")
    return key


def _attempt(operation: _Operation[Result], transaction: "_Transaction", revision: int) -> Result | StoreUnavailable:
    """The result of an operation, or its error: a damaged history fails only this operation, before it writes."""
    try:
        return operation(transaction, revision)
    except StoreUnavailable as error:
        return error


def _answer(jobs: Sequence[_WriteJob], results: Sequence[object]) -> None:
    for job, result in zip(jobs, results, strict=True):
        if job.answer.done():  # the caller was cancelled
            continue
        if isinstance(result, BaseException):
            job.answer.set_exception(result)
        else:
            job.answer.set_result(result)
