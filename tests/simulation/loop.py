"""An event loop whose clock moves only when nothing is left to do: waiting costs nothing, and a seed replays."""

import asyncio
import random
import secrets
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from contextlib import ExitStack, contextmanager
from types import FunctionType, ModuleType
from typing import Any
from unittest.mock import patch

LONGEST_THREAD_SECONDS = 0.02
"""Work that the product gives to a thread ends at a drawn time, at most this much later."""


class _NoSelector:
    """Stands for the operating system's events: there are none, and waiting for them moves the clock."""

    def __init__(self, loop: "SimulatedLoop") -> None:
        self._loop = loop

    def select(self, timeout: float | None) -> list[Any]:
        if timeout is None:
            raise RuntimeError("the simulation waits for something that nobody will do")
        self._loop.now += max(timeout, 0.0)
        return []

    def close(self) -> None:
        """Nothing to close."""


class SimulatedLoop(asyncio.BaseEventLoop):
    """An event loop on a simulated clock, `now`, in seconds. Threads are simulated too: their work is done in turn."""

    def __init__(self, rng: random.Random) -> None:
        super().__init__()
        self.now = 1_000.0
        self._rng = rng
        self._selector = _NoSelector(self)
        self._clock_resolution = 1e-9

    def time(self) -> float:
        return self.now

    def run_in_executor(  # type: ignore[override]
        self, executor: Executor | None, func: Callable[..., Any], *args: Any
    ) -> asyncio.Future[Any]:
        future: asyncio.Future[Any] = self.create_future()
        self.call_later(self._rng.uniform(0.0, LONGEST_THREAD_SECONDS), _run, future, func, args)
        return future

    def _process_events(self, event_list: list[Any]) -> None:
        """There are no events."""

    def _write_to_self(self) -> None:
        """Nobody waits in another thread."""


def _run(future: asyncio.Future[Any], function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    # A thread goes on when its caller has gone, as a real one does.
    try:
        result = function(*arguments)
    except BaseException as error:
        if not future.done():
            future.set_exception(error)
    else:
        if not future.done():
            future.set_result(result)


@contextmanager
def simulated_time(loop: SimulatedLoop, rng: random.Random) -> Iterator[None]:
    """Give the clock of the loop and the random numbers of a seed to all modules of the server until the block ends."""
    real = {time.monotonic: loop.time, secrets.randbelow: rng.randrange, secrets.token_hex: _token_hex(rng)}
    by_id = {id(function): replacement for function, replacement in real.items()}
    with ExitStack() as stack:
        stack.enter_context(patch.object(secrets, "randbelow", rng.randrange))
        stack.enter_context(patch.object(secrets, "token_hex", _token_hex(rng)))
        for name, module in list(sys.modules.items()):
            if not name.startswith("server."):
                continue
            for attribute, value in list(vars(module).items()):
                if id(value) in by_id:
                    stack.enter_context(patch.object(module, attribute, by_id[id(value)]))
            for function in _functions_of(module):
                if any(id(default) in by_id for default in function.__defaults__ or ()):
                    replaced = tuple(by_id.get(id(default), default) for default in function.__defaults__ or ())
                    stack.enter_context(patch.object(function, "__defaults__", replaced))
        yield


def _functions_of(module: ModuleType) -> list[FunctionType]:
    """The functions and methods that a module defines."""
    found: list[object] = []
    for value in vars(module).values():
        is_own = getattr(value, "__module__", None) == module.__name__
        found += [value, *(vars(value).values() if isinstance(value, type) else ())] if is_own else []
    return [value for value in found if isinstance(value, FunctionType)]


def _token_hex(rng: random.Random) -> Callable[[int], str]:
    return lambda count: rng.randbytes(count).hex()
