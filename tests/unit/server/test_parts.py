"""Parts of a process that nobody waits for."""

import asyncio

import pytest

from server.parts import log_failure


async def test_a_part_that_ends_by_an_exception_is_said_and_a_cancelled_one_is_not(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def work() -> None:
        raise RuntimeError("no disk")

    broken, cancelled = asyncio.create_task(work()), asyncio.create_task(work())
    cancelled.cancel()
    for task in (broken, cancelled):
        task.add_done_callback(log_failure)
    await asyncio.gather(broken, cancelled, return_exceptions=True)
    [record] = caplog.records
    assert (record.levelname, record.message) == ("CRITICAL", "a part of the server has ended")
    assert record.exc_info is not None
