"""Every `HistoryStore`, the same cases."""

import asyncio
import logging
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from datetime import datetime
from pathlib import Path
from types import ModuleType

import polars as pl
import pytest

from server.adapters import bulk_load, lmdb_store, valkey_store
from server.adapters.lmdb_store import LmdbStore
from server.adapters.lmdb_writer import Operation
from server.adapters.ports import HistoryStore, Recorded
from server.adapters.valkey_store import ValkeyStore
from server.core.erasure import MARK_BYTES
from server.core.errors import SetupError, StoreUnavailable
from server.core.history import EMPTY, Event, History, event_count_of
from server.core.repository.layout import EVENTS_MARK, WITH_CLOCK, WITHOUT_CLOCK
from tests.support.memory_store import MemoryStore
from tests.support.redis_server import RedisServer
from tests.support.ticking import Clock
from tests.support.waiting import wait_until_async

LIMIT = 5
LONGEST = "é" * 128  # 256 bytes
Open = Callable[..., Awaitable[HistoryStore]]
DAY_SECONDS, DAY_MS = 86_400, 86_400_000


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


def view(number: int, item: str = "") -> Event:
    """Event `number`, at second `number`."""
    return Event(item or f"item-{number}", "view", float(number), number * 1000)


def write_log(path: Path, rows: list[tuple[str, Event]], clock: str = WITH_CLOCK) -> Path:
    columns = ("item_id", "action", "value", "timestamp")
    data = {name: [getattr(event, name) for _, event in rows] for name in columns}
    events = pl.DataFrame({"user_id": [user_id for user_id, _ in rows], **data})
    events.write_parquet(path, metadata={EVENTS_MARK: clock})
    return path


def ignore(done: int, total: int) -> None:
    pass


async def whole(store: HistoryStore, user_ids: list[str]) -> list[History]:
    """Many histories, none of them damaged."""
    histories = await store.get_many(user_ids)
    assert None not in histories
    return [history for history in histories if history is not None]


def contents(history: History) -> tuple[list[str], list[str], list[float], list[int]]:
    return list(history.item_ids), list(history.actions), history.values.tolist(), history.timestamps.tolist()


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
    assert await store.get_many([]) == []
    assert [len(history) for history in await whole(store, ["u1", "nobody"])] == [1, 0]


async def test_concurrent_records_lose_nothing(open_store: Open) -> None:
    store = await open_store(1000)
    counts = await asyncio.gather(*(store.record("u", [view(n), view(n + 1)]) for n in range(100)))
    others = await asyncio.gather(*(store.record(f"v{n}", [view(n)]) for n in range(100)))
    assert sum(recorded.stored for recorded in counts) == 101
    assert (await store.get("u")).timestamps.tolist() == [n * 1000 for n in range(101)]
    assert others == [Recorded(1)] * 100


async def test_a_bulk_load_fills_the_store_once(store: HistoryStore, tmp_path: Path) -> None:
    rows = [("ann", view(n)) for n in range(8)] + [("bob", view(1)), ("用户", Event("a", "cart", math.nan, 1))]
    log = write_log(tmp_path / "events.parquet", rows)
    seen: list[tuple[int, int]] = []
    assert await store.bulk_load(log, lambda done, total: seen.append((done, total))) == 3
    assert seen[0] == (0, 3)
    assert seen[-1] == (3, 3)
    assert (await store.get("ann")).timestamps.tolist() == [3000, 4000, 5000, 6000, 7000]
    assert list((await store.get("用户")).actions) == ["cart"]
    revision = (await store.get("ann")).revision
    assert revision > 0
    assert await store.bulk_load(log, ignore) == 0
    assert (await store.get("ann")).revision == revision
    assert await store.record("bob", [view(1)]) == Recorded(0, 1)


async def test_a_bulk_load_and_recorded_events_merge(store: HistoryStore, tmp_path: Path) -> None:
    await store.record("ann", [view(2), view(9)])
    before = (await store.get("ann")).revision
    log = write_log(tmp_path / "events.parquet", [("ann", view(n)) for n in (1, 2, 3)] + [("bob", view(1))])
    assert await store.bulk_load(log, ignore) == 2
    assert (await store.get("ann")).timestamps.tolist() == [1000, 2000, 3000, 9000]
    assert (await store.get("ann")).revision != before
    more = write_log(tmp_path / "more.parquet", [("ann", view(n)) for n in (1, 2, 3, 4)])
    assert await store.bulk_load(more, ignore) == 1
    assert (await store.get("ann")).timestamps.tolist() == [1000, 2000, 3000, 4000, 9000]


