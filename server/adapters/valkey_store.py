"""History store in Valkey or Redis, which several servers can share: one packed row per user.

A write reads the row and merges the events here. A script then replaces the row, but only if it still has the revision
that was read. A revision is 63 random bits: unlike a counter, it does not repeat after a fail-over that loses writes.

Durability depends on the Valkey server. For "acknowledged means stored" set `appendonly yes`, `appendfsync always` and
`maxmemory-policy noeviction`. With `everysec` a crash of its machine loses up to two seconds of events. A fail-over
loses the events that had not reached the replica.
"""

import asyncio
import contextlib
import logging
import secrets
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, cast
from weakref import WeakValueDictionary

from redis.asyncio import Redis
from redis.exceptions import RedisError

from server.adapters.bulk_load import BootstrapLog, Users, load
from server.adapters.history_rows import (
    Kept,
    Retention,
    WriteHealth,
    loaded_row,
    read_row,
    read_row_or_none,
    recorded_row,
    swept_row,
)
from server.adapters.ports import LoadProgress, Recorded
from server.adapters.valkey_server import address_of, check_settings, connection_pool, explain
from server.core.erasure import ErasureMarks, erasure_mark, new_erasure_key
from server.core.errors import SetupError, StoreUnavailable
from server.core.histories import Histories
from server.core.history import ROW_VERSION, Event, History, event_count_of, text_hash

log = logging.getLogger(__name__)

READ_CHUNK = 256
SWEEP_SECONDS, SWEEP_PAUSE_SECONDS = 1.0, 600.0
"""The sweep for events beyond the retention looks at some `READ_CHUNK` rows in this time, and rests after a round."""
LOAD_CHUNK = 250
"""Users in one call of the script, which blocks the Valkey server while it runs."""
ATTEMPTS_MAX = 100
"""Largest number of attempts to replace a row that other servers change at the same time."""

_FORMAT = "segrec:format"
_ERASURES = "segrec:erasures"
"""Hash: erasure mark → milliseconds since the epoch, as text."""
_ERASURE_KEY = "segrec:erasure_key"
_REVISION_BYTES = slice(8, 16)  # of the packed row; the script uses the same bytes
_REPLACE = """
local done = {}
for i = 2, #KEYS do
  local revision, row, mark = ARGV[5 * i - 9], ARGV[5 * i - 8], ARGV[5 * i - 7]
  local erased, expires = ARGV[5 * i - 6], ARGV[5 * i - 5]
  if redis.call('GETRANGE', KEYS[i], 8, 15) == revision and (redis.call('HGET', KEYS[1], mark) or '') == erased then
    if row == '' then
      redis.call('DEL', KEYS[i])
    elseif expires == '' then
      redis.call('SET', KEYS[i], row)
    else
      redis.call('SET', KEYS[i], row, 'PXAT', expires)
    end
    done[i - 1] = 1
  else
    done[i - 1] = 0
  end
end
return done
"""


# Deleting comes first: a server without memory refuses a script's first write if that needs memory, but none after it.
_ERASE = """
local row = redis.call('GETDEL', KEYS[2])
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
return row
"""


class _Stored(NamedTuple):
    """What is stored of a user, and whether the user was erased."""

    row: bytes | None
    mark: bytes
    erased: bytes

    @property
    def erased_ms(self) -> int | None:
        return int(self.erased) if self.erased else None


_Swap = tuple[str, _Stored, bytes]
"""User id, what was read, new row (empty to delete it): the script replaces the row if neither it nor the erasure has
changed since."""


