"""Waiting for something to become true, with a deadline. The only place in the tests that waits by the clock."""

import asyncio
import contextlib
import inspect
import threading
import time
from collections.abc import Awaitable, Callable

POLL_SECONDS = 0.01


def wait_until(predicate: Callable[[], object], timeout: float = 20.0) -> None:
    """Return once `predicate` is true; fails the test after `timeout` seconds."""
    deadline, pause = time.monotonic() + timeout, threading.Event()
    while not predicate():
        assert time.monotonic() < deadline, f"not true within {timeout} s: {inspect.getsource(predicate).strip()}"
        pause.wait(POLL_SECONDS)


async def wait_until_async(predicate: Callable[[], Awaitable[object]], timeout: float = 20.0) -> None:
    """Return once the awaited `predicate` is true; fails the test after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while not await predicate():
        assert time.monotonic() < deadline, f"not true within {timeout} s: {inspect.getsource(predicate).strip()}"
        await pause(POLL_SECONDS)


async def pause(seconds: float) -> None:
    """Let the event loop go on for `seconds`."""
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(asyncio.Event().wait(), seconds)
