"""What the stores acknowledged is there after a `kill -9`, wherever it hits.

A killed process leaves its writes with the kernel, so this shows that nothing is acknowledged before it is written and
that no half-written state is left; that it also reached the disk is LMDB's sync and Redis' `appendfsync always`.
"""

import json
import random
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import polars as pl
import pytest

from server.adapters.lmdb_store import LmdbStore
from server.adapters.ports import Recorded
from server.adapters.valkey_store import ValkeyStore
from server.core.history import Event
from server.core.repository.layout import EVENTS_MARK, WITH_CLOCK
from tests.support.redis_server import RedisServer

ROOT = Path(__file__).parents[2]
ROUNDS = 10
LIMIT = 4096
USERS = ("ann", "bob", "用户")

RECORDER = """
import asyncio, itertools, json, sys
from pathlib import Path
from server.adapters.lmdb_store import LmdbStore
from server.core.history import Event

async def record_forever(store, number, user_id, first):
    for second in itertools.count(first):
        await store.record(user_id, [Event(f"item-{number}", "view", 1.0, second)])
        print(json.dumps([user_id, number, second]), flush=True)

async def main(directory, first, users):
    store = LmdbStore.open(Path(directory), 4096)
    await asyncio.gather(*(record_forever(store, n, users[n % len(users)], int(first)) for n in range(9)))

asyncio.run(main(*sys.argv[1:3], sys.argv[3:]))
"""

LOADER = """
import asyncio, sys
from pathlib import Path
from server.adapters import bulk_load
from server.adapters.lmdb_store import LmdbStore

bulk_load.CHUNK_ROWS = 50

def report(done, total):
    print(done, flush=True)
    if done >= total // 2:
        sys.stdin.read()  # until it is killed

async def main(directory, log):
    store = LmdbStore.open(Path(directory), 100)
    await store.bulk_load(Path(log), report)

asyncio.run(main(*sys.argv[1:]))
"""


def start(program: str, *arguments: object) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", program, *map(str, arguments)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT)


def kill_after(process: "subprocess.Popen[str]", lines: int) -> list[str]:
    """Kill after so many lines; returns all the whole lines that were written until then."""
    assert process.stdout
    heard = [process.stdout.readline() for _ in range(lines)]
    process.kill()
    heard += process.stdout.readlines()
    process.communicate()
    return [line for line in heard if line.endswith("\n")]


async def test_every_event_that_lmdb_acknowledged_survives(tmp_path: Path) -> None:
    chance = random.Random(1)
    acknowledged: dict[str, set[tuple[str, int]]] = defaultdict(set)
    revisions: set[int] = set()
    for round_ in range(ROUNDS):
        process = start(RECORDER, tmp_path / "store", round_ * 10_000, *USERS)
        for line in kill_after(process, chance.randint(1, 60)):
            user_id, number, second = json.loads(line)
            acknowledged[user_id].add((f"item-{number}", second))
        store = LmdbStore.open(tmp_path / "store", LIMIT)
        for user_id in USERS:
            history = await store.get(user_id)
            stored = set(zip(history.item_ids, history.timestamps.tolist(), strict=True))
            assert acknowledged[user_id] <= stored, f"round {round_} lost acknowledged events"
        assert await store.record("ann", [Event("between", "view", 1.0, round_)]) == Recorded(1, 0)
        revisions.add((await store.get("ann")).revision)
        await store.close()
    assert sum(map(len, acknowledged.values())) >= ROUNDS
    assert len(revisions) == ROUNDS


async def test_a_bulk_load_that_was_killed_is_completed_by_the_next(tmp_path: Path) -> None:
    log = tmp_path / "events.parquet"
    rows = [(f"u{user:03}", f"item-{n}", "view", float(n), n) for user in range(100) for n in range(10)]
    events = pl.DataFrame(rows, ["user_id", "item_id", "action", "value", "timestamp"], orient="row")
    events.write_parquet(log, metadata={EVENTS_MARK: WITH_CLOCK})
    kill_after(start(LOADER, tmp_path / "store", log), 6)
    store = LmdbStore.open(tmp_path / "store", 100)
    histories = await store.get_many([f"u{user:03}" for user in range(100)])
    assert 10 in {len(history) for history in histories if history is not None}
    assert await store.bulk_load(log, lambda done, total: None) == 100
    histories = await store.get_many([f"u{user:03}" for user in range(100)])
    assert all(history is not None and history.timestamps.tolist() == list(range(10)) for history in histories)
    assert await store.bulk_load(log, lambda done, total: None) == 0
    await store.close()


async def test_two_processes_may_write_one_lmdb(tmp_path: Path) -> None:
    store = LmdbStore.open(tmp_path / "store", LIMIT)
    process = start(RECORDER, tmp_path / "store", 1_000_000, *USERS)
    assert process.stdout
    theirs = [json.loads(process.stdout.readline()) for _ in range(5)]
    revisions = []
    for second in range(50):
        assert await store.record("ann", [Event("ours", "view", 1.0, second)]) == Recorded(1, 0)
        revisions.append((await store.get("ann")).revision)
    theirs += [json.loads(line) for line in kill_after(process, 5)]
    assert revisions == sorted(set(revisions))
    for user_id in USERS:
        history = await store.get(user_id)
        stored = set(zip(history.item_ids, history.timestamps.tolist(), strict=True))
        assert {(f"item-{number}", second) for user, number, second in theirs if user == user_id} <= stored
    assert (await store.get("ann")).item_ids.count("ours") == 50
    await store.close()


@pytest.mark.parametrize("erased", [False, True])
async def test_what_valkey_acknowledged_survives_its_crash(tmp_path: Path, erased: bool) -> None:
    server = RedisServer(tmp_path, "--appendonly", "yes", "--appendfsync", "always")
    server.start()
    store = await ValkeyStore.connect(server.url, LIMIT)
    for second in range(50):
        await store.record("u", [Event("a", "view", 1.0, second)])
    if erased:
        assert await store.erase("u") == 50
    server.kill()
    server.start()
    assert len(await store.get("u")) == (0 if erased else 50)
    await store.close()
    server.kill()
