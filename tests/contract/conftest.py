"""The history stores, opened on data of their own."""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from server.adapters.lmdb_store import LmdbStore
from server.adapters.ports import HistoryStore
from server.adapters.valkey_store import ValkeyStore
from tests.support.memory_store import MemoryStore
from tests.support.redis_server import RedisServer
from tests.support.stored import LIMIT
from tests.support.ticking import Clock

Open = Callable[..., Awaitable[HistoryStore]]


@pytest.fixture
def now() -> Clock:
    """The clock of all stores of a test, in seconds since the epoch."""
    return Clock(0.0)


@pytest.fixture(scope="module")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path_factory.mktemp("redis"))
    server.start()
    yield server
    server.kill()


@pytest.fixture(params=["lmdb", "valkey", "memory"])
async def open_store(request: pytest.FixtureRequest, tmp_path: Path, now: Clock) -> AsyncIterator[Open]:
    """Opens stores with the history limit and the days of retention given; each on data of its own, empty."""
    opened: list[HistoryStore] = []
    valkey = request.getfixturevalue("redis_server") if request.param == "valkey" else None

    async def open_(limit: int, retention_days: int | None = None) -> HistoryStore:
        store: HistoryStore
        if valkey is not None:
            connected = await ValkeyStore.connect(valkey.url, limit, now, retention_days)
            await connected._client.flushall()
            store = connected
        elif request.param == "lmdb":
            store = LmdbStore.open(tmp_path / f"store-{len(opened)}", limit, clock=now, retention_days=retention_days)
        else:
            store = MemoryStore(limit, now, retention_days)
        opened.append(store)
        return store

    yield open_
    for store in opened:
        await store.close()


@pytest.fixture
async def store(open_store: Open) -> HistoryStore:
    return await open_store(LIMIT)
