"""Chunks of a bidirectional stream: read ahead, worked on side by side, answered in order."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from typing import TypeVar

Request = TypeVar("Request")
Response = TypeVar("Response")

CHUNKS_IN_FLIGHT = 4
"""Chunks of one stream under way at once, the one that the caller is being sent included."""


async def answered_in_order(
    requests: AsyncIterator[Request], answer: Callable[[Request], Awaitable[Response]]
) -> AsyncGenerator[Response, None]:
    """Yield `answer(request)` for each request, in order, `CHUNKS_IN_FLIGHT` at once, none later than it is ready.

    Reading waits while that many answers are not yet taken, so that a slow reader holds back the sender. What is
    under way is cancelled when the caller stops early.
    """
    queue: asyncio.Queue[asyncio.Task[Response] | None] = asyncio.Queue()
    room = asyncio.Semaphore(CHUNKS_IN_FLIGHT)
    under_way: set[asyncio.Task[Response]] = set()

    async def read() -> None:
        try:
            async for request in requests:
                await room.acquire()
                task = asyncio.ensure_future(answer(request))
                under_way.add(task)
                queue.put_nowait(task)
        finally:
            queue.put_nowait(None)  # the end; never waits, so that a reader that is cancelled ends

    reader = asyncio.ensure_future(read())
    try:
        while (task := await queue.get()) is not None:
            yield await task
            under_way.discard(task)
            room.release()
        await reader
    finally:
        for pending in (reader, *under_way):
            pending.cancel()
        await asyncio.gather(reader, *under_way, return_exceptions=True)
