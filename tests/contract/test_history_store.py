"""Every `HistoryStore`, the same cases."""

import asyncio
import logging
import math
import time
from pathlib import Path
from types import ModuleType

import pytest

from server.adapters import lmdb_store, valkey_store
from server.adapters.lmdb_store import LmdbStore
from server.adapters.ports import HistoryStore, Recorded
from server.adapters.valkey_store import ValkeyStore
from server.core.erasure import MARK_BYTES
from server.core.errors import SetupError, StoreUnavailable
from server.core.history import EMPTY, Event, event_count_of
from tests.contract.conftest import Open
from tests.support.redis_server import RedisServer
from tests.support.stored import LIMIT, contents, damage, ignore, view, whole, write, write_log
from tests.support.ticking import Clock
from tests.support.waiting import wait_until_async

LONGEST = "é" * 128  # 256 bytes
DAY_SECONDS, DAY_MS = 86_400, 86_400_000


async def test_an_unknown_user_has_an_empty_history(store: HistoryStore) -> None:
    assert await store.get("nobody") == EMPTY
    assert await store.erase("nobody") == 0
    assert await store.record("nobody", []) == Recorded(0, 0)
    assert (await store.get("nobody")).revision == 0


async def test_events_are_returned_unchanged_and_in_time_order(store: HistoryStore) -> None:
    assert await store.record("u", [view(3), view(1)]) == Recorded(2, 0)
    assert await store.record("u", [Event("item-2", "购买", 2.5, 2000)]) == Recorded(1, 0)
    expected = ["item-1", "item-2", "item-3"], ["view", "购买", "view"], [1.0, 2.5, 3.0], [1000, 2000, 3000]
    assert contents(await store.get("u")) == expected
    assert contents((await whole(store, ["u"]))[0]) == expected


async def test_only_the_newest_events_are_kept(store: HistoryStore) -> None:
    for number in (7, 1, 4, 2, 6, 3, 5):
        assert await store.record("u", [view(number)]) == Recorded(1, 0)
    assert (await store.get("u")).timestamps.tolist() == [3000, 4000, 5000, 6000, 7000]
    await store.record("v", [view(number) for number in range(20)])
    assert (await store.get("v")).timestamps.tolist() == [15000, 16000, 17000, 18000, 19000]


async def test_recording_again_changes_nothing(store: HistoryStore) -> None:
    await store.record("u", [view(1), view(2)])
    before = await store.get("u")
    assert await store.record("u", [view(1), view(2)]) == Recorded(0, 2)
    assert await store.record("u", [view(2), view(3), view(3)]) == Recorded(1, 2)
    assert before.revision != (await store.get("u")).revision
    assert (await store.get("u")).timestamps.tolist() == [1000, 2000, 3000]


async def test_events_with_the_same_event_id_are_duplicates(store: HistoryStore) -> None:
    twice = [Event("a", "view", 1.0, 5, "first"), Event("a", "view", 1.0, 5, "second")]
    assert await store.record("u", twice) == Recorded(2, 0)
    assert await store.record("u", [Event("b", "cart", 2.0, 6, "first")]) == Recorded(0, 1)
    assert list((await store.get("u")).item_ids) == ["a", "a"]


async def test_a_revision_is_never_used_twice(store: HistoryStore) -> None:
    revisions = []
    for number in range(6):
        await store.record("u", [view(number)])
        revisions.append((await store.get("u")).revision)
        await store.record("other", [view(number)])
        if number % 2:
            await store.erase("u")
    assert len(set(revisions)) == 6
    assert 0 not in revisions


async def test_a_duplicate_does_not_change_the_revision(store: HistoryStore) -> None:
    await store.record("u", [view(1)])
    before = (await store.get("u")).revision
    await store.record("u", [view(1)])
    assert (await store.get("u")).revision == before


async def test_erasing_a_user_removes_all_events_of_this_user_only(store: HistoryStore) -> None:
    await store.record("u", [view(1), view(2)])
    await store.record("v", [view(1)])
    assert await store.erase("u") == 2
    assert await store.get("u") == EMPTY
    assert await store.erase("u") == 0
    assert len(await store.get("v")) == 1
    assert await store.record("u", [view(1)]) == Recorded(1, 0)


async def test_the_mark_of_an_erasure_tells_users_apart_and_shows_no_id(open_store: Open) -> None:
    store = await open_store(100)
    mark = await store.erasure_mark("a user")
    await store.erase("a user")
    assert mark == await store.erasure_mark("a user") != await store.erasure_mark("another user")
    assert len(mark) == MARK_BYTES


async def test_events_from_before_an_erasure_are_refused_by_their_place(store: HistoryStore, now: Clock) -> None:
    now.now = 5.0
    await store.erase("u")
    await store.record("v", [view(1)])
    sent = [view(4), view(6), view(5), view(3), view(6)]
    assert await store.record("u", sent) == Recorded(2, 1, 0, (0, 3))
    assert (await store.get("u")).timestamps.tolist() == [5000, 6000]
    now.now = 7.0
    assert await store.erase("u") == 2
    assert await store.record("u", [view(6)]) == Recorded(0, 0, 0, (0,))
    assert await store.get("u") == EMPTY


