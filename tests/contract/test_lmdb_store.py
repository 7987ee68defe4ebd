"""What only the LMDB store has: one file, one thread that writes, and a queue before it."""

import asyncio
import errno
import os
import subprocess
import sys
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import lmdb
import pytest

from server.adapters import lmdb_writer
from server.adapters.lmdb_file import needed_bytes, open_environment
from server.adapters.lmdb_store import LmdbStore
from server.adapters.lmdb_writer import Operation
from server.adapters.ports import Recorded
from server.core.errors import Overloaded, SetupError, StoreUnavailable
from server.core.history import Event
from tests.support.ticking import Clock
from tests.support.waiting import pause, wait_until

LIMIT = 1000
DYING_READER = """
import sys, os, lmdb
environment = lmdb.open(sys.argv[1], max_dbs=3)
transaction = environment.begin()
assert "no active readers" not in environment.readers()
os._exit(0)
"""


def events(count: int) -> list[Event]:
    return [Event(f"item-{number}", "view", 1.0, number) for number in range(count)]


async def fill(path: Path) -> int:
    """A store of 50 users with 100 events each; returns the size of its file."""
    store = LmdbStore.open(path, LIMIT)
    for number in range(50):
        await store.record(f"u{number}", events(100))
    await store.close()
    return (path / "data.mdb").stat().st_size


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[LmdbStore]:
    store = LmdbStore.open(tmp_path / "store", LIMIT)
    yield store
    await store.close()


@pytest.mark.parametrize("share", [0.02, 0.5, 0.99])
async def test_a_file_that_was_cut_is_refused_with_how_to_restore_it(tmp_path: Path, share: float) -> None:
    size = await fill(tmp_path)
    os.truncate(tmp_path / "data.mdb", int(size * share) // 4096 * 4096)
    with pytest.raises(SetupError, match="segrec-store restore"):
        LmdbStore.open(tmp_path, LIMIT)


@pytest.mark.parametrize("is_gone", [False, True])
async def test_an_emptied_store_is_refused_until_its_lock_is_removed_as_well(tmp_path: Path, is_gone: bool) -> None:
    await fill(tmp_path)
    if is_gone:
        (tmp_path / "data.mdb").unlink()
    else:
        os.truncate(tmp_path / "data.mdb", 0)
    with pytest.raises(SetupError, match=r"data\.mdb is empty or gone; restore .* or remove lock\.mdb"):
        LmdbStore.open(tmp_path, LIMIT)
    (tmp_path / "lock.mdb").unlink()
    store = LmdbStore.open(tmp_path, LIMIT)
    assert await store.record("u", events(1)) == Recorded(1)
    await store.close()


async def test_a_file_that_only_lacks_free_pages_is_opened(tmp_path: Path) -> None:
    """LMDB does not write pages at the end that were freed in the transaction that added them."""
    await fill(tmp_path)
    environment = open_environment(tmp_path)
    histories = environment.open_db(b"histories")
    for _ in range(5):  # pages are free for the next transaction
        with environment.begin(histories, write=True) as transaction:
            transaction.put(b"u0", transaction.get(b"u1", b"") * 2)
    with environment.begin(histories, write=True) as transaction:
        transaction.put(b"u0", transaction.get(b"u1", b""))
        transaction.put(b"large", bytes(400_000))
        transaction.delete(b"large")
    is_short = (tmp_path / "data.mdb").stat().st_size < needed_bytes(environment)
    environment.close()
    assert is_short, "the file is whole, so this shows nothing"
    store = LmdbStore.open(tmp_path, LIMIT)
    assert [len(history) for history in await store.get_many(["u0", "u1", "u49"]) if history] == [100] * 3
    assert await store.record("new", events(200)) == Recorded(200)
    await store.close()


def test_a_limit_of_the_address_space_is_named(tmp_path: Path) -> None:
    program = f"""
from pathlib import Path
from server.adapters.lmdb_store import LmdbStore
from server.core.errors import SetupError
import resource
resource.setrlimit(resource.RLIMIT_AS, (4 << 30, resource.RLIM_INFINITY))
try:
    LmdbStore.open(Path({str(tmp_path)!r}), 10)
except SetupError as error:
    print(error)
"""
    command = [sys.executable, "-c", program]
    said = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2]).stdout
    assert "ulimit -v" in said
    assert "can be written" not in said


@pytest.mark.parametrize(
    ("number", "remedy"),
    [(errno.EROFS, "file system that can be written"), (errno.EACCES, "the user of this process"), (errno.EIO, "disk")],
)
def test_what_to_do_depends_on_what_is_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, remedy: str
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise lmdb.Error(f"{tmp_path}: {os.strerror(number)}")

    monkeypatch.setattr(lmdb, "open", fail)
    with pytest.raises(SetupError, match=remedy):
        LmdbStore.open(tmp_path, LIMIT)


class Stuck:
    """A write that holds the writer's thread until it is let go."""

    def __init__(self, store: LmdbStore) -> None:
        self.begun, self._go = threading.Event(), threading.Event()
        self._task = asyncio.create_task(write(store, self._hold))

    def _hold(self, *_: object) -> None:
        self.begun.set()
        self._go.wait(30)

    async def let_go(self) -> None:
        self._go.set()
        await self._task


async def write(store: LmdbStore, operation: Operation[object]) -> None:
    await store.writer.write(operation, 0)


async def stuck(store: LmdbStore) -> Stuck:
    stuck = Stuck(store)
    await asyncio.to_thread(stuck.begun.wait, 30)
    return stuck


