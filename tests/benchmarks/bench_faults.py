"""Faults under load: what callers see of each, and how long until all is well again.

    python -m tests.benchmarks.bench_faults                    # all, some ten minutes
    python -m tests.benchmarks.bench_faults --only triton_killed stub_killed

A real server with a release of realistic size (20,000 items) and no cache, so that each answer needs the encoder.
Seven callers of `Segment` and `Recommend` and two that record ask all the time, by the official client, some 100 calls
a second. Each scenario has a server of its own. `back` is the time from the fault to the last answer that was not
good; `lost` counts acknowledged events that are not stored at the end. A scenario fails when a caller sees an error
that it should not, when it is back too late, or when an event is lost; the exit code is then 1. Run it on a quiet
machine. Ends in one JSON line.
"""

import argparse
import asyncio
import contextlib
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

import psutil
from segrec import AsyncSegrecClient, SegrecError
from segrec.errors import error_of_status
from segrec.v1.common_pb2 import Event
from segrec.v1.event_service_pb2 import UserEvent

from server.adapters.embedded_triton.environment import install_environment
from tests.benchmarks.common import realistic_release, show, write_histories
from tests.support.redis_server import RedisServer
from tests.support.server import ServerProcess
from tests.support.triton import ENVIRONMENT

USERS = [f"user-{number:08d}" for number in range(300)]
PAUSE_SECONDS = 0.06
"""Of each caller between two calls."""
BEFORE_SECONDS, AFTER_SECONDS, LONGEST_SECONDS = 2.0, 3.0, 40.0
"""Load before the fault; quiet that counts as recovered; and the longest wait for it."""


@dataclass
class Seen:
    """What callers saw: (second, outcome), where outcome is OK, DEGRADED or a status code; and the stored events."""

    outcomes: list[tuple[float, str]] = field(default_factory=list)
    longest: float = 0.0
    acknowledged: list[str] = field(default_factory=list)

    def note(self, start: float, outcome: str) -> None:
        now = time.monotonic()
        self.outcomes.append((now, outcome))
        self.longest = max(self.longest, now - start)

    def since(self, second: float) -> Counter[str]:
        """Calls by outcome from a second on."""
        return Counter(outcome for when, outcome in self.outcomes if when >= second)

    def back_seconds(self, second: float) -> float:
        """From a second to the last answer that was not good."""
        return max((when - second for when, outcome in self.outcomes if outcome != "OK"), default=0.0)


@dataclass
class World:
    """A server under load, and the Redis if its histories are there."""

    start: Callable[..., ServerProcess]
    server: ServerProcess
    seen: Seen
    redis: RedisServer | None = None

    def children(self, name: str) -> list[psutil.Process]:
        """Processes of the embedded Triton by the start of their name."""
        family = psutil.Process(self.server.process.pid).children(recursive=True)
        return [process for process in family if process.name().startswith(name)]


Fault = Callable[[World], Awaitable[None]]


@dataclass(frozen=True)
class Scenario:
    """A fault, the outcomes that callers may see of it, and how soon all must be well again."""

    fault: Fault
    allowed: frozenset[str]
    back_within: float
    store: str = "lmdb"


async def triton_killed(world: World) -> None:
    """`kill -9` of the embedded Triton."""
    world.children("tritonserver")[0].kill()


async def stub_killed(world: World) -> None:
    """`kill -9` of one of Triton's two model processes."""
    world.children("triton_python_b")[0].kill()


async def both_stubs_killed(world: World) -> None:
    """`kill -9` of both of Triton's model processes."""
    for stub in world.children("triton_python_b"):
        stub.kill()


async def triton_stopped(world: World) -> None:
    """SIGSTOP of Triton, for good."""
    world.children("tritonserver")[0].suspend()


async def stub_stopped(world: World) -> None:
    """SIGSTOP of one of Triton's two model processes, for good."""
    world.children("triton_python_b")[0].suspend()


