"""The one thread that writes to an LMDB environment: all queued writes become one transaction, synced once."""

import asyncio
import contextlib
import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from time import monotonic
from typing import TypeVar

import lmdb

from server.adapters.history_rows import WriteHealth
from server.adapters.lmdb_file import Transaction
from server.core.errors import Overloaded, SegrecError, StoreUnavailable

log = logging.getLogger(__name__)
Result = TypeVar("Result")

TRANSACTION_MAX_WRITES = 1024
WAITING_MAX_WRITES = 16_384
WAITING_MAX_BYTES = 64 << 20
"""Beyond these, writes are refused: they would wait for longer than their callers do."""
RETRY_SECONDS = 0.5
READER_CHECK_SECONDS = 60.0
"""Time between two looks for readers that died: their snapshot would keep free pages from being used again."""

Operation = Callable[[Transaction, int], Result]
"""Reads and writes in a transaction; the second argument is the revision for the rows that it writes."""


@dataclass(frozen=True, slots=True)
class _Job:
    operation: Operation[object]
    size_bytes: int
    answer: asyncio.Future[object]


class LmdbWriter:
    """Carries out the writes of one environment. Methods are called from one event loop."""

    def __init__(
        self,
        environment: lmdb.Environment,
        explain: Callable[[lmdb.Error], StoreUnavailable],
        tick: Callable[["LmdbWriter"], float],
    ) -> None:
        """`explain` turns an error of LMDB into ours.

        `tick` is called with the writer, in its thread, between transactions; it returns the seconds until its next.
        """
        self._environment = environment
        self._meta = environment.open_db(b"meta")
        self._explain = explain
        self._tick = tick
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._waiting_writes = self._waiting_bytes = 0
        self._health = WriteHealth()
        self.on_batch: Callable[[int], None] = lambda _: None
        """Called, in the writer's thread, with the number of writes of each transaction."""
        self._thread = threading.Thread(target=self._work, name="history-writer", daemon=True)
        self._thread.start()

    @property
    def waiting_count(self) -> int:
        """Writes that wait, those in progress included."""
        return self._waiting_writes

    async def write(self, operation: Operation[Result], size_bytes: int, *, bounded: bool = True) -> Result:
        """Carry out `operation` durably, in its place in the queue; `size_bytes` is roughly what it holds in memory.

        Raises `StoreUnavailable` when it fails, and `Overloaded` when too much waits and it is `bounded`. A cancelled
        write that has not begun is dropped.
        """
        if bounded and (self._waiting_writes >= WAITING_MAX_WRITES or self._waiting_bytes >= WAITING_MAX_BYTES):
            raise Overloaded(
                f"{self._waiting_writes:,} writes wait for the history store: try again, or send fewer at a time",
                retry_seconds=RETRY_SECONDS,
            )
        answer: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._waiting_writes += 1
        self._waiting_bytes += size_bytes
        self._jobs.put(_Job(operation, size_bytes, answer))  # type: ignore[arg-type]  # the operation's own result
        return await answer

    def write_now(self, operation: Operation[object]) -> None:
        """Carry out `operation` durably, in a transaction of its own. For `tick`, which runs in the writer's thread."""
        with self._environment.begin(write=True) as transaction:
            operation(transaction, self._next_revision(transaction))

    async def close(self) -> None:
        """Finish the queued writes and end the thread."""
        self._jobs.put(None)
        await asyncio.to_thread(self._thread.join)

    def _work(self) -> None:
        reader_check = monotonic() + READER_CHECK_SECONDS
        next_tick = monotonic()
        is_open = True
        while is_open:
            now = monotonic()
            if now >= reader_check:
                reader_check = now + READER_CHECK_SECONDS
                self._guarded(self._environment.reader_check)
            if now >= next_tick:
                next_tick = now + self._next_tick()
            try:
                first = self._jobs.get(timeout=max(0.0, min(reader_check, next_tick) - monotonic()))
            except Empty:
                continue
            if first is None:
                is_open = False
            else:
                self._commit([first, *self._queued_jobs()])

    def _next_tick(self) -> float:
        seconds = self._guarded(lambda: self._tick(self))
        return READER_CHECK_SECONDS if seconds is None else seconds

    def _guarded(self, step: Callable[[], Result]) -> Result | None:
        """The result of a step of housekeeping; its failure ends neither the thread nor the writes."""
        try:
            return step()
        except Exception:
            log.exception("housekeeping of the history store failed")
            return None

    def _queued_jobs(self) -> Iterator[_Job]:
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

    def _commit(self, jobs: Sequence[_Job]) -> None:
        wanted = [job for job in jobs if not job.answer.done()]  # the others' callers have gone
        results: list[object]
        try:
            with self._environment.begin(write=True) as transaction:
                revision = self._next_revision(transaction)
                results = [_attempt(job.operation, transaction, revision) for job in wanted]
            self._health.report(None)
            self.on_batch(len(wanted))
        except Exception as error:
            failure = self._explain(error) if isinstance(error, lmdb.Error) else _unexpected(error)
            self._health.report(failure)
            results = [failure] * len(wanted)
        with contextlib.suppress(RuntimeError):  # the event loop has ended
            jobs[0].answer.get_loop().call_soon_threadsafe(self._answer, jobs, wanted, results)

    def _next_revision(self, transaction: Transaction) -> int:
        revision = int.from_bytes(transaction.get(b"revision", b"", db=self._meta), "big") + 1
        transaction.put(b"revision", revision.to_bytes(8, "big"), db=self._meta)
        return revision

    def _answer(self, jobs: Sequence[_Job], wanted: Sequence[_Job], results: Sequence[object]) -> None:
        self._waiting_writes -= len(jobs)
        self._waiting_bytes -= sum(job.size_bytes for job in jobs)
        for job, result in zip(wanted, results, strict=True):
            if job.answer.done():  # the caller was cancelled meanwhile
                continue
            if isinstance(result, BaseException):
                job.answer.set_exception(result)
            else:
                job.answer.set_result(result)


def _attempt(operation: Operation[Result], transaction: Transaction, revision: int) -> Result | SegrecError:
    """The result of an operation, or its error, which fails only this operation: operations read before they write.

    Raises `lmdb.Error`, which fails the transaction.
    """
    try:
        return operation(transaction, revision)
    except lmdb.Error:
        raise
    except SegrecError as error:
        return error
    except Exception as error:
        log.exception("a write to the history store failed")
        return _unexpected(error)


def _unexpected(error: Exception) -> StoreUnavailable:
    failure = StoreUnavailable("the history store could not carry out a write; its log says why")
    failure.__cause__ = error
    return failure