async def test_an_interrupted_bulk_load_is_repeated_from_the_start(
    store: HistoryStore, now: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bulk_load, "CHUNK_ROWS", 4)
    log = write_log(tmp_path / "events.parquet", [(f"u{n // 3:02}", view(n % 3)) for n in range(60)])

    def break_off(done: int, total: int) -> None:
        if done >= total // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        await store.bulk_load(log, break_off)
    assert len(await store.get("u00")) == 3
    assert len(await store.get("u19")) == 0
    await store.record("u00", [view(7)])
    now.now = 1.5
    await store.erase("u01")
    assert await store.bulk_load(log, ignore) == 20
    assert (await store.get("u00")).timestamps.tolist() == [0, 1000, 2000, 7000]
    assert (await store.get("u01")).timestamps.tolist() == [2000], "a bulk load brought an erased user back"
    everyone = await whole(store, [f"u{n:02}" for n in range(2, 20)])
    assert [history.timestamps.tolist() for history in everyone] == [[0, 1000, 2000]] * 18


async def test_a_log_in_any_order_gives_the_same_histories(
    open_store: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bulk_load, "CHUNK_ROWS", 7)
    rows = [(f"u{n * 7 % 5}", view(n * 11 % 50)) for n in range(50)]
    store = await open_store(LIMIT)
    assert await store.bulk_load(write_log(tmp_path / "mixed.parquet", rows), ignore) == 5
    mixed = [contents(history) for history in await whole(store, [f"u{n}" for n in range(5)])]
    store = await open_store(LIMIT)
    rows.sort(key=lambda row: (row[0], row[1].timestamp))
    assert await store.bulk_load(write_log(tmp_path / "sorted.parquet", rows), ignore) == 5
    assert [contents(history) for history in await whole(store, [f"u{n}" for n in range(5)])] == mixed


async def test_equal_events_of_a_log_are_all_kept(store: HistoryStore, tmp_path: Path) -> None:
    log = write_log(tmp_path / "events.parquet", [("u", view(1)), ("u", view(1)), ("u", view(1)), ("v", view(1))])
    await store.bulk_load(log, ignore)
    assert [len(history) for history in await whole(store, ["u", "v"])] == [3, 1]
    assert await store.record("u", [view(1)]) == Recorded(0, 1)


async def test_an_event_recorded_with_an_id_and_then_in_a_log_is_stored_once(
    store: HistoryStore, tmp_path: Path
) -> None:
    named = [Event("a", "view", 1.0, 1000, "e1"), Event("b", "view", 1.0, 2000, "e2")]
    await store.record("u", named)
    cleaned = [("u", Event("a", "view", 0.5, 1000)), ("u", Event("b", "view", math.nan, 2000)), ("u", view(3))]
    await store.bulk_load(write_log(tmp_path / "events.parquet", cleaned), ignore)
    assert contents(await store.get("u"))[0] == ["a", "b", "item-3"]
    assert await store.record("u", [*named, Event("item-3", "view", 3.0, 3000, "e3")]) == Recorded(0, 3)
    assert len(await store.get("u")) == 3


async def test_a_log_with_other_content_is_loaded_though_size_and_footer_are_the_same(
    store: HistoryStore, tmp_path: Path
) -> None:
    logs = [write_log(tmp_path / f"{n}.parquet", [("u", view(5)), ("u", view(n)), ("u", view(9))]) for n in (7, 8)]
    texts = [log.read_bytes() for log in logs]
    assert len(texts[0]) == len(texts[1])
    assert [await store.bulk_load(log, ignore) for log in logs] == [1, 1]
    copy = tmp_path / "copy.parquet"
    copy.write_bytes(texts[0])
    assert await store.bulk_load(copy, ignore) == 0
    assert (await store.get("u")).timestamps.tolist() == [5000, 7000, 8000, 9000]


async def test_a_larger_limit_loads_the_log_again(open_store: Open, tmp_path: Path) -> None:
    log = write_log(tmp_path / "events.parquet", [("u", view(n)) for n in range(8)])
    assert bulk_load.BootstrapLog.open(log, 5).mark != bulk_load.BootstrapLog.open(log, 6).mark


