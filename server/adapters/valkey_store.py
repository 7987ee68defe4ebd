"""History store in Valkey or Redis, which several servers share: one packed row a user.

A write reads the row, merges here, and replaces it by a script only if it still has the revision that was read.
Revisions are 63 random bits: unlike a counter's they are not repeated when a fail-over loses the last writes.

A write is as durable as the server makes it. For "acknowledged means stored" set `appendonly yes`,
`appendfsync always` and `maxmemory-policy noeviction`; with `everysec` a crash of its machine loses up to two
seconds of events. A fail-over loses what had not reached the replica.
"""

import asyncio
import contextlib
import logging
import secrets
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import cast
from weakref import WeakValueDictionary

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import ConstantBackoff
from redis.exceptions import AuthenticationError, RedisError

from server.adapters.bulk_load import BootstrapLog, Users, load
from server.adapters.history_rows import erasure_mark, loaded_row, read_row, read_row_or_none
from server.adapters.ports import LoadProgress
from server.core.errors import SetupError, StoreUnavailable
from server.core.history import Event, History, event_count_of, merge

log = logging.getLogger(__name__)

TIMEOUT_SECONDS = 1.0
TURN_SECONDS = 5.0
"""Longest wait for a connection that is not in use, in a burst of calls."""
CONNECTIONS_MAX = 32
READ_CHUNK = 256
LOAD_CHUNK = 250
"""Users written by one call of the script, which holds up the server meanwhile."""
ATTEMPTS_MAX = 100
"""Tries to replace a row that other servers keep changing."""

_ERASED = "segrec:erased"
_REVISION_BYTES = slice(8, 16)  # of the packed row; the script has the same place
_REPLACE = """
local done = {}
for i = 2, #KEYS do
  local revision, row, mark = ARGV[3 * i - 5], ARGV[3 * i - 4], ARGV[3 * i - 3]
  if redis.call('SISMEMBER', KEYS[1], mark) == 1 then
    done[i - 1] = 1
  elseif redis.call('GETRANGE', KEYS[i], 8, 15) == revision then
    redis.call('SET', KEYS[i], row)
    done[i - 1] = 1
  else
    done[i - 1] = 0
  end
end
return done
"""
_Swap = tuple[str, bytes | None, bytes, bytes]
"""A user id, the row that was read, the row to put in its place unless the user bears the erasure mark that follows."""


