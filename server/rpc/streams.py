"""Chunks of a bidirectional stream: read ahead, worked on side by side, answered in order."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from typing import TypeVar

Request = TypeVar("Request")
Response = TypeVar("Response")

CHUNKS_IN_FLIGHT = 3
"""Chunks of one stream under way at once: one being prepared while another is encoded."""


async def answered_in_order(
    requests: AsyncIterator[Request], answer: Callable[[Request], Awaitable[Response]]
) -> AsyncIterator[Response]:
    """Yield `answer(request)` for each request, in order, `CHUNKS_IN_FLIGHT` at once, none later than it is ready.

    Reading waits while that many answers are not yet taken, so that a slow reader holds back the sender. What is
    under way is cancelled when the caller stops early.
    """
    queue: asyncio.Queue[asyncio.Task[Response] | None] = asyncio.Queue(CHUNKS_IN_FLIGHT - 1)
    under_way: set[asyncio.Task[Response]] = set()

    async def read() -> None:
        try:
            async for request in requests:
                task = asyncio.ensure_future(answer(request))
                under_way.add(task)
                await queue.put(task)
        finally:
            await queue.put(None)

    reader = asyncio.ensure_future(read())
    try:
        while (task := await queue.get()) is not None:
            yield await task
            under_way.discard(task)
        await reader
    finally:
        for pending in (reader, *under_way):
            pending.cancel()
        for pending in (reader, *under_way):
            with suppress(asyncio.CancelledError, Exception):
                await pending