async def server_killed(world: World) -> None:
    """`kill -9` of the server, which is started again at once."""
    address = world.server.address
    world.server.process.kill()
    await asyncio.to_thread(world.server.process.wait)
    world.server = await asyncio.to_thread(world.start, "--address", address)


async def server_restarted(world: World) -> None:
    """SIGTERM beside a stream that is open and idle; the server is started again when it has ended."""
    address = world.server.address
    client = AsyncSegrecClient(address)
    begun = asyncio.Event()

    async def ids() -> AsyncIterator[str]:
        for user in USERS[:64]:
            yield user
        await begun.wait()

    stream = asyncio.create_task(_read(client, ids()))
    await asyncio.sleep(1.0)
    await asyncio.to_thread(world.server.terminate)
    world.server = await asyncio.to_thread(world.start, "--address", address)
    begun.set()
    await stream
    await client.close()


async def _read(client: AsyncSegrecClient, ids: AsyncIterator[str]) -> None:
    with contextlib.suppress(SegrecError):
        async for _ in client.stream_segment(ids, chunk_size=64):
            pass


async def redis_killed(world: World) -> None:
    """Redis ends, and is back after five seconds."""
    assert world.redis is not None
    await asyncio.to_thread(world.redis.kill)
    await asyncio.sleep(5.0)
    await asyncio.to_thread(world.redis.start)


async def redis_stopped(world: World) -> None:
    """SIGSTOP of Redis for five seconds."""
    assert world.redis is not None
    assert world.redis.process is not None
    world.redis.process.send_signal(signal.SIGSTOP)
    await asyncio.sleep(5.0)
    world.redis.process.send_signal(signal.SIGCONT)


ANSWERED = frozenset({"OK", "DEGRADED"})
REFUSED_WRITES = ANSWERED | {"STORE_UNAVAILABLE"}
AWAY = ANSWERED | {"UNAVAILABLE"}

SCENARIOS: dict[str, Scenario] = {
    "triton_killed": Scenario(triton_killed, ANSWERED, 10.0),
    "stub_killed": Scenario(stub_killed, ANSWERED, 3.0),
    "both_stubs_killed": Scenario(both_stubs_killed, ANSWERED, 3.0),
    "triton_stopped": Scenario(triton_stopped, ANSWERED, 10.0),
    "stub_stopped": Scenario(stub_stopped, ANSWERED, 10.0),
    "server_killed": Scenario(server_killed, AWAY, 5.0 + BEFORE_SECONDS),
    "server_restarted": Scenario(server_restarted, AWAY, 10.0),
    "redis_killed": Scenario(redis_killed, REFUSED_WRITES, 5.0 + 3.0, "redis"),
    "redis_stopped": Scenario(redis_stopped, REFUSED_WRITES, 5.0 + 3.0, "redis"),
}


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=sorted(SCENARIOS), default=sorted(SCENARIOS))
    options = parser.parse_args()
    install_environment(ENVIRONMENT)
    rows, figures, failures = [], {}, []
    with tempfile.TemporaryDirectory() as name:
        realistic_release(Path(name) / "release")
        write_histories(Path(name) / "events.parquet", len(USERS))
        for chosen in options.only:
            directory = Path(name) / chosen
            directory.mkdir()
            (directory / "repository").symlink_to(Path(name) / "release", target_is_directory=True)
            row, problem = asyncio.run(played(SCENARIOS[chosen], directory))
            rows.append((chosen, *row.values()))
            figures[chosen] = row
            failures += [f"{chosen}: {problem}"] if problem else []
    columns = ("fault", "seen", "back, s", "within, s", "longest call, s", "acknowledged", "lost")
    show("Faults under load", columns, rows, {"benchmark": "faults", "failures": failures, **figures})
    if failures:
        sys.exit("\n".join(failures))