class ValkeyStore:
    """A `HistoryStore`. Methods are called from one event loop."""

    answers_at_once = False

    def __init__(
        self,
        client: "Redis",
        address: str,
        history_limit: int,
        clock: Callable[[], float] = time.time,
        retention_days: int | None = None,
    ) -> None:
        """Use `connect`. `clock` gives seconds since the epoch."""
        self._client = client
        self._address = address
        self._limit = history_limit
        self._clock = clock
        self._retention = Retention(retention_days, clock)
        self._sweeper: asyncio.Task[None] | None = None
        self._stopping = asyncio.Event()
        self._erasure_key = b""
        self._replace = client.register_script(_REPLACE)
        self._erase = client.register_script(_ERASE)
        self._closed = False
        self._writes = WriteHealth()
        self._user_locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    @classmethod
    async def connect(
        cls,
        url: str,
        history_limit: int,
        clock: Callable[[], float] = time.time,
        retention_days: int | None = None,
    ) -> "ValkeyStore":
        """Connect to `redis://`, `rediss://` or `unix://` and check that the server answers.

        Raises `SetupError` for an invalid URL or a server that evicts keys, `StoreUnavailable` when none answers. With
        TLS, root certificates of its own are named by `?ssl_ca_certs=FILE`. Events of more than `retention_days` ago
        are not read; histories expire with their newest event, and single events are deleted by and by.
        """
        pool = connection_pool(url)
        store = cls(Redis.from_pool(pool), address_of(pool), history_limit, clock, retention_days)
        try:
            with store._translate_errors():
                await check_settings(store._client, store._address)
            await store._check_format()
        except BaseException:
            await store.close()
            raise
        if retention_days is not None:
            store._sweeper = asyncio.create_task(store._sweep_forever())
        return store

    async def get(self, user_id: str) -> History:
        """See `HistoryStore.get`. A damaged history raises `StoreUnavailable`."""
        with self._translate_errors():
            [row] = await self._rows([user_id])
        return self._retention.view(read_row(row))

    async def get_many(self, user_ids: Sequence[str]) -> Histories:
        """See `HistoryStore.get_many`. A damaged history is logged and returned as None."""
        parts: list[Histories] = []
        for start in range(0, len(user_ids), READ_CHUNK):
            with self._translate_errors():
                rows = await self._rows(user_ids[start : start + READ_CHUNK])
            parts.append(self._retention.views(Histories.read(rows)))
        return Histories.joined(parts)

    async def record(self, user_id: str, events: Sequence[Event]) -> Recorded:
        """See `HistoryStore.record`. The settings of the Valkey server decide how durable a write is."""
        if not events:
            return Recorded()
        async with self._user_lock(user_id):
            for _ in range(ATTEMPTS_MAX):
                [stored] = await self._stored([user_id])
                row, recorded = recorded_row(stored.row, events, self._kept(stored), _new_revision())
                if row is None or all(await self._swap([(user_id, stored, row)])):
                    return recorded
        raise StoreUnavailable(f"the history store at {self._address} is too busy with one user; try again")

    async def erase(self, user_id: str) -> int:
        """See `HistoryStore.erase`."""
        with self._writes.watched(), self._translate_errors():
            mark = await self._mark(user_id)
            row = await self._erase(keys=[_ERASURES, _key(user_id)], args=[mark, str(int(self._clock() * 1000))])
        return 0 if row is None else event_count_of(row)

    async def erasure_mark(self, user_id: str) -> bytes:
        """See `HistoryStore.erasure_mark`."""
        with self._translate_errors():
            return await self._mark(user_id)

    async def bulk_load(self, source: Path, on_progress: LoadProgress) -> int:
        """See `HistoryStore.bulk_load`. Raises `SetupError` when `source` cannot be read."""
        event_log = await asyncio.to_thread(BootstrapLog.open, source, self._limit)
        mark = f"segrec:loaded:{event_log.mark}"
        with self._translate_errors():
            if await self._client.exists(mark):
                return 0
        loaded = await load(event_log, self._clock(), self._load_users, on_progress)
        with self._translate_errors():
            await self._client.set(mark, b"")
        return loaded

    async def histories(self) -> AsyncIterator[tuple[str, History | None]]:
        """(user id, history) of each user, in any order; None for a damaged history.

        Users who are new meanwhile may be missing. Remembers some 100 bytes per user. Raises `StoreUnavailable`.
        """
        seen: set[int] = set()  # a scan may name a key twice
        async for names in self._scan():
            user_ids = [user_id for user_id in names if text_hash(user_id) not in seen]
            seen.update(map(text_hash, user_ids))
            with self._translate_errors():
                rows = await self._rows(user_ids) if user_ids else []
            for user_id, row in zip(user_ids, rows, strict=True):
                if row is not None:  # erased meanwhile
                    yield user_id, read_row_or_none(row)

    async def _scan(self) -> AsyncIterator[list[str]]:
        """The users, some `READ_CHUNK` at a time; one may come twice. Raises `StoreUnavailable`."""
        cursor, prefix = 0, _key("")
        while True:
            with self._translate_errors():
                cursor, keys = await self._client.scan(cursor, match=f"{prefix}*", count=READ_CHUNK)
            yield list(dict.fromkeys(cast("bytes", key).decode(errors="replace").removeprefix(prefix) for key in keys))
            if not cursor:
                return

    async def erasures(self) -> ErasureMarks:
        """The erased users, with the time of erasure in seconds, rounded up. Raises `StoreUnavailable`."""
        with self._translate_errors():
            await self._mark("")
            stored = cast("dict[bytes, bytes]", await self._client.hgetall(_ERASURES))
        return ErasureMarks(self._erasure_key, {mark: -(-int(ms) // 1000) for mark, ms in stored.items()})

    async def close(self) -> None:
        """Close the connections. Later calls raise `StoreUnavailable`."""
        self._closed = True
        self._stopping.set()
        if self._sweeper is not None:
            await self._sweeper
        await self._client.aclose()
        await self._client.connection_pool.disconnect()

    async def _check_format(self) -> None:
        """Write the row version into a new store. Raises `SetupError` for a store of another version."""
        with self._translate_errors():
            await self._client.set(_FORMAT, str(ROW_VERSION), nx=True)
            stored = cast("bytes | None", await self._client.get(_FORMAT)) or b"none"
        if stored != str(ROW_VERSION).encode():
            raise SetupError(
                f"the history store at {self._address} has format {stored.decode()}, this Segrec reads {ROW_VERSION}; "
                "use the version of Segrec that wrote the store, or give another database"
            )

    async def _rows(self, user_ids: Sequence[str]) -> list[bytes | None]:
        return cast("list[bytes | None]", await self._client.mget([_key(user_id) for user_id in user_ids]))

    async def _load_users(self, users: Users) -> None:
        for start in range(0, len(users), LOAD_CHUNK):
            remaining = users[start : start + LOAD_CHUNK]
            for _ in range(ATTEMPTS_MAX):
                remaining = await self._load_once(remaining)
                if not remaining:
                    break
            else:
                raise StoreUnavailable(f"the history store at {self._address} is too busy to be filled; try again")

    async def _load_once(self, users: Users) -> Users:
        """Merge the users into the store; returns the users whose rows another server changed meanwhile."""
        swaps: list[_Swap] = []
        attempted: list[tuple[str, History]] = []
        for (user_id, added), stored in zip(users, await self._stored([user_id for user_id, _ in users]), strict=True):
            new_row = loaded_row(stored.row, added, self._kept(stored), _new_revision())
            if new_row is not None:
                attempted.append((user_id, added))
                swaps.append((user_id, stored, new_row))
        done = await self._swap(swaps)
        return [user for user, replaced in zip(attempted, done, strict=True) if not replaced]

    async def _stored(self, user_ids: Sequence[str]) -> list[_Stored]:
        with self._translate_errors():
            marks = [await self._mark(user_id) for user_id in user_ids]
            async with self._client.pipeline(transaction=False) as pipe:  # the script sees whether either has changed
                pipe.mget([_key(user_id) for user_id in user_ids])
                pipe.hmget(_ERASURES, cast("list[str]", marks))
                rows, erasures = await pipe.execute()
        return [_Stored(row, mark, erased or b"") for row, mark, erased in zip(rows, marks, erasures, strict=True)]

    async def _mark(self, user_id: str) -> bytes:
        """The erasure mark of a user, under the key that all servers of this store share."""
        if not self._erasure_key:
            await self._client.set(_ERASURE_KEY, new_erasure_key(), nx=True)
            self._erasure_key = cast("bytes", await self._client.get(_ERASURE_KEY))
        return erasure_mark(self._erasure_key, user_id)

    async def _swap(self, swaps: Sequence[_Swap]) -> list[bool]:
        """Replace each row that has not changed since it was read. False in the result: changed, so try again."""
        if not swaps:
            return []
        keys = [_ERASURES, *(_key(user_id) for user_id, *_ in swaps)]
        arguments = [
            part
            for _, stored, row in swaps
            for part in (_revision_bytes(stored.row), row, stored.mark, stored.erased, self._expires(row))
        ]
        with self._writes.watched(), self._translate_errors():
            return [bool(replaced) for replaced in await self._replace(keys=keys, args=arguments)]

    def _kept(self, stored: _Stored) -> Kept:
        return Kept(self._limit, self._retention.oldest_ms, stored.erased_ms)

    def _expires(self, row: bytes) -> bytes:
        """When the newest event of the row passes the retention: milliseconds since the epoch; empty for never."""
        if self._retention.milliseconds is None or not row:
            return b""
        return b"%d" % max(1, int(History(row).timestamps[-1]) + self._retention.milliseconds)

    async def _sweep_forever(self) -> None:
        """Delete events beyond the retention, some rows a second; what fails is tried again in the next round.

        Ends when the store is closed. Nothing cancels it: on Python 3.11 the client may lose a cancellation.
        """
        while not self._closed:
            try:
                async for user_ids in self._scan():
                    await self._sweep(user_ids)
                    await self._rest(SWEEP_SECONDS)
            except StoreUnavailable:  # the calls that it fails too say so
                pass
            except Exception:
                log.exception("the sweep for old events failed")
            await self._rest(SWEEP_PAUSE_SECONDS)

    async def _rest(self, seconds: float) -> None:
        """Wait, until the store is closed at most."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._stopping.wait()

    async def _sweep(self, user_ids: Sequence[str]) -> None:
        oldest_ms = self._retention.oldest_ms
        if not user_ids or oldest_ms is None:
            return
        swaps: list[_Swap] = []
        for user_id, stored in zip(user_ids, await self._stored(user_ids), strict=True):
            if stored.row is not None:
                row = swept_row(stored.row, oldest_ms, _new_revision())
                if row != stored.row:
                    swaps.append((user_id, stored, row or b""))
        await self._swap(swaps)

    def _user_lock(self, user_id: str) -> asyncio.Lock:
        """A lock per user: two writers of this process would only make each other try again."""
        lock = self._user_locks.get(user_id)
        if lock is None:
            self._user_locks[user_id] = lock = asyncio.Lock()
        return lock

    @contextlib.contextmanager
    def _translate_errors(self) -> Iterator[None]:
        """Turn errors of the client into `StoreUnavailable`, with the address but without the credentials."""
        if self._closed:
            raise StoreUnavailable(f"the connection to the history store at {self._address} is closed")
        try:
            yield
        except (RedisError, OSError) as error:
            raise StoreUnavailable(explain(error, self._address)) from error


def _key(user_id: str) -> str:
    return f"segrec:h:{user_id}"


def _new_revision() -> int:
    return 1 + secrets.randbelow((1 << 63) - 1)


def _revision_bytes(row: bytes | None) -> bytes:
    return b"" if row is None else row[_REVISION_BYTES]
