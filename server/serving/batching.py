"""Micro-batches: unary calls that arrive together share one feature call and one encoder call."""

import asyncio
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from time import monotonic
from typing import Any, NamedTuple

from server import tracing
from server.core.errors import EncoderUnavailable, Overloaded
from server.core.history import History
from server.core.release import Release
from server.serving.answer import Embedded
from server.serving.embedding import Embedder, UnaryLane


@dataclass(slots=True, eq=False)
class _Call:
    """A unary call that waits for its embedding until `end`, in monotonic seconds."""

    history: History
    future: asyncio.Future[Embedded]
    end: float
    span: Any
    is_waiting: bool = True
    """Whether the call is in no batch yet, and its caller is still there."""


class _Pending(NamedTuple):
    """Calls of one release that wait for the next micro-batch, oldest first."""

    release: Release
    calls: deque[_Call]


class _Running(NamedTuple):
    """A batch of `size` calls in progress; `started` is its start by the event loop's clock, in seconds."""

    started: float
    size: int
    task: asyncio.Task[bool]


class MicroBatcher:
    """Joins concurrent unary calls of a release into one feature call and one encoder call.

    One batch runs at a time, and releases take turns; calls that arrive meanwhile form the next batch. Several smaller
    batches at once would cost nearly as much each, so that a server of two cores would answer fewer calls, and later.
    A slow batch delays other releases for at most `PATIENCE_SECONDS`. A call that could not be answered in time is
    refused at once, so that those who wait are answered.
    """

    PATIENCE_SECONDS = 0.05
    TIMED_FROM_CALLS = 16
    """Smallest batch whose time is measured: in a smaller one a call takes longer than it would in a queue."""

    def __init__(self, embedder: Embedder, max_batch: int) -> None:
        """`embedder` must not be shared with streams: a call would wait for its turn behind their chunks."""
        self._embedder = embedder
        self.lane = UnaryLane()
        """Tells streams whether calls come."""
        self._max_batch = max_batch
        self._pending: dict[int, _Pending] = {}
        self._waiting_count = 0
        self._running: dict[int, _Running] = {}
        self._late_start: asyncio.TimerHandle | None = None
        self._unanswered: dict[_Call, None] = {}
        self._expiry: asyncio.TimerHandle | None = None
        self._expiry_end = 0.0
        self._last_end = 0.0
        self._call_seconds = 0.0

    @property
    def waiting_count(self) -> int:
        """Calls that wait for a batch."""
        return self._waiting_count

    async def embed(self, release: Release, history: History, timeout_seconds: float) -> Embedded:
        """Embed one history. Raises `EncoderUnavailable`, or `Overloaded` when others would take longer than that."""
        self._refuse_late(timeout_seconds)
        self.lane.note_call()
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Embedded] = loop.create_future()
        pending = self._pending.setdefault(release.number, _Pending(release, deque()))
        call = _Call(history, future, monotonic() + timeout_seconds, tracing.current())
        pending.calls.append(call)
        self._waiting_count += 1
        self._unanswered[call] = None
        self._expire_at(call.end)
        loop.call_soon(self._start)
        try:
            return await future
        finally:
            del self._unanswered[call]
            self._stop_waiting(call)

    def _expire_at(self, end: float) -> None:
        """Set the timer to `end` unless it ends earlier; one timer for all calls costs less than one for each."""
        if self._expiry is not None:
            if self._expiry_end <= end:
                return
            self._expiry.cancel()
        self._expiry_end = end
        self._expiry = asyncio.get_running_loop().call_later(max(0.0, end - monotonic()), self._expire)

    def _expire(self) -> None:
        """Fail the calls whose time is up, and set the timer to the next of the others."""
        self._expiry = None
        now = monotonic()
        unanswered = [call for call in self._unanswered if not call.future.done()]
        for call in unanswered:
            if call.end <= now:
                call.future.set_exception(EncoderUnavailable("the encoder did not answer in time"))
        later = [call.end for call in unanswered if call.end > now]
        if later:
            self._expire_at(min(later))

    def _stop_waiting(self, call: _Call) -> None:
        self._waiting_count -= call.is_waiting
        call.is_waiting = False

    def _refuse_late(self, seconds: float) -> None:
        """Raise `Overloaded` when the calls before a new one take longer than `seconds`, as far as is known."""
        if not self._waiting_count:
            return
        before = self._waiting_count + sum(running.size for running in self._running.values())
        wait = before * self._call_seconds
        if wait > seconds:
            raise Overloaded(
                f"{before} calls before this one take {wait:.1f} s, and the caller waits {max(seconds, 0):.1f} s: "
                "try again after the delay",
                retry_seconds=wait / 2,
            )

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
        release, calls = self._take_batch(number)
        if not calls:
            loop.call_soon(self._start)
            return
        task = loop.create_task(self._run(release, calls))
        self._running[number] = _Running(now, len(calls), task)
        task.add_done_callback(partial(self._on_batch_end, number))

    def _start_late(self) -> None:
        self._late_start = None
        self._start()

    def _on_batch_end(self, number: int, task: asyncio.Task[bool]) -> None:
        running = self._running.pop(number)
        now = asyncio.get_running_loop().time()
        if not task.cancelled() and task.result() and running.size >= min(self.TIMED_FROM_CALLS, self._max_batch):
            seconds = (now - max(running.started, self._last_end)) / running.size
            self._call_seconds += 0.3 * (seconds - self._call_seconds) if self._call_seconds else seconds
        self._last_end = now
        self._start()

    def _take_batch(self, number: int) -> tuple[Release, list[_Call]]:
        """The oldest waiting calls of a release, without those that were cancelled or whose time has run out."""
        release, waiting = self._pending[number]
        batch: list[_Call] = []
        while waiting and len(batch) < self._max_batch:
            call = waiting.popleft()
            if call.is_waiting and call.end > monotonic():
                batch.append(call)
            self._stop_waiting(call)
        if not waiting:
            del self._pending[number]
        return release, batch

    async def _run(self, release: Release, calls: Sequence[_Call]) -> bool:
        """Embed the calls' histories and answer the calls; returns whether the encoder answered."""
        remaining = max(call.end for call in calls) - monotonic()
        try:
            with tracing.shared_span("batch", [call.span for call in calls], calls=len(calls), release=release.number):
                async with asyncio.timeout(remaining):
                    results = await self._embedder.embed(release, [call.history for call in calls], remaining)
        except Exception as error:
            for call in calls:
                if not call.future.done():
                    call.future.set_exception(error)
            return False
        for call, result in zip(calls, results, strict=True):
            if not call.future.done():
                call.future.set_result(result)
        return True