async def played(scenario: Scenario, directory: Path) -> tuple[dict[str, object], str]:
    """Play one scenario in a directory with a repository; returns its figures, and what was wrong, empty if nothing."""
    redis = None
    if scenario.store == "redis":
        redis = RedisServer(directory, "--appendonly", "yes", "--appendfsync", "always")
        await asyncio.to_thread(redis.start)
    store = ["--store", redis.url] if redis else []
    servers: list[ServerProcess] = []

    events = str(directory.parent / "events.parquet")

    def start(*flags: str) -> ServerProcess:
        flags = ("--cache-entries", "0", "--history-limit", "4096", "--bootstrap-events", events, *store, *flags)
        servers.append(ServerProcess(directory, ENVIRONMENT, *flags))
        servers[-1].wait_until_serving()
        return servers[-1]

    try:
        world = World(start, await asyncio.to_thread(start), Seen(), redis)
        return await _under_load(world, scenario)
    finally:
        for server in servers:
            await asyncio.to_thread(server.end)
        if redis is not None:
            redis.kill()


async def _under_load(world: World, scenario: Scenario) -> tuple[dict[str, object], str]:
    async with AsyncSegrecClient(world.server.address) as client:
        seen = world.seen
        calls = [_ask(client, seen, number) for number in range(7)] + [_record(client, seen, n) for n in range(2)]
        load = asyncio.gather(*calls)
        await asyncio.sleep(BEFORE_SECONDS)
        begun = time.monotonic()
        await scenario.fault(world)
        while time.monotonic() - begun < LONGEST_SECONDS:
            await asyncio.sleep(0.2)
            if time.monotonic() - begun > seen.back_seconds(begun) + AFTER_SECONDS:
                break
        load.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await load
        lost = await _lost(client, seen)
    outcomes, back = seen.since(begun), seen.back_seconds(begun)
    row: dict[str, object] = {
        "seen": ", ".join(f"{value:,} {key}" for key, value in sorted(outcomes.items(), key=lambda one: -one[1])),
        "back": round(back, 1),
        "within": scenario.back_within,
        "longest": round(seen.longest, 2),
        "acknowledged": len(seen.acknowledged),
        "lost": lost,
    }
    problems = [f"callers saw {code}" for code in sorted(set(outcomes) - scenario.allowed)]
    problems += [f"{lost} acknowledged events are lost"] if lost else []
    problems += [f"back after {back:.1f} s, not {scenario.back_within:g}"] if back > scenario.back_within else []
    return row, "; ".join(problems)


async def _ask(client: AsyncSegrecClient, seen: Seen, number: int) -> None:
    for turn in count(number, 7):
        user, start = USERS[turn % len(USERS)], time.monotonic()
        try:
            answer = await (client.segment(user) if number < 4 else client.recommend(user))
            seen.note(start, "DEGRADED" if answer.info.degraded else "OK")
        except SegrecError as error:
            seen.note(start, error.code.name)
        await asyncio.sleep(PAUSE_SECONDS)


async def _record(client: AsyncSegrecClient, seen: Seen, number: int) -> None:
    for turn in count(number, 2):
        event_id, start = f"event-{turn}", time.monotonic()
        event = UserEvent(
            user_id=f"recorder-{number}", event=Event(item_id="item-001", action="view", event_id=event_id)
        )
        try:
            response = await client.record([event])
            seen.note(start, error_of_status(response.refused[0].status).reason if response.refused else "OK")
            if response.stored_count:
                seen.acknowledged.append(event_id)
        except SegrecError as error:
            seen.note(start, error.code.name)
        await asyncio.sleep(PAUSE_SECONDS)


async def _lost(client: AsyncSegrecClient, seen: Seen) -> int:
    stored = 0
    for number in range(2):
        stored += (await client.history(f"recorder-{number}", limit=1)).total_size
    return max(0, len(seen.acknowledged) - stored)


if __name__ == "__main__":
    main()