@pytest.mark.parametrize(("name", "bound"), [("WAITING_MAX_WRITES", 4), ("WAITING_MAX_BYTES", 10_000)])
async def test_beyond_the_bounds_of_the_queue_writes_are_refused_with_when_to_try_again(
    store: LmdbStore, monkeypatch: pytest.MonkeyPatch, name: str, bound: int
) -> None:
    monkeypatch.setattr(lmdb_writer, name, bound)
    holder = await stuck(store)
    writes = [asyncio.create_task(store.record(f"u{number}", events(5))) for number in range(10)]
    refused, _ = await asyncio.wait(writes, return_when=asyncio.FIRST_COMPLETED)
    await holder.let_go()
    results = await asyncio.gather(*writes, return_exceptions=True)
    overloads = [result for result in results if isinstance(result, Overloaded)]
    assert len(overloads) == len(refused) > 0
    assert all(error.retry_seconds == lmdb_writer.RETRY_SECONDS for error in overloads)
    assert results.count(Recorded(5)) == 10 - len(overloads) >= 3
    assert await store.record("later", events(5)) == Recorded(5)


async def test_a_write_whose_caller_has_gone_before_it_began_is_dropped(store: LmdbStore) -> None:
    holder = await stuck(store)
    gone, stays = (asyncio.create_task(store.record(user_id, events(1))) for user_id in ("gone", "stays"))
    await pause(0)
    gone.cancel()
    await asyncio.gather(gone, return_exceptions=True)
    await holder.let_go()
    assert await stays == Recorded(1)
    assert len(await store.get("gone")) == 0
    assert store.writer._waiting_writes == store.writer._waiting_bytes == 0


async def test_any_error_of_one_write_fails_that_write_only(store: LmdbStore) -> None:
    def fail(*_: object) -> None:
        raise UnicodeDecodeError("utf-8", b"\xff", 0, 1, "planted")

    holder = await stuck(store)
    tasks = [asyncio.create_task(store.record("a", events(1))), asyncio.create_task(write(store, fail))]
    tasks.append(asyncio.create_task(store.record("b", events(1))))
    await pause(0)
    await holder.let_go()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert [results[0], results[2]] == [Recorded(1), Recorded(1)]
    assert isinstance(results[1], StoreUnavailable)


async def test_writes_that_fail_leave_one_line_and_another_when_they_succeed_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = LmdbStore.open(tmp_path / "store", LIMIT, map_size_bytes=256 * 1024)
    await store.record("u", events(1))
    for number in range(3):
        with pytest.raises(StoreUnavailable, match="full"):
            await asyncio.gather(*(store.record(f"v{number}-{other}", events(1000)) for other in range(10)))
    await store.record("u", events(2))
    changes = ["fail from now on" in record.message for record in caplog.records]
    assert changes == [number % 2 == 0 for number in range(len(changes))], "one state was logged twice"
    assert "succeed again" in caplog.records[-1].message
    await store.close()


def test_a_reader_that_died_is_found_while_the_store_is_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its snapshot would keep pages from being used again, and the file would grow."""
    monkeypatch.setattr(lmdb_writer, "READER_CHECK_SECONDS", 0.05)

    async def follow() -> None:
        store = LmdbStore.open(tmp_path, LIMIT)
        reader = await asyncio.create_subprocess_exec(sys.executable, "-c", DYING_READER, str(tmp_path))
        assert await reader.wait() == 0
        await asyncio.to_thread(wait_until, lambda: str(reader.pid) not in store._environment.readers().split())
        await store.close()

    asyncio.run(follow())


async def test_nothing_of_an_erased_user_is_in_the_file_after_the_next_start(tmp_path: Path) -> None:
    store = LmdbStore.open(tmp_path, LIMIT, clock=Clock(0.0))
    for number in range(60):
        await store.record(f"user-{number:03}", events(3))
    for second in range(5):  # an inline row, and one on pages of its own
        await store.record("erased-one", [Event(f"secret-{second}", "view", 1.0, second)])
        await store.record("erased-two", [Event(f"hidden-{second}-{n}", "view", 1.0, second) for n in range(50)])
    await store.record("user-000", events(5))
    for user_id in ("erased-one", "erased-two"):
        await store.erase(user_id)
    other = await asyncio.create_subprocess_exec(sys.executable, "-c", OPENS, str(tmp_path))
    assert await other.wait() == 0, "another process would write the file anew below the store"
    await store.close()
    assert found_in(tmp_path), "nothing is left after the erasure itself, so this shows nothing"
    store = LmdbStore.open(tmp_path, LIMIT, clock=Clock(0.0))
    histories = await store.get_many(["user-000", "user-059", "erased-one"])
    assert [len(history or ()) for history in histories] == [5, 3, 0]
    assert await store.record("user-001", events(4)) == Recorded(1, 3)
    await store.close()
    assert not found_in(tmp_path)


def found_in(path: Path) -> list[bytes]:
    """What the files of a store still hold of the erased users."""
    assert sorted(file.name for file in path.iterdir()) == ["data.mdb", "lock.mdb", "store.lock"]
    return [secret for secret in (b"erased-", b"secret-", b"hidden-") if secret in (path / "data.mdb").read_bytes()]


OPENS = """
import sys
from pathlib import Path
from server.adapters.lmdb_copy import open_cleaned
environment, lock = open_cleaned(Path(sys.argv[1]))
assert not lock.is_sole
"""
