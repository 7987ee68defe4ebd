"""Micro-batches: unary calls that arrive together share one feature call and one encoder call."""

import asyncio
from dataclasses import dataclass, field
from functools import partial
from time import monotonic
from typing import Any, NamedTuple

from server import tracing
from server.core.errors import EncoderUnavailable, Overloaded
from server.core.history import History
from server.core.release import Release
from server.serving.answer import Embedded
from server.serving.embedding import Embedder


@dataclass(slots=True)
class _Pending:
    """Calls of one release that wait for the next micro-batch; `deadlines` are in monotonic seconds."""

    release: Release
    histories: list[History] = field(default_factory=list)
    futures: list[asyncio.Future[Embedded]] = field(default_factory=list)
    deadlines: list[float] = field(default_factory=list)
    spans: list[Any] = field(default_factory=list)


class _Running(NamedTuple):
    """A batch in progress; `started` is its start by the event loop's clock, in seconds."""

    started: float
    task: asyncio.Task[None]


class MicroBatcher:
    """Joins concurrent unary calls of a release into one feature call and one encoder call.

    One batch runs at a time, and releases take turns; calls that arrive meanwhile form the next batch. Several smaller
    batches at once would cost nearly as much each, so that a server of two cores would answer fewer calls, and later.
    A slow batch delays other releases for at most `PATIENCE_SECONDS`.
    """

    PATIENCE_SECONDS = 0.05

    def __init__(self, embedder: Embedder, max_batch: int, max_waiting: int) -> None:
        """`embedder` must not be shared with streams: a call would wait for its turn behind their chunks."""
        self._embedder = embedder
        self._max_batch = max_batch
        self._max_waiting = max_waiting
        self._pending: dict[int, _Pending] = {}
        self._pending_count = 0
        self._running: dict[int, _Running] = {}
        self._late_start: asyncio.TimerHandle | None = None

    @property
    def waiting_count(self) -> int:
        """Calls that wait for a batch."""
        return self._pending_count

    async def embed(self, release: Release, history: History, timeout_seconds: float) -> Embedded:
        """Embed one history. Raises `EncoderUnavailable`, or `Overloaded` when `max_waiting` calls wait already."""
        if self._pending_count >= self._max_waiting:
            raise Overloaded(f"{self._max_waiting} calls are waiting already: try again later")
        pending = self._pending.setdefault(release.number, _Pending(release))
        future: asyncio.Future[Embedded] = asyncio.get_running_loop().create_future()
        pending.histories.append(history)
        pending.futures.append(future)
        pending.deadlines.append(monotonic() + timeout_seconds)
        pending.spans.append(tracing.current())
        self._pending_count += 1
        asyncio.get_running_loop().call_soon(self._start)
        try:
            return await asyncio.wait_for(future, timeout_seconds)
        except TimeoutError as error:
            raise EncoderUnavailable("the encoder did not answer in time") from error

    def _start(self) -> None:
        """Start the batch of the release that has waited longest, unless another batch has just started."""
        loop = asyncio.get_running_loop()
        number = next((number for number in self._pending if number not in self._running), None)
        if number is None:
            return
        now = loop.time()
        if any(now - running.started < self.PATIENCE_SECONDS for running in self._running.values()):
            self._late_start = self._late_start or loop.call_later(self.PATIENCE_SECONDS, self._start_late)
            return
        task = loop.create_task(self._run(self._take_batch(number)))
        self._running[number] = _Running(now, task)
        task.add_done_callback(partial(self._on_batch_end, number))

    def _start_late(self) -> None:
        self._late_start = None
        self._start()

    def _on_batch_end(self, number: int, _: asyncio.Task[None]) -> None:
        del self._running[number]
        self._start()

    def _take_batch(self, number: int) -> _Pending:
        pending = self._pending.pop(number)
        size = self._max_batch
        rest = _Pending(
            pending.release,
            pending.histories[size:],
            pending.futures[size:],
            pending.deadlines[size:],
            pending.spans[size:],
        )
        if rest.futures:
            self._pending[number] = rest
        batch = _Pending(
            pending.release,
            pending.histories[:size],
            pending.futures[:size],
            pending.deadlines[:size],
            pending.spans[:size],
        )
        self._pending_count -= len(batch.futures)
        return batch

    async def _run(self, batch: _Pending) -> None:
        remaining = max(batch.deadlines) - monotonic()
        try:
            with tracing.shared_span("batch", batch.spans, calls=len(batch.futures), release=batch.release.number):
                async with asyncio.timeout(remaining):
                    results = await self._embedder.embed(batch.release, batch.histories, remaining)
        except Exception as error:
            for future in batch.futures:
                if not future.done():
                    future.set_exception(error)
            return
        for future, result in zip(batch.futures, results, strict=True):
            if not future.done():
                future.set_result(result)
