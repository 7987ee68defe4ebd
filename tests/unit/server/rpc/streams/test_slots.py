"""Chunks of a stream: order, number in progress, and cleanup when the caller stops early."""

import asyncio
import gc
import weakref
from collections.abc import AsyncIterator
from contextlib import aclosing

import pytest

from server.core.errors import ShuttingDown
from server.rpc.streams.slots import CHUNKS_IN_FLIGHT, answered_in_order, until_stopped
from tests.support.waiting import pause


class Answer:
    """An answer that can have weak references."""

    def __init__(self, number: int) -> None:
        self.number = number


class Sender:
    """Endless requests, and an answer to each; counts the started answers."""

    def __init__(self) -> None:
        self.started = 0
        self.made: list[weakref.ref[Answer]] = []
        self.gate = asyncio.Event()

    async def requests(self) -> AsyncIterator[int]:
        number = 0
        while True:
            yield number
            number += 1

    async def answer(self, number: int) -> Answer:
        self.started += 1
        await self.gate.wait()
        answer = Answer(number)
        self.made.append(weakref.ref(answer))
        return answer

    def alive(self) -> int:
        return sum(made() is not None for made in self.made)


async def settle() -> None:
    """Let every task run until it waits for something outside the test."""
    for _ in range(50):
        await pause(0)


async def ended(task: asyncio.Future[None]) -> None:
    """Return when the task has ended by itself. A deadline would cancel the task and hide a task that never ends."""
    done, _ = await asyncio.wait({task}, timeout=5)
    assert done == {task}


@pytest.mark.parametrize("taken", [0, 1, 5])
async def test_a_stream_closed_with_answers_ready_leaves_no_task_and_no_answer(taken: int) -> None:
    sender = Sender()
    sender.gate.set()
    before = asyncio.all_tasks()
    answers = answered_in_order(sender.requests(), sender.answer)
    for number in range(taken):
        assert (await anext(answers)).number == number
    await settle()
    await ended(asyncio.ensure_future(answers.aclose()))
    assert sender.started == (taken + CHUNKS_IN_FLIGHT - 1 if taken else 0)
    del answers
    await settle()  # the event loop closes the requests and drops its last references
    gc.collect()
    assert asyncio.all_tasks() == before
    assert (len(sender.made), sender.alive()) == (sender.started, 0)


async def test_a_stream_cancelled_with_answers_in_progress_leaves_no_task() -> None:
    sender = Sender()
    before = asyncio.all_tasks()

    async def take() -> None:
        async with aclosing(answered_in_order(sender.requests(), sender.answer)) as answers:
            await anext(answers)

    caller = asyncio.ensure_future(take())
    await settle()
    assert sender.started == CHUNKS_IN_FLIGHT
    caller.cancel()
    await ended(caller)
    assert caller.cancelled()
    assert asyncio.all_tasks() == before


async def test_a_failed_request_ends_the_stream_after_the_earlier_answers() -> None:
    async def requests() -> AsyncIterator[int]:
        for number in range(6):
            yield number
        raise ValueError("no message")

    sender = Sender()
    sender.gate.set()
    answers = answered_in_order(requests(), sender.answer)
    assert [(await anext(answers)).number for _ in range(6)] == list(range(6))
    with pytest.raises(ValueError, match="no message"):
        await anext(answers)


async def test_a_stopping_server_answers_what_it_has_accepted_and_then_says_so() -> None:
    sender, stopping = Sender(), asyncio.Event()
    before = asyncio.all_tasks()
    answers = answered_in_order(until_stopped(sender.requests(), stopping), sender.answer)
    first = asyncio.ensure_future(anext(answers))
    await settle()
    stopping.set()
    sender.gate.set()
    numbers = [(await first).number]

    async def take_all() -> None:
        async for answer in answers:
            numbers.append(answer.number)

    with pytest.raises(ShuttingDown):
        await take_all()
    assert numbers == list(range(sender.started))
    assert sender.started in (CHUNKS_IN_FLIGHT, CHUNKS_IN_FLIGHT + 1)
    await answers.aclose()
    await settle()
    assert asyncio.all_tasks() == before


async def test_an_idle_stream_ends_when_the_server_stops() -> None:
    async def silence() -> AsyncIterator[int]:
        await asyncio.Event().wait()
        yield 0

    stopping = asyncio.Event()
    following = asyncio.ensure_future(anext(until_stopped(silence(), stopping)))
    await settle()
    assert not following.done()
    stopping.set()
    with pytest.raises(ShuttingDown):
        await following


async def test_without_a_stop_all_requests_pass() -> None:
    async def requests() -> AsyncIterator[int]:
        for number in range(6):
            yield number

    assert [number async for number in until_stopped(requests(), asyncio.Event())] == list(range(6))