async def test_an_event_older_than_all_that_is_kept_is_counted_and_changes_nothing(store: HistoryStore) -> None:
    assert await store.record("u", [view(n) for n in range(3, 11)]) == Recorded(5, 0, 3)
    before = (await store.get("u")).revision
    assert await store.record("u", [view(2), view(10)]) == Recorded(0, 1, 1)
    assert (await store.get("u")).revision == before


def on_day(day: float, now: float) -> Event:
    """An event so many days after `now`."""
    return Event(f"day {day}", "view", 1.0, int((now + day * DAY_SECONDS) * 1000))


async def test_events_beyond_the_retention_are_neither_stored_nor_read(
    open_store: Open, now: Clock, tmp_path: Path
) -> None:
    start = now.now = float(int(time.time()))
    store = await open_store(LIMIT, 10)
    assert await store.record("u", [on_day(day, start) for day in (-11, -9, 0)]) == Recorded(2, 0, 1)
    assert await store.record("v", [on_day(-9, start)]) == Recorded(1)
    before = await store.get("u")
    assert before.item_ids == ["day -9", "day 0"]
    now.now += 2 * DAY_SECONDS
    after = await store.get("u")
    assert after.item_ids == ["day 0"]
    assert after.revision not in (0, before.revision), "a cached embedding of the old events would be used"
    assert after.origin == before.origin
    histories = await store.get_many(["u", "v"])
    assert [len(history or ()) for history in histories] == [1, 0]
    assert await store.get("v") == EMPTY
    assert await store.record("u", [on_day(1, start), on_day(-9, start)]) == Recorded(1, 0, 1)
    assert (await store.get("u")).item_ids == ["day 0", "day 1"]
    log = write_log(tmp_path / "events.parquet", [("v", on_day(-9, start)), ("w", on_day(-8, start))])
    await store.bulk_load(log, ignore)
    assert [len(history or ()) for history in await store.get_many(["v", "w"])] == [0, 1]


