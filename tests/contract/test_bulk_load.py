"""Loading a whole log into a `HistoryStore`, the same cases for every store."""

import math
from datetime import datetime
from pathlib import Path

import polars as pl
import pytest

from server.adapters import bulk_load
from server.adapters.ports import HistoryStore, Recorded
from server.core.errors import SetupError
from server.core.history import Event
from server.core.repository.layout import EVENTS_MARK, WITH_CLOCK, WITHOUT_CLOCK
from tests.contract.conftest import Open
from tests.support.stored import LIMIT, contents, damage, ignore, view, whole, write_log
from tests.support.ticking import Clock


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
    path, now.now = write_log(tmp_path / "events.parquet", [("u", view(1))]), 86_400
    assert await store.bulk_load(path, ignore) == 1
    now.now = -2 * 86_400  # a log that an earlier version took
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


async def test_a_bulk_load_passes_over_a_damaged_history(store: HistoryStore, tmp_path: Path) -> None:
    await store.record("bad", [view(1)])
    await damage(store, "bad", "text")
    log = write_log(tmp_path / "events.parquet", [("bad", view(1)), ("good", view(2))])
    assert await store.bulk_load(log, ignore) == 2
    histories = await store.get_many(["bad", "good"])
    assert [history if history is None else len(history) for history in histories] == [None, 1]
