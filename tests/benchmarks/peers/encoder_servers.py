"""Servers of other projects that run the same ONNX file, each in a process of the peers' environment."""

import asyncio
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import numpy as np
import psutil

from server.core.features import Inputs
from tests.benchmarks.peers.environment import SERVERS, python_of
from tests.support.ports import free_port
from tests.support.waiting import wait_until_async

PEERS = ("litserve", "bentoml")


@asynccontextmanager
async def peer_server(name: str, model: Path) -> AsyncIterator[tuple[psutil.Process, Callable[[], Awaitable[object]]]]:
    """A peer that answers, and a function that asks it for one embedding."""
    port = free_port()
    command = [python_of(SERVERS), Path(__file__).with_name(f"{name}_server.py"), model, str(port)]
    process = await asyncio.create_subprocess_exec(*map(str, command), stdout=sys.stderr)
    inputs = histories()
    try:
        async with aiohttp.ClientSession(f"http://127.0.0.1:{port}") as session:

            async def ask() -> object:
                body = {key: array[0].tolist() for key, array in next(inputs).items()}
                async with session.post("/predict", json=body) as response:
                    response.raise_for_status()
                    return await response.json()

            async def answers() -> bool:
                try:
                    await ask()
                except aiohttp.ClientError:
                    return False
                return True

            await wait_until_async(answers, 60)
            yield psutil.Process(process.pid), ask
    finally:
        children = psutil.Process(process.pid).children(recursive=True)
        process.terminate()
        await process.wait()
        await asyncio.to_thread(end, children)


def end(children: Sequence[psutil.Process]) -> None:
    """End what a peer has started and has not ended itself."""
    _, alive = psutil.wait_procs(children, timeout=10)
    for one in alive:
        one.kill()


def histories() -> Iterator[Inputs]:
    """Encoder inputs of one history each, (1, L), lengths as of the users asked."""
    rng = np.random.default_rng(0)
    while True:
        length = int(np.clip(rng.geometric(1 / 20), 8, 200))
        yield {
            "item_index": rng.integers(1, 1000, (1, length), np.int32),
            "action_index": rng.integers(1, 4, (1, length), np.int32),
            "value": rng.normal(size=(1, length)).astype(np.float32),
            "gap_index": rng.integers(1, 20, (1, length), np.int32),
        }