@pytest.mark.parametrize("module", [lmdb_store, valkey_store])
async def test_a_sweep_deletes_what_is_beyond_the_retention(
    module: ModuleType, redis_server: RedisServer, tmp_path: Path, now: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("SWEEP_SECONDS", "SWEEP_PAUSE_SECONDS"):
        monkeypatch.setattr(module, name, 0.01)
    start = now.now = float(int(time.time()))
    store: LmdbStore | ValkeyStore
    if module is lmdb_store:
        monkeypatch.setattr(lmdb_store, "SWEEP_ROWS", 7)
        store = LmdbStore.open(tmp_path, LIMIT, clock=now, retention_days=10)
    else:
        store = await ValkeyStore.connect(redis_server.url, LIMIT, now, 10)
        await store._client.flushall()
    for number in range(30):
        await store.record(f"old{number}", [on_day(-9, start)])
        await store.record(f"both{number}", [on_day(-9, start), on_day(0, start)])
        await store.record(f"young{number}", [on_day(0, start)])
    now.now += 2 * DAY_SECONDS

    async def stored_counts() -> list[int]:
        """Events in the rows themselves, by user."""
        if isinstance(store, LmdbStore):
            with store._environment.begin(store._histories) as transaction:
                return [event_count_of(row) for _, row in transaction.cursor()]
        return [len(history or ()) async for _, history in store.histories()]

    async def is_swept() -> bool:
        return await stored_counts() == [1] * 60

    await wait_until_async(is_swept)
    assert (await store.get("both3")).item_ids == (await store.get("young3")).item_ids == ["day 0"]
    assert await store.record("old3", [on_day(1, start)]) == Recorded(1)
    await store.close()


async def test_valkey_lets_a_history_expire_with_its_newest_event(redis_server: RedisServer, now: Clock) -> None:
    now.now = float(int(time.time()))
    store = await ValkeyStore.connect(redis_server.url, LIMIT, now, 10)
    await store.record("expires", [on_day(-3, now.now), on_day(-1, now.now)])
    expiry = await store._client.pexpiretime("segrec:h:expires")
    assert expiry == on_day(-1, now.now).timestamp + 10 * DAY_MS
    await store.close()


async def test_a_user_who_comes_back_has_another_origin(store: HistoryStore) -> None:
    await store.record("u", [view(1)])
    first = await store.get("u")
    await store.record("u", [view(2)])
    assert (await store.get("u")).origin == first.origin
    await store.erase("u")
    await store.record("u", [view(3)])
    assert (await store.get("u")).origin != first.origin


@pytest.mark.parametrize("user_id", ["用户-1", "a b", "Ünï🙂", "x" * 256, LONGEST, "segrec:h:u", "'; --"])
async def test_any_id_of_up_to_256_bytes_is_a_valid_user_and_item_id(store: HistoryStore, user_id: str) -> None:
    await store.record(user_id, [Event(user_id, user_id, 1.0, 1)])
    await store.record(user_id[:-1] or "-", [view(2)])
    assert contents(await store.get(user_id)) == ([user_id], [user_id], [1.0], [1])
    assert await store.erase(user_id) == 1


async def test_values_may_be_missing_or_extreme(store: HistoryStore) -> None:
    values = [math.nan, -1e308, 5e-324, 0.1]
    await store.record("u", [Event("a", "view", value, number) for number, value in enumerate(values)])
    assert await store.record("u", [Event("a", "view", math.nan, 0)]) == Recorded(0, 1)
    stored = (await store.get("u")).values.tolist()
    assert math.isnan(stored[0])
    assert stored[1:] == values[1:]


async def test_get_many_returns_histories_in_the_order_of_the_ids(store: HistoryStore) -> None:
    for number in range(40):
        await store.record(f"u{number}", [view(number)])
    asked = [f"u{number}" for number in (3, 39, 3, 0, 77, 12)] * 60
    histories = await whole(store, asked)
    assert [history.timestamps.tolist() for history in histories] == [[3000], [39000], [3000], [0], [], [12000]] * 60
    assert list(await store.get_many([])) == []
    assert [len(history) for history in await whole(store, ["u1", "nobody"])] == [1, 0]


async def test_concurrent_records_lose_nothing(open_store: Open) -> None:
    store = await open_store(1000)
    counts = await asyncio.gather(*(store.record("u", [view(n), view(n + 1)]) for n in range(100)))
    others = await asyncio.gather(*(store.record(f"v{n}", [view(n)]) for n in range(100)))
    assert sum(recorded.stored for recorded in counts) == 101
    assert (await store.get("u")).timestamps.tolist() == [n * 1000 for n in range(101)]
    assert others == [Recorded(1)] * 100


async def test_a_closed_store_is_unavailable(store: HistoryStore) -> None:
    await store.record("u", [view(1)])
    await store.close()
    for call in (store.get("u"), store.get_many(["u"] * 50), store.record("u", [view(2)]), store.erase("u")):
        with pytest.raises(StoreUnavailable):
            await call


@pytest.mark.parametrize("place", ["text", "value", "count", "revision", "whole"])
async def test_a_damaged_history_fails_only_its_own_user(
    store: HistoryStore, place: str, caplog: pytest.LogCaptureFixture
) -> None:
    await store.record("secret-id", [view(1)])
    await store.record("fine", [view(1)])
    await damage(store, "secret-id", place)
    with pytest.raises(StoreUnavailable, match="EraseUser"):
        await store.get("secret-id")
    results = await asyncio.gather(
        *(store.record(user_id, [view(2)]) for user_id in ("fine", "secret-id", "new")), return_exceptions=True
    )
    assert [results[0], results[2]] == [Recorded(1), Recorded(1)]
    assert isinstance(results[1], StoreUnavailable)
    histories = await store.get_many(["secret-id", "fine"] * 20)
    assert [history if history is None else len(history) for history in histories] == [None, 2] * 20
    assert 0 <= await store.erase("secret-id") < 1000
    assert await store.record("secret-id", [view(2)]) == Recorded(1, 0)
    assert any(record.levelno >= logging.ERROR for record in caplog.records)
    assert "secret-id" not in caplog.text


async def test_lmdb_survives_reopening(tmp_path: Path) -> None:
    store = LmdbStore.open(tmp_path / "deep" / "store", LIMIT, clock=Clock(0.0))
    await store.record("u", [view(1)])
    first = await store.get("u")
    await store.erase("u")
    await store.close()
    store = LmdbStore.open(tmp_path / "deep" / "store", LIMIT, clock=Clock(0.0))
    await store.record("u", [view(1)])
    assert (await store.get("u")).revision > first.revision
    await store.close()


async def test_a_directory_that_lmdb_cannot_open_gives_a_setup_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SetupError, match="cannot be opened"):
        LmdbStore.open(tmp_path / "file", LIMIT)
    store = LmdbStore.open(tmp_path / "store", LIMIT)
    with pytest.raises(SetupError, match="already open"):
        LmdbStore.open(tmp_path / "store", LIMIT)
    await write(store, lambda transaction, _: transaction.put(b"format", b"9", db=store._meta))
    await store.close()
    with pytest.raises(SetupError, match="format 9"):
        LmdbStore.open(tmp_path / "store", LIMIT)
    (tmp_path / "store" / "data.mdb").write_bytes(b"x" * 10_000)
    with pytest.raises(SetupError, match="cannot be opened"):
        LmdbStore.open(tmp_path / "store", LIMIT)


async def test_a_full_lmdb_refuses_writes_and_still_answers_reads(tmp_path: Path) -> None:
    store = LmdbStore.open(tmp_path / "store", 1000, map_size_bytes=256 * 1024)
    await store.record("u", [view(1)])
    events = [view(n) for n in range(100)]
    await store.record("v0", events)
    with pytest.raises(StoreUnavailable, match="full at 262,144 bytes"):
        await asyncio.gather(*(store.record(f"v{n}", events) for n in range(1, 1000)))
    assert len(await store.get("u")) == 1
    assert len(await store.get("v0")) == 100
    await store.close()
