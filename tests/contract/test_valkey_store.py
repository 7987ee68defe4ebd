"""What only the Valkey store has: a server of its own, with settings, time limits and TLS."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from time import monotonic

import pytest
from redis.asyncio import Redis

from server.adapters.ports import Recorded
from server.adapters.valkey_store import ValkeyStore
from server.core.errors import SetupError, StoreUnavailable
from server.core.history import Event
from tests.support.certificates import Authority
from tests.support.redis_server import RedisServer
from tests.support.waiting import pause

LIMIT = 5


def view(number: int) -> Event:
    """Event `number`, at second `number`."""
    return Event(f"item-{number}", "view", float(number), number * 1000)


@pytest.fixture(scope="module")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path_factory.mktemp("redis"))
    server.start()
    yield server
    server.kill()


async def test_the_error_of_an_absent_valkey_names_its_address(tmp_path: Path) -> None:
    server = RedisServer(tmp_path)
    server.start()
    store = await ValkeyStore.connect(server.url, LIMIT)
    await store.record("u", [view(1)])
    server.kill()
    for call in (store.get("u"), store.get_many(["u"]), store.record("u", [view(2)]), store.erase("u")):
        with pytest.raises(StoreUnavailable, match=f"127.0.0.1:{server.port} refuses connections"):
            await call
    with pytest.raises(StoreUnavailable, match=f"127.0.0.1:{server.port}") as raised:
        await ValkeyStore.connect(f"redis://me:hidden@127.0.0.1:{server.port}/0", LIMIT)
    assert "hidden" not in str(raised.value)
    server.start()
    assert await store.record("u", [view(3)]) == Recorded(1, 0), "the store did not come back with its server"
    await store.close()
    server.kill()


async def test_valkey_refuses_bad_urls_without_showing_them() -> None:
    for url in ("http://me:hidden@host", "redis://me:hidden@host:port/0"):
        with pytest.raises(SetupError) as raised:
            await ValkeyStore.connect(url, LIMIT)
        assert "hidden" not in str(raised.value)


async def test_valkey_shared_by_several_servers_loses_nothing(redis_server: RedisServer) -> None:
    stores = [await ValkeyStore.connect(redis_server.url, 1000) for _ in range(3)]
    await stores[0]._client.flushall()
    await asyncio.gather(*(stores[n % 3].record("u", [view(n)]) for n in range(90)))
    assert len(await stores[0].get("u")) == 90
    await asyncio.gather(*(store.close() for store in stores))


async def warnings_with(
    server: RedisServer, caplog: pytest.LogCaptureFixture, url: str = "", **settings: str
) -> list[str]:
    """What the store says at its start, with these settings of its server."""
    admin = await ValkeyStore.connect(server.url, LIMIT)
    for name, value in settings.items():
        await admin._client.config_set(name.replace("_", "-"), value)
    await admin.close()
    caplog.clear()
    await (await ValkeyStore.connect(url or server.url, LIMIT)).close()
    return [record.message for record in caplog.records]


async def test_settings_that_lose_acknowledged_events_are_named(
    redis_server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    [warning] = await warnings_with(redis_server, caplog, appendonly="no")
    assert "no append-only file" in warning
    [warning] = await warnings_with(redis_server, caplog, appendonly="yes", appendfsync="everysec")
    assert "appendfsync everysec" in warning
    assert await warnings_with(redis_server, caplog, appendfsync="always") == []
    admin = await ValkeyStore.connect(redis_server.url, LIMIT)
    await admin._client.acl_setuser(
        "plain", enabled=True, passwords="+hidden", keys=["segrec:*"], categories=["+@all"], commands=["-config"]
    )
    await admin.close()
    url = redis_server.url.replace("//", "//plain:hidden@")
    [warning] = await warnings_with(redis_server, caplog, url)
    assert "does not tell its appendfsync" in warning
    assert "hidden" not in warning
    await warnings_with(redis_server, caplog, appendonly="no")


async def test_a_server_that_evicts_histories_is_refused(
    redis_server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(SetupError, match="maxmemory-policy noeviction"):
        await warnings_with(redis_server, caplog, maxmemory="100mb", maxmemory_policy="allkeys-lru")
    await _set(redis_server, maxmemory_policy="noeviction")
    assert len(await warnings_with(redis_server, caplog)) == 1
    await _set(redis_server, maxmemory="0")


async def _set(server: RedisServer, **settings: str) -> None:
    pool = ValkeyStore(Redis.from_url(server.url), "", LIMIT)
    for name, value in settings.items():
        await pool._client.config_set(name.replace("_", "-"), value)
    await pool.close()


async def test_a_full_server_refuses_writes_by_name_in_one_line_of_the_log(
    redis_server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    store = await ValkeyStore.connect(redis_server.url, LIMIT)
    await store.record("full", [view(1)])
    await _set(redis_server, maxmemory="1")
    caplog.clear()
    for _ in range(3):
        with pytest.raises(StoreUnavailable, match="is full"):
            await store.record("full", [view(2)])
    assert len(await store.get("full")) == 1
    await _set(redis_server, maxmemory="0")
    await store.record("full", [view(2)])
    assert ["full" in record.message for record in caplog.records] == [True, False]
    await store.close()


async def test_a_full_server_still_erases(redis_server: RedisServer) -> None:
    store = await ValkeyStore.connect(redis_server.url, LIMIT)
    for user_id in ("gone", "other"):
        await store.record(user_id, [view(1)])
    await _set(redis_server, maxmemory="1")
    assert await store.erase("gone") == 1
    assert await store.erase("never-there") == 0
    assert len(await store.get("gone")) == 0
    assert len(await store.get("other")) == 1
    await _set(redis_server, maxmemory="0")
    erasures = await store.erasures()
    assert len(erasures) == 2, "both are on record"
    await store.close()


async def test_a_server_that_hangs_fails_a_call_once_and_in_its_time(redis_server: RedisServer) -> None:
    store = await ValkeyStore.connect(redis_server.url, LIMIT)
    for number in range(50):
        await store.record(f"u{number}", [view(number)])
    redis_server.pause()
    try:
        start = monotonic()
        with pytest.raises(StoreUnavailable, match="did not answer within 1 s"):
            await store.get("u1")
        assert monotonic() - start < 1.8, "the call was repeated"
        calls = [asyncio.create_task(store.get(f"u{number}")) for number in range(50)]
        await asyncio.wait(calls, timeout=0.1)
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)
    finally:
        redis_server.resume()
    found = await asyncio.gather(*(store.get(f"u{number}") for number in range(50)))
    assert [history.item_ids for history in found] == [[f"item-{number}"] for number in range(50)]
    await store.close()


async def test_a_store_that_sweeps_closes_at_once_whatever_it_does(redis_server: RedisServer) -> None:
    """On Python 3.11 the client may lose a cancellation, and a sweep that has lost it would go on for ever."""
    for turns in range(60):
        store = await ValkeyStore.connect(redis_server.url, LIMIT, retention_days=10)
        for _ in range(turns):
            await pause(0)
        async with asyncio.timeout(5):
            await store.close()


async def test_valkey_by_tls(tmp_path: Path) -> None:
    authority, stranger = Authority(tmp_path), Authority(tmp_path, "stranger")
    pair = authority.issue("localhost")
    files = ("--tls-cert-file", str(pair.certificate), "--tls-key-file", str(pair.key))
    server = RedisServer(tmp_path, tls=(*files, "--tls-ca-cert-file", str(authority.root), "--tls-auth-clients", "no"))
    server.start()
    url = server.url.replace("127.0.0.1", "localhost")
    try:
        store = await ValkeyStore.connect(f"{url}?ssl_ca_certs={authority.root}", LIMIT)
        assert await store.record("u", [view(1)]) == Recorded(1)
        await store.close()
        for options in ("", f"?ssl_ca_certs={stranger.root}"):
            with pytest.raises(StoreUnavailable, match=r"not trusted .*ssl_ca_certs=FILE"):
                await ValkeyStore.connect(url + options, LIMIT)
    finally:
        server.kill()
