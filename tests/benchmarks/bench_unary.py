"""Unary `Segment` against an empty gRPC server, a raw call to Triton, and other servers of the same ONNX file.

    python -m tests.benchmarks.bench_unary --turns 6 --seconds 2 --peers --base CHECKOUT

Everything is measured by turns in one run, because the load of a machine changes from minute to minute:

- Cached: `Segment` for users whose embeddings are cached, against an empty grpc.aio server under the same load. The
  figure is the processor time of a call at the server; calls a second stand beside it.
- Cold: p99 of `Segment` for users never asked before, at half of the rate at which they can be answered, against p99
  of one Triton call of one history at that same rate.
- Alone (`--peers`): one caller at a time, cold, against LitServe and BentoML. They get ready inputs, and answer the
  embedding alone. They run in an environment of their own, see `peers/`.
- `--base`: a checkout of another commit, whose server takes turns too.

The load generator runs on the same cores. Ends in one JSON line. Goals: processor time of a cached call ≤ 1 / 0.85 of
an empty one's, cold p99 ≤ 2 × Triton's, alone p50 ≤ LitServe's, cold capacity ≥ 1.35 × that of commit 69c64c1.
"""

import argparse
import asyncio
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path

import grpc
import numpy as np
import psutil
from segrec.v1 import segrec_service_pb2 as pb
from segrec.v1.segrec_service_pb2_grpc import SegrecServiceStub

from server.adapters.triton import TritonEncoder
from tests.benchmarks.common import realistic_release, show, write_histories
from tests.benchmarks.peers.encoder_servers import PEERS, histories, peer_server
from tests.support.server import ServerProcess, variables_of

GOALS = {"cached": 0.85, "cold": 2.0, "alone": 1.0, "capacity": 1.35}
CONCURRENCY = 32
WARM_USERS = 1000

EMPTY_SERVER = """
import asyncio, grpc
from segrec.v1 import segrec_service_pb2 as pb, segrec_service_pb2_grpc
class Empty(segrec_service_pb2_grpc.SegrecServiceServicer):
    async def Segment(self, request, context):
        return pb.SegmentResponse()
async def main():
    server = grpc.aio.server()
    segrec_service_pb2_grpc.add_SegrecServiceServicer_to_server(Empty(), server)
    print(server.add_insecure_port("127.0.0.1:0"), flush=True)
    await server.start()
    await server.wait_for_termination()
asyncio.run(main())
"""

Call = Callable[[], Awaitable[object]]


@dataclass(frozen=True, slots=True)
class Turn:
    """One turn: calls a second, processor time of a call at the server in microseconds, and p50 and p99 in ms."""

    rate: float
    server_us: float
    p50: float
    p99: float


@dataclass(slots=True)
class Measured:
    """The turns of one server at one load."""

    turns: list[Turn] = field(default_factory=list)

    def median(self, name: str) -> float:
        return float(statistics.median(getattr(turn, name) for turn in self.turns))


@dataclass(frozen=True, slots=True)
class Target:
    """A server under load: its process, one call for a warm user, and one for a user never asked before."""

    process: psutil.Process
    warm: Call
    cold: Call


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=6)
    parser.add_argument("--seconds", type=float, default=2.0, help="Length of a turn.")
    parser.add_argument("--users", type=int, default=60_000)
    parser.add_argument("--base", type=Path, help="Checkout of another commit, with its .triton.")
    parser.add_argument("--peers", action="store_true", help="Also LitServe and BentoML; installs them once.")
    parser.add_argument("--triton-environment", type=Path, default=Path(".triton"))
    options = parser.parse_args()
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        release = realistic_release(directory / "ours" / "repository")
        users = write_histories(directory / "events.parquet", options.users)
        servers = {"ours": stack.enter_context(segrec(directory / "ours", directory / "events.parquet", options))}
        if options.base:
            base = options.base.absolute()
            make = "from tests.benchmarks.common import *; from pathlib import Path; "
            make += (
                f"realistic_release(Path('base/repository')); write_histories(Path('base.parquet'), {options.users})"
            )
            subprocess.run([sys.executable, "-c", make], cwd=directory, env=variables_of(base), check=True)
            servers["base"] = stack.enter_context(segrec(directory / "base", directory / "base.parquet", options, base))
        asyncio.run(measure(servers, users, release / "model.onnx", options))


@contextmanager
def segrec(
    directory: Path, events: Path, options: argparse.Namespace, code: Path | None = None
) -> Iterator[ServerProcess]:
    """A server that answers, with the histories of the log."""
    environment = options.triton_environment.absolute() if code is None else code / ".triton"
    server = ServerProcess(
        directory, environment, "--bootstrap-events", str(events), "--poll-seconds", "0.5", code=code
    )
    try:
        server.wait_until_serving()
        yield server
    finally:
        server.end()


