"""Chunks of a bidirectional stream: read ahead, processed concurrently, answered in order."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from typing import TypeVar

from server.core.errors import ShuttingDown

Request = TypeVar("Request")
Response = TypeVar("Response")

CHUNKS_IN_FLIGHT = 4
"""Most chunks of one stream in progress, including the chunk whose answer is being sent."""


async def until_stopped(requests: AsyncIterator[Request], stopping: asyncio.Event) -> AsyncGenerator[Request, None]:
    """The requests, until `stopping` is set; then raises `ShuttingDown`."""
    stop = asyncio.ensure_future(stopping.wait())
    following: asyncio.Future[Request | None] = asyncio.ensure_future(_next(requests))
    try:
        while True:
            await asyncio.wait((following, stop), return_when=asyncio.FIRST_COMPLETED)
            if stopping.is_set():
                raise ShuttingDown("this server is stopping: go on with another one, or when it is back")
            request = following.result()
            if request is None:
                return
            yield request
            following = asyncio.ensure_future(_next(requests))
    finally:
        stop.cancel()
        following.cancel()
        await asyncio.gather(stop, following, return_exceptions=True)


async def _next(requests: AsyncIterator[Request]) -> Request | None:
    """The next request; None at the end."""
    return await anext(requests, None)


async def answered_in_order(
    requests: AsyncIterator[Request], answer: Callable[[Request], Awaitable[Response]]
) -> AsyncGenerator[Response, None]:
    """Yield `answer(request)` for each request in order, as soon as the answer and all earlier answers are ready.

    At most `CHUNKS_IN_FLIGHT` requests are read ahead of the consumer, so that a slow consumer slows the sender down.
    When `requests` fail, the failure follows the answers to the requests before it. When the consumer stops early, the
    answers in progress are cancelled.
    """
    queue: asyncio.Queue[asyncio.Task[Response] | None] = asyncio.Queue()
    free_slots = asyncio.Semaphore(CHUNKS_IN_FLIGHT)
    in_progress: set[asyncio.Task[Response]] = set()

    async def read() -> None:
        try:
            async for request in requests:
                await free_slots.acquire()
                task = asyncio.ensure_future(answer(request))
                in_progress.add(task)
                queue.put_nowait(task)
        finally:
            queue.put_nowait(None)  # end mark; does not wait, so that a cancelled reader can end

    reader = asyncio.ensure_future(read())
    try:
        while (task := await queue.get()) is not None:
            yield await task
            in_progress.discard(task)
            free_slots.release()
        await reader
    finally:
        for pending in (reader, *in_progress):
            pending.cancel()
        await asyncio.gather(reader, *in_progress, return_exceptions=True)
