"""`segrec-store`: backups that can be restored, checks, and what the store holds as input for the next training."""

import asyncio
import math
import stat
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import lmdb
import polars as pl
import pytest
from typer.testing import CliRunner

from server.adapters import store_export
from server.adapters.lmdb_store import LmdbStore
from server.adapters.ports import HistoryStore
from server.adapters.valkey_store import ValkeyStore
from server.core.erasure import ErasureMarks
from server.core.history import Event
from server.store_cli import EXIT_DAMAGED, EXIT_SETUP, main
from tests.support.redis_server import RedisServer
from tests.support.ticking import Clock
from training.cli.main import app

ROOT = Path(__file__).parents[2]
USERS = 30
ERASED_SECONDS = 1_600_000_000.5
FIRST = 1_650_000_000_000


def events(user: int) -> list[Event]:
    values = [0.0, 0.5, 1.0, math.nan, 2.0, 2.5, 3.0, 3.5]
    return [
        Event(f"item-{number}", "view" if number % 2 else "购买", values[number], FIRST + number * 1000)
        for number in range(1, 2 + user % 7)
    ]


async def fill(store: HistoryStore) -> None:
    for user in range(USERS):
        await store.record(f"用户-{user:02}", events(user))
    await store.erase("gone")


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    assert isinstance(ended.value.code, int)
    return ended.value.code


@pytest.fixture(scope="module")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path_factory.mktemp("redis"))
    server.start()
    yield server
    server.kill()