@contextmanager
def empty_server() -> Iterator[tuple[psutil.Process, str]]:
    """A grpc.aio server with a handler that returns an empty answer: its process and its address."""
    process = subprocess.Popen([sys.executable, "-c", EMPTY_SERVER], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        yield psutil.Process(process.pid), f"127.0.0.1:{process.stdout.readline().strip()}"
    finally:
        process.terminate()
        process.wait()
        process.stdout.close()


async def measure(
    servers: dict[str, ServerProcess], users: Sequence[str], model: Path, options: argparse.Namespace
) -> None:
    """All measurements, and their table."""
    async with AsyncExitStack() as stack:
        targets = {
            name: await stack.enter_async_context(target(psutil.Process(server.process.pid), server.address, users))
            for name, server in servers.items()
        }
        empty = await stack.enter_async_context(target(*stack.enter_context(empty_server()), users))
        cached = await by_turns(
            {"empty": empty.warm, **{name: one.warm for name, one in targets.items()}},
            {"empty": empty.process, **{name: one.process for name, one in targets.items()}},
            lambda call: load(call, options.seconds, CONCURRENCY),
            options.turns,
        )
        processes = {name: one.process for name, one in targets.items()}
        capacity = await by_turns(
            {name: one.cold for name, one in targets.items()},
            processes,
            lambda call: load(call, options.seconds, CONCURRENCY),
            max(2, options.turns // 2),
        )
        half = capacity["ours"].median("rate") / 2
        encoder = TritonEncoder(
            servers["ours"].triton_address, servers["ours"].repository / "user_encoder" / "config.pbtxt"
        )
        stack.push_async_callback(encoder.close)
        inputs = histories()
        cold = await by_turns(
            {"raw": lambda: encoder.encode(1, next(inputs), 5.0), **{name: one.cold for name, one in targets.items()}},
            {"raw": targets["ours"].process, **processes},
            lambda call: steady(call, half, options.seconds),
            options.turns,
        )
        alone_calls = {name: one.cold for name, one in targets.items()}
        if options.peers:
            for peer in PEERS:
                process, alone_calls[peer] = await stack.enter_async_context(peer_server(peer, model))
                processes[peer] = process
        alone = await by_turns(
            alone_calls, processes, lambda call: load(call, options.seconds, 1), max(3, options.turns // 2)
        )
    report(cached, capacity, half, cold, alone)


@asynccontextmanager
async def target(process: psutil.Process, address: str, users: Sequence[str]) -> AsyncIterator[Target]:
    """A server of `SegrecService`; its warm users have been asked once."""
    async with grpc.aio.insecure_channel(address) as channel:
        stub = SegrecServiceStub(channel)
        warm, fresh = cycle(users[:WARM_USERS]), iter(users[WARM_USERS:])
        for user_id in users[:WARM_USERS]:
            await stub.Segment(pb.SegmentRequest(user_id=user_id))
        yield Target(
            process,
            lambda: stub.Segment(pb.SegmentRequest(user_id=next(warm))),
            lambda: stub.Segment(pb.SegmentRequest(user_id=next(fresh))),
        )


async def by_turns(
    calls: dict[str, Call],
    processes: dict[str, psutil.Process],
    run: Callable[[Call], Awaitable[tuple[list[float], float]]],
    turns: int,
) -> dict[str, Measured]:
    """Each call under the same load, one after the other, for so many turns."""
    found = {name: Measured() for name in calls}
    for _ in range(turns):
        for name, call in calls.items():
            before = processor_seconds(processes[name])
            seconds, length = await run(call)
            used = processor_seconds(processes[name]) - before
            p50, p99 = 1000 * np.quantile(seconds, [0.5, 0.99])
            found[name].turns.append(Turn(len(seconds) / length, 1e6 * used / len(seconds), float(p50), float(p99)))
    return found


def processor_seconds(process: psutil.Process) -> float:
    """Processor time of a process and of all that it has started and that runs now."""
    times = [one.cpu_times() for one in (process, *process.children(recursive=True))]
    return sum(one.user + one.system for one in times)


async def load(call: Call, seconds: float, callers: int) -> tuple[list[float], float]:
    """Seconds of each call with so many callers, each of whom calls again at once; and the length of it all."""
    start = time.perf_counter()
    found: list[float] = []

    async def caller() -> None:
        while (before := time.perf_counter()) - start < seconds:
            await call()
            found.append(time.perf_counter() - before)

    await asyncio.gather(*(caller() for _ in range(callers)))
    return found, time.perf_counter() - start


async def steady(call: Call, per_second: float, seconds: float) -> tuple[list[float], float]:
    """Seconds from the moment a call was due to its answer, at a steady rate whatever the answers take."""
    start = time.perf_counter()
    found: list[float] = []

    async def one(due: float) -> None:
        await call()
        found.append(time.perf_counter() - due)

    calls = []
    for number in range(int(per_second * seconds)):
        due = start + number / per_second
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        calls.append(asyncio.create_task(one(due)))
    await asyncio.gather(*calls)
    return found, time.perf_counter() - start


def report(
    cached: dict[str, Measured],
    capacity: dict[str, Measured],
    half: float,
    cold: dict[str, Measured],
    alone: dict[str, Measured],
) -> None:
    """Print the table and the JSON line."""
    figures = {
        "cached": cached["empty"].median("server_us") / cached["ours"].median("server_us"),
        "cached_wall": cached["ours"].median("rate") / cached["empty"].median("rate"),
        "cold": cold["ours"].median("p99") / cold["raw"].median("p99"),
        **({"capacity": capacity["ours"].median("rate") / capacity["base"].median("rate")} if "base" in cold else {}),
        **({"alone": alone["ours"].median("p50") / alone["litserve"].median("p50")} if "litserve" in alone else {}),
    }
    loads = {"cached, 32 callers": cached, "cold, 32 callers": capacity, f"cold, {half:.0f}/s": cold, "alone": alone}
    rows = [
        (what, name, one.median("rate"), one.median("server_us"), one.median("p50"), one.median("p99"))
        for what, group in loads.items()
        for name, one in group.items()
    ]
    medians = {
        f"{what} {name}": {key: round(one.median(key), 2) for key in ("rate", "server_us", "p50", "p99")}
        for what, group in loads.items()
        for name, one in group.items()
    }
    show(
        "Unary Segment, medians of the turns",
        ("load", "server", "calls/s", "processor time a call, µs", "p50, ms", "p99, ms"),
        rows,
        {
            "benchmark": "unary",
            **{name: round(value, 3) for name, value in figures.items()},
            "goals": GOALS,
            "medians": medians,
        },
    )


if __name__ == "__main__":
    main()