async def test_a_bulk_load_leaves_out_events_that_the_api_would_refuse(
    store: HistoryStore, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bad = [("x" * 257, view(1)), ("", view(1)), ("u", view(1, "a\0b")), ("u", Event("a", "", 1.0, 1))]
    log = write_log(tmp_path / "events.parquet", [*bad, ("u", view(2))])
    await store.bulk_load(log, ignore)
    assert list((await store.get("u")).item_ids) == ["item-2"]
    assert "4 events" in caplog.text


async def test_a_file_that_is_no_log_gives_an_error_with_its_path(store: HistoryStore, tmp_path: Path) -> None:
    with pytest.raises(SetupError, match=r"missing\.parquet cannot be read"):
        await store.bulk_load(tmp_path / "missing.parquet", ignore)
    text = tmp_path / "text.parquet"
    text.write_text("user_id,item_id")
    with pytest.raises(SetupError, match=r"text\.parquet cannot be read"):
        await store.bulk_load(text, ignore)


@pytest.mark.parametrize(
    ("change", "mark"),
    [
        ({}, {}),  # not from `prepare`
        ({"timestamp": pl.Series([1_700_000_000], dtype=pl.UInt32)}, {EVENTS_MARK: WITH_CLOCK}),
        ({"timestamp": pl.Series([datetime(2024, 1, 31)])}, {EVENTS_MARK: WITH_CLOCK}),
        ({"user_id": pl.Series([7])}, {EVENTS_MARK: WITH_CLOCK}),
        ({"action": None}, {EVENTS_MARK: WITH_CLOCK}),
    ],
)
async def test_only_logs_that_were_prepared_are_loaded(
    store: HistoryStore, tmp_path: Path, change: dict[str, pl.Series | None], mark: dict[str, str]
) -> None:
    path = write_log(tmp_path / "events.parquet", [("u", view(1))])
    columns = pl.read_parquet(path).to_dict() | change
    pl.DataFrame({name: column for name, column in columns.items() if column is not None}).write_parquet(
        path, metadata=mark
    )
    with pytest.raises(SetupError, match=r"events\.parquet was not written by `segrec-train prepare` or"):
        await store.bulk_load(path, ignore)
    assert len(await store.get("u")) == 0


async def test_a_log_that_is_loaded_already_is_not_judged_again(
    store: HistoryStore, now: Clock, tmp_path: Path
) -> None:
    path, now.now = write_log(tmp_path / "events.parquet", [("u", view(1))]), DAY_SECONDS
    assert await store.bulk_load(path, ignore) == 1
    now.now = -2 * DAY_SECONDS  # a log that an earlier version took
    assert await store.bulk_load(path, ignore) == 0


@pytest.mark.parametrize(("second", "is_loaded"), [(-0.001, False), (0, True), (86_400.0, True), (86_400.001, False)])
async def test_times_are_from_1970_to_a_day_from_now(
    store: HistoryStore, tmp_path: Path, second: float, is_loaded: bool
) -> None:
    odd = Event("odd", "view", 1.0, int(second * 1000))
    path = write_log(tmp_path / "events.parquet", [("u", odd), ("u", view(1)), ("v", view(1))])
    if is_loaded:
        assert await store.bulk_load(path, ignore) == 2
        return
    with pytest.raises(SetupError, match=r"events before 1970 or more than a day in the future"):
        await store.bulk_load(path, ignore)
    assert [len(await store.get(user_id)) for user_id in ("u", "v")] == [0, 0]


async def test_without_a_clock_times_are_any_numbers(store: HistoryStore, tmp_path: Path) -> None:
    events = [("u", Event("a", "view", 1.0, -5)), ("u", Event("b", "view", 1.0, 10**15))]
    assert await store.bulk_load(write_log(tmp_path / "events.parquet", events, WITHOUT_CLOCK), ignore) == 1
    assert (await store.get("u")).timestamps.tolist() == [-5, 10**15]


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


async def test_a_bulk_load_passes_over_a_damaged_history(store: HistoryStore, tmp_path: Path) -> None:
    await store.record("bad", [view(1)])
    await damage(store, "bad", "text")
    log = write_log(tmp_path / "events.parquet", [("bad", view(1)), ("good", view(2))])
    assert await store.bulk_load(log, ignore) == 2
    histories = await store.get_many(["bad", "good"])
    assert [history if history is None else len(history) for history in histories] == [None, 1]


async def damage(store: HistoryStore, user_id: str, place: str) -> None:
    """Change one byte of a stored row (or all of it) behind the store's back."""
    row = bytearray((await store.get(user_id)).row)
    if place == "whole":
        row[:] = b"\x02 not a history, though as long as its header"
    else:
        row[{"text": -1, "value": 48, "count": 5, "revision": 8}[place]] ^= 0x80
    changed = bytes(row)
    if isinstance(store, MemoryStore):
        store.rows[user_id] = changed
    elif isinstance(store, LmdbStore):
        await write(store, lambda transaction, _: transaction.put(user_id.encode(), changed, db=store._histories))
    elif isinstance(store, ValkeyStore):
        await store._client.set(f"segrec:h:{user_id}", changed)


async def write(store: LmdbStore, operation: Operation[object]) -> None:
    await store.writer.write(operation, 0)


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
