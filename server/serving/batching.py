"""Micro-batches: unary calls that arrive together share one feature call and one encoder call."""

import asyncio
from dataclasses import dataclass, field
from functools import partial
from time import monotonic
from typing import NamedTuple

from server.core.errors import EncoderUnavailable, Overloaded
from server.core.history import History
from server.core.release import Release
from server.serving.answer import Embedded
from server.serving.embedding import Embedder


@dataclass(slots=True)
class _Waiting:
    """Calls of one release that wait for the next micro-batch."""

    release: Release
    histories: list[History] = field(default_factory=list)
    futures: list[asyncio.Future[Embedded]] = field(default_factory=list)
    deadlines: list[float] = field(default_factory=list)


class _Running(NamedTuple):
    """A batch under way, and since when by the event loop's clock."""

    since: float
    task: asyncio.Task[None]


class MicroBatcher:
    """Joins concurrent single calls into one feature call and one encoder call for each release.

    Calls that arrive together start together; those that arrive while a batch is under way wait for it, and releases
    take turns. More batches at once would be smaller and cost nearly as much each, so that two cores answered fewer
    calls, and later. A batch that is slow holds up other releases for `PATIENCE_SECONDS` at most.
    """

    PATIENCE_SECONDS = 0.05

    def __init__(self, embedder: Embedder, max_batch: int, max_waiting: int) -> None:
        """`embedder` should serve nobody else, so that no call waits for its turn behind the chunks of a stream."""
        self._embedder = embedder
        self._max_batch = max_batch
        self._max_waiting = max_waiting
        self._waiting: dict[int, _Waiting] = {}
        self._waiting_count = 0
        self._running: dict[int, _Running] = {}
        self._alarm: asyncio.TimerHandle | None = None

    async def embed(self, release: Release, history: History, timeout_seconds: float) -> Embedded:
        """Embed one history. Raises `EncoderUnavailable`, and `Overloaded` when too many calls wait already."""
        if self._waiting_count >= self._max_waiting:
            raise Overloaded(f"{self._max_waiting} calls are waiting already: try again later")
        waiting = self._waiting.setdefault(release.number, _Waiting(release))
        future: asyncio.Future[Embedded] = asyncio.get_running_loop().create_future()
        waiting.histories.append(history)
        waiting.futures.append(future)
        waiting.deadlines.append(monotonic() + timeout_seconds)
        self._waiting_count += 1
        asyncio.get_running_loop().call_soon(self._start)
        try:
            return await asyncio.wait_for(future, timeout_seconds)
        except TimeoutError as error:
            raise EncoderUnavailable("the encoder did not answer in time") from error

    def _start(self) -> None:
        """Begin the batch of the release that has waited longest, unless another has just begun."""
        loop = asyncio.get_running_loop()
        number = next((number for number in self._waiting if number not in self._running), None)
        if number is None:
            return
        now = loop.time()
        if any(now - running.since < self.PATIENCE_SECONDS for running in self._running.values()):
            self._alarm = self._alarm or loop.call_later(self.PATIENCE_SECONDS, self._start_late)
            return
        task = loop.create_task(self._run(self._take(number)))
        self._running[number] = _Running(now, task)
        task.add_done_callback(partial(self._ended, number))

    def _start_late(self) -> None:
        self._alarm = None
        self._start()

    def _ended(self, number: int, _: asyncio.Task[None]) -> None:
        del self._running[number]
        self._start()

    def _take(self, number: int) -> _Waiting:
        waiting = self._waiting.pop(number)
        size = self._max_batch
        rest = _Waiting(waiting.release, waiting.histories[size:], waiting.futures[size:], waiting.deadlines[size:])
        if rest.futures:
            self._waiting[number] = rest
        batch = _Waiting(waiting.release, waiting.histories[:size], waiting.futures[:size], waiting.deadlines[:size])
        self._waiting_count -= len(batch.futures)
        return batch

    async def _run(self, batch: _Waiting) -> None:
        remaining = max(batch.deadlines) - monotonic()
        try:
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