@pytest.fixture(params=["lmdb", "valkey"])
def filled(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The `--store` of a filled store that nobody has open."""
    if request.param == "lmdb":
        with_store(lambda: _opened(tmp_path / "store"), fill)
        return f"lmdb:{tmp_path / 'store'}"
    url: str = request.getfixturevalue("redis_server").url

    async def empty() -> HistoryStore:
        store = await ValkeyStore.connect(url, 100, Clock(ERASED_SECONDS))
        await store._client.flushall()
        return store

    with_store(empty, fill)
    return url


async def _opened(path: Path) -> HistoryStore:
    return LmdbStore.open(path, 100, clock=Clock(ERASED_SECONDS))


def with_store(open_: Callable[[], Awaitable[HistoryStore]], use: Callable[[HistoryStore], Awaitable[object]]) -> None:
    async def go() -> None:
        store = await open_()
        await use(store)
        await store.close()

    asyncio.run(go())


def test_exported_events_are_what_was_recorded_and_can_be_prepared_and_loaded(
    filled: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(store_export, "BATCH_EVENTS", 10)
    out = tmp_path / "log.parquet"
    assert run("export-events", "--store", filled, "--out", out) == 0
    expected = [
        (f"用户-{user:02}", event.item_id, event.action, event.timestamp, event.value)
        for user in range(USERS)
        for event in events(user)
    ]
    assert f"{len(expected)} events of {USERS} users" in capsys.readouterr().out
    table = pl.read_parquet(out)
    assert table.columns == ["user_id", "item_id", "action", "timestamp", "value"]
    assert table["value"].null_count() == sum(math.isnan(row[-1]) for row in expected) > 0
    assert sorted(table.fill_null(-1.0).rows()) == sorted(
        (*row[:-1], -1.0 if math.isnan(row[-1]) else row[-1]) for row in expected
    )
    assert [file.name for file in tmp_path.iterdir() if file.name != "store"] == ["log.parquet"]

    async def load_again(store: HistoryStore) -> None:
        assert await store.bulk_load(out, lambda done, total: None) == USERS
        assert [len(history or ()) for history in await store.get_many(["用户-00", "用户-06"])] == [1, 7]

    async def now() -> HistoryStore:
        return LmdbStore.open(tmp_path / "again", 100)

    with_store(now, load_again)


def test_exported_events_are_prepared_for_the_next_training(tmp_path: Path) -> None:
    with_store(lambda: _opened(tmp_path / "store"), fill)
    out = tmp_path / "log.parquet"
    assert run("export-events", "--store", f"lmdb:{tmp_path / 'store'}", "--out", out) == 0
    flags = ["--events", str(out), "--runs", str(tmp_path / "runs"), "--run", "next"]
    result = CliRunner().invoke(app, ["prepare", *flags])
    assert result.exit_code == 0, result.output
    prepared = pl.read_parquet(tmp_path / "runs" / "next" / "prepare" / "events.parquet")
    columns = ["user_id", "item_id", "timestamp"]
    kept = pl.read_parquet(out).filter(pl.col("user_id").is_in(prepared["user_id"].unique().to_list()))
    assert len(prepared) > 50
    assert prepared.select(columns).sort(columns).equals(kept.select(columns).sort(columns))


def test_exported_erasures_name_the_erased_users_to_the_training(filled: str, tmp_path: Path) -> None:
    out = tmp_path / "erasures.json"
    assert run("export-erasures", "--store", filled, "--out", out) == 0
    marks = ErasureMarks.read(out)
    assert len(marks) == 1
    assert marks.erased_seconds("gone") == ERASED_SECONDS + 0.5
    assert not marks.covers("用户-00")
    assert stat.S_IMODE(out.stat().st_mode) == 0o600


def test_a_backup_of_a_store_in_use_is_restored_and_checked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    repository, saved, restored = tmp_path / "repository", tmp_path / "saved", tmp_path / "restored"
    repository.mkdir()
    (repository / "rules").mkdir()
    names = ("traffic.json", "audit.jsonl", ".ledger.json", "segments.toml", "rules/1.json", "rules/2.json")
    for name in (*names, "rules/.3.half-written"):
        (repository / name).write_text(f"{name} of before")

    async def save(store: HistoryStore) -> None:
        await fill(store)
        program = "from server.store_cli import main; main()"
        flags = ["--store", f"lmdb:{tmp_path / 'store'}", "--out", str(saved), "--repository", str(repository)]
        process = await asyncio.create_subprocess_exec(sys.executable, "-c", program, "backup", *flags, cwd=ROOT)
        assert await process.wait() == 0
        await store.record("later", events(1))

    with_store(lambda: _opened(tmp_path / "store"), save)
    target = ("--store", f"lmdb:{restored}", "--repository", tmp_path / "new")
    assert run("restore", "--backup", saved, *target) == 0
    said = f"restored: {USERS} histories, traffic.json, audit.jsonl, .ledger.json, segments.toml, rules"
    assert said in capsys.readouterr().out
    files = {str(path.relative_to(tmp_path / "new")): path for path in (tmp_path / "new").rglob("*") if path.is_file()}
    assert {name: path.read_text() for name, path in files.items()} == {name: f"{name} of before" for name in names}

    async def compare(store: HistoryStore) -> None:
        history = await store.get("用户-06")
        assert (len(history), history.item_ids[0]) == (7, "item-1")
        assert len(await store.get("later")) == 0
        recorded = await store.record("gone", [Event("a", "view", 1.0, 5)])
        assert recorded.erased == (0,), "the backup has lost an erasure"

    with_store(lambda: _opened(restored), compare)
    assert run("restore", "--backup", saved, *target) == EXIT_SETUP
    assert "already; move away what is there" in capsys.readouterr().err
    assert run("restore", "--backup", saved, "--store", f"lmdb:{restored}") == EXIT_SETUP
    assert "is not empty" in capsys.readouterr().err


def test_damaged_histories_are_counted_and_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with_store(lambda: _opened(tmp_path / "store"), fill)
    store = f"lmdb:{tmp_path / 'store'}"
    assert run("check", "--store", store) == 0
    environment = lmdb.open(str(tmp_path / "store"), max_dbs=3)
    with environment.begin(environment.open_db(b"histories"), write=True) as transaction:
        row = bytearray(transaction.get("用户-03".encode(), b""))
        row[-1] ^= 1
        transaction.put("用户-03".encode(), bytes(row))
    environment.close()
    capsys.readouterr()
    assert run("check", "--store", store) == EXIT_DAMAGED
    said = capsys.readouterr()
    assert f"{USERS - 1} histories are whole" in said.out
    assert "1 damaged histories are in the store" in said.err
    assert run("backup", "--store", store, "--out", tmp_path / "saved") == 0
    assert run("restore", "--backup", tmp_path / "saved", "--store", f"lmdb:{tmp_path / 'restored'}") == EXIT_DAMAGED
    assert run("check", "--store", f"lmdb:{tmp_path / 'restored'}") == 0
    assert run("export-events", "--store", store, "--out", tmp_path / "log.parquet") == EXIT_DAMAGED
    assert pl.read_parquet(tmp_path / "log.parquet")["user_id"].n_unique() == USERS - 1


def test_compacting_frees_what_was_erased_and_waits_for_no_server(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = f"lmdb:{tmp_path / 'store'}"

    async def erase_most(opened: HistoryStore) -> None:
        await fill(opened)
        for user in range(1, USERS):
            await opened.record(f"用户-{user:02}", [Event("x" * 200, "view", 1.0, FIRST + n) for n in range(90)])
            await opened.erase(f"用户-{user:02}")
        program = f"from server.store_cli import main; main(['compact', '--store', {store!r}])"
        process = await asyncio.create_subprocess_exec(sys.executable, "-c", program, cwd=ROOT, stderr=subprocess.PIPE)
        _, said = await process.communicate()
        assert (process.returncode, b"is in use" in said) == (EXIT_SETUP, True)

    with_store(lambda: _opened(tmp_path / "store"), erase_most)
    before = (tmp_path / "store" / "data.mdb").stat().st_size
    assert run("compact", "--store", store) == 0
    assert (tmp_path / "store" / "data.mdb").stat().st_size < before / 2
    assert run("check", "--store", store) == 0
    assert "1 histories are whole" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["check", "compact", "export-erasures"])
def test_a_store_that_is_not_there_is_not_made(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    out = ["--out", str(tmp_path / "out")] if command == "export-erasures" else []
    assert run(command, "--store", f"lmdb:{tmp_path / 'none'}", *out) == EXIT_SETUP
    assert "there is no history store" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