class ValkeyStore:
    """A `HistoryStore`. Methods are called from one event loop."""

    def __init__(self, client: "Redis", address: str, history_limit: int) -> None:
        """Use `connect`."""
        self._client = client
        self._address = address
        self._limit = history_limit
        self._replace = client.register_script(_REPLACE)
        self._closed = False
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    @classmethod
    async def connect(cls, url: str, history_limit: int) -> "ValkeyStore":
        """Connect to `redis://`, `rediss://` or `unix://` and look that it answers.

        Raises `SetupError` for a URL that makes no sense, `StoreUnavailable` when nothing answers there.
        """
        try:
            pool = BlockingConnectionPool.from_url(
                url,
                max_connections=CONNECTIONS_MAX,
                timeout=TURN_SECONDS,
                socket_timeout=TIMEOUT_SECONDS,
                socket_connect_timeout=TIMEOUT_SECONDS,
                retry=Retry(ConstantBackoff(0.02), 1),  # a pooled connection may have died unnoticed
            )
        except ValueError:  # its text may show the password
            raise SetupError(
                "the history store's URL is not valid; write redis://[[user]:password@]host:port[/database]"
            ) from None
        where = pool.connection_kwargs
        address = where.get("path") or f"{where.get('host', 'localhost')}:{where.get('port', 6379)}"
        store = cls(Redis.from_pool(pool), address, history_limit)
        try:
            await store._look()
        except BaseException:
            await store.close()
            raise
        return store

    async def get(self, user_id: str) -> History:
        """See `HistoryStore.get`. A damaged history raises `StoreUnavailable`."""
        return read_row(await self._row(user_id))

    async def get_many(self, user_ids: Sequence[str]) -> list[History | None]:
        """See `HistoryStore.get_many`. A damaged history is logged and comes as None: others get their answers."""
        histories: list[History | None] = []
        for start in range(0, len(user_ids), READ_CHUNK):
            with self._reporting():
                rows = await self._rows(user_ids[start : start + READ_CHUNK])
            histories += map(read_row_or_none, rows)
        return histories

    async def record(self, user_id: str, events: Sequence[Event]) -> tuple[int, int]:
        """See `HistoryStore.record`; how durable it is, the server's settings say."""
        if not events:
            return 0, 0
        async with self._turn(user_id):
            for _ in range(ATTEMPTS_MAX):
                row = await self._row(user_id)
                history = read_row(row)
                merged, duplicates = merge(history, events, self._limit, _new_revision())
                swap = (user_id, row, merged.row, b"")  # no mark: new events bring an erased user back
                if merged is history or all(await self._swap([swap])):
                    return len(events) - duplicates, duplicates
        raise StoreUnavailable(f"the history store at {self._address} is too busy with one user; try again")

    async def erase(self, user_id: str) -> int:
        """See `HistoryStore.erase`. Bulk loads leave the user out from now on."""
        with self._reporting():
            async with self._client.pipeline(transaction=True) as pipe:
                pipe.getdel(_key(user_id))
                pipe.sadd(_ERASED, erasure_mark(user_id))
                row, _ = await pipe.execute()
        return 0 if row is None else event_count_of(row)

    async def bulk_load(self, source: Path, on_progress: LoadProgress) -> int:
        """See `HistoryStore.bulk_load`. Raises `SetupError` when `source` cannot be read."""
        event_log = await asyncio.to_thread(BootstrapLog.open, source, self._limit)
        mark = f"segrec:loaded:{event_log.mark}"
        with self._reporting():
            if await self._client.exists(mark):
                return 0
        loaded = await load(event_log, self._load_users, on_progress)
        with self._reporting():
            await self._client.set(mark, b"")
        return loaded

    async def close(self) -> None:
        """Drop the connections. Later calls raise `StoreUnavailable`."""
        self._closed = True
        await self._client.aclose()
        await self._client.connection_pool.disconnect()

    async def _look(self) -> None:
        with self._reporting():
            persistence = await self._client.info("persistence")
        if not persistence.get("aof_enabled"):
            log.warning(
                "the history store at %s keeps no append-only file: events that it acknowledges are lost when it "
                "crashes; set `appendonly yes` and `appendfsync always` there",
                self._address,
            )

    async def _row(self, user_id: str) -> bytes | None:
        with self._reporting():
            return (await self._rows([user_id]))[0]

    async def _rows(self, user_ids: Sequence[str]) -> list[bytes | None]:
        return cast("list[bytes | None]", await self._client.mget([_key(user_id) for user_id in user_ids]))

    async def _load_users(self, users: Users) -> None:
        for start in range(0, len(users), LOAD_CHUNK):
            waiting = users[start : start + LOAD_CHUNK]
            for _ in range(ATTEMPTS_MAX):
                waiting = await self._load_once(waiting)
                if not waiting:
                    break
            else:
                raise StoreUnavailable(f"the history store at {self._address} is too busy to be filled; try again")

    async def _load_once(self, users: Users) -> Users:
        """Merge what is to be loaded; returns the users whose rows changed meanwhile."""
        with self._reporting():
            rows = await self._rows([user_id for user_id, _ in users])
        swaps: list[_Swap] = []
        asked: list[tuple[str, History]] = []
        for (user_id, added), row in zip(users, rows, strict=True):
            wanted = loaded_row(row, added, self._limit, _new_revision())
            if wanted is not None:
                asked.append((user_id, added))
                swaps.append((user_id, row, wanted, erasure_mark(user_id)))
        done = await self._swap(swaps)
        return [user for user, replaced in zip(asked, done, strict=True) if not replaced]

    async def _swap(self, swaps: Sequence[_Swap]) -> list[bool]:
        """Replace each row unless it has changed since it was read; returns which ones are done with."""
        if not swaps:
            return []
        keys = [_ERASED, *(_key(user_id) for user_id, *_ in swaps)]
        arguments = [part for _, row, wanted, mark in swaps for part in (_revision_bytes(row), wanted, mark)]
        with self._reporting():
            return [bool(replaced) for replaced in await self._replace(keys=keys, args=arguments)]

    def _turn(self, user_id: str) -> asyncio.Lock:
        """One writer a user within this process: others would only make it try again."""
        lock = self._turns.get(user_id)
        if lock is None:
            self._turns[user_id] = lock = asyncio.Lock()
        return lock

    @contextlib.contextmanager
    def _reporting(self) -> Iterator[None]:
        """Turn the client's errors into `StoreUnavailable`; the address is told, credentials are not."""
        if self._closed:
            raise StoreUnavailable(f"the connection to the history store at {self._address} is closed")
        try:
            yield
        except AuthenticationError as error:
            raise StoreUnavailable(
                f"the history store at {self._address} refuses the user name or password of its URL"
            ) from error
        except (RedisError, OSError, TimeoutError) as error:
            raise StoreUnavailable(
                f"the history store at {self._address} does not answer ({type(error).__name__}: {error}); "
                "check that it runs and can be reached"
            ) from error


def _key(user_id: str) -> str:
    return f"segrec:h:{user_id}"


def _new_revision() -> int:
    return 1 + secrets.randbelow((1 << 63) - 1)


def _revision_bytes(row: bytes | None) -> bytes:
    return b"" if row is None else row[_REVISION_BYTES]
