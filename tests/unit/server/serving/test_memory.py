"""The memory that all streams share: who waits, in which order, and that nothing is lost on the way."""

import asyncio

from server.serving.memory import FIRST_GUESS_BYTES, WORKING_COPIES, HistoryMemory, MemoryBudget
from tests.support.releases import group_history
from tests.support.waiting import pause


async def test_who_finds_no_room_waits_in_order() -> None:
    budget = MemoryBudget(100)
    order: list[str] = []
    go_on = {name: asyncio.Event() for name in "abcd"}

    async def hold(name: str, size: int) -> None:
        async with budget.hold(size):
            order.append(name)
            await go_on[name].wait()

    tasks = [asyncio.ensure_future(hold(*sizes)) for sizes in (("a", 60), ("b", 60), ("c", 10), ("d", 1000))]
    await pause(0)
    await pause(0)
    assert (order, budget.held_bytes) == (["a"], 60)  # c would fit, but b came first
    go_on["a"].set()
    await tasks[0]
    await pause(0)
    assert (order, budget.held_bytes) == (["a", "b", "c"], 70)
    go_on["b"].set()
    go_on["c"].set()
    await asyncio.gather(*tasks[1:3])
    await pause(0)
    assert (order[-1], budget.held_bytes) == ("d", 100)  # more than all there is: the whole
    go_on["d"].set()
    await tasks[3]
    assert budget.held_bytes == 0


async def test_cancelled_holders_and_waiters_give_everything_back() -> None:
    budget = MemoryBudget(100)

    async def hold(size: int) -> None:
        async with budget.hold(size):
            await asyncio.Event().wait()

    holder, waiter, admitted = (asyncio.ensure_future(hold(size)) for size in (80, 80, 15))
    await pause(0)
    waiter.cancel()
    holder.cancel()  # its room goes to the last one, which is cancelled in the same moment
    await pause(0)
    admitted.cancel()
    await asyncio.gather(holder, waiter, admitted, return_exceptions=True)
    assert budget.held_bytes == 0
    async with budget.hold(100):
        assert budget.held_bytes == 100


async def test_the_size_of_a_user_is_learned() -> None:
    memory = HistoryMemory(1 << 30)
    async with memory.hold(10):
        assert memory.held_bytes == 10 * FIRST_GUESS_BYTES
    history = group_history(1, 20)
    for _ in range(50):
        memory.add([history] * 8)
    async with memory.hold(10):
        assert abs(memory.held_bytes - 10 * WORKING_COPIES * len(history.row)) <= 10
