"""Unary `Segment`, cached and cold, against an empty gRPC server and against a raw call to Triton.

    python -m tests.benchmarks.bench_unary --seconds 10

Cached: calls a second of `Segment` for users whose embeddings are cached, against an empty grpc.aio unary server with
the same messages, under the same load generator, by turns. Cold: p99 of `Segment` for users never asked before, at half
of the rate at which they can be answered, against p99 of one Triton call of one history at that same rate. The load
generator runs on the same cores. Ends in one JSON line. Goals: cached ≥ 0.60 × empty, cold p99 ≤ 2.5 × Triton.
"""

import argparse
import asyncio
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from itertools import cycle, islice
from pathlib import Path

import grpc
import numpy as np
from segrec.v1 import segrec_service_pb2 as pb
from segrec.v1.segrec_service_pb2_grpc import SegrecServiceStub

from server.adapters.triton import TritonEncoder
from server.core.features import Inputs
from tests.benchmarks.common import realistic_release, show, write_histories
from tests.support.server import ServerProcess

CACHED_GOAL, COLD_GOAL = 0.60, 2.5
CONCURRENCY = 32

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


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=10.0, help="Length of each measurement.")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--users", type=int, default=60_000)
    parser.add_argument("--triton-environment", type=Path, default=Path(".triton"))
    options = parser.parse_args()
    empty = subprocess.Popen([sys.executable, "-c", EMPTY_SERVER], stdout=subprocess.PIPE, text=True)
    assert empty.stdout is not None
    empty_address = f"127.0.0.1:{empty.stdout.readline().strip()}"
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        realistic_release(directory / "repository")
        users = write_histories(directory / "events.parquet", options.users)
        flags = ("--bootstrap-events", str(directory / "events.parquet"))
        server = ServerProcess(directory, options.triton_environment.absolute(), *flags)
        try:
            server.wait_until_serving()
            asyncio.run(measure(server, empty_address, users, options))
        finally:
            server.end()
            empty.terminate()
            empty.wait()
            empty.stdout.close()


async def measure(server: ServerProcess, empty_address: str, users: list[str], options: argparse.Namespace) -> None:
    """All measurements, and their table."""
    ours, empty = (SegrecServiceStub(grpc.aio.insecure_channel(address)) for address in (server.address, empty_address))
    warm = cycle(users[:1000])
    cached_rates, empty_rates = [], []
    for _ in islice(warm, 1000):
        await ours.Segment(pb.SegmentRequest(user_id=next(warm)))
    for _ in range(options.repeats):
        cached_rates.append(await rate(lambda: ours.Segment(pb.SegmentRequest(user_id=next(warm))), options.seconds))
        empty_rates.append(await rate(lambda: empty.Segment(pb.SegmentRequest(user_id=next(warm))), options.seconds))
    fresh = iter(users[1000:])
    capacity = await rate(lambda: ours.Segment(pb.SegmentRequest(user_id=next(fresh))), min(3.0, options.seconds))
    half = capacity / 2
    encoder = TritonEncoder(server.triton_address, server.repository / "user_encoder" / "config.pbtxt")
    inputs = one_history()
    raw_seconds, cold_seconds = [], []
    for _ in range(options.repeats):
        count = min(int(half * options.seconds), len(users) // (options.repeats + 3))
        raw_seconds.append(p99(await latencies(lambda: encoder.encode(1, next(inputs), 5.0), half, count)))
        calls = list(islice(fresh, count))
        asked = iter(calls)
        cold_seconds.append(
            p99(await latencies(lambda: ours.Segment(pb.SegmentRequest(user_id=next(asked))), half, len(calls)))  # noqa: B023 used up at once
        )
    await encoder.close()
    report(cached_rates, empty_rates, half, cold_seconds, raw_seconds)


def report(
    cached: list[float], empty: list[float], half: float, cold_seconds: list[float], raw_seconds: list[float]
) -> None:
    """Print the table and the JSON line."""
    cached_ratio = statistics.median(cached) / statistics.median(empty)
    cold_ratio = statistics.median(cold_seconds) / statistics.median(raw_seconds)
    show(
        "Unary Segment",
        ("what", "value"),
        [
            ("empty server, calls/s", statistics.median(empty)),
            ("cached, calls/s", statistics.median(cached)),
            ("cached / empty", cached_ratio),
            ("half load, calls/s", half),
            ("raw Triton call p99, ms", 1000 * statistics.median(raw_seconds)),
            ("cold p99, ms", 1000 * statistics.median(cold_seconds)),
            ("cold / raw", cold_ratio),
        ],
        {
            "benchmark": "unary",
            "empty_per_second": round(statistics.median(empty)),
            "cached_per_second": round(statistics.median(cached)),
            "cached_ratio": round(cached_ratio, 3),
            "cached_goal": CACHED_GOAL,
            "half_load_per_second": round(half),
            "raw_p99_ms": round(1000 * statistics.median(raw_seconds), 2),
            "cold_p99_ms": round(1000 * statistics.median(cold_seconds), 2),
            "cold_ratio": round(cold_ratio, 2),
            "cold_goal": COLD_GOAL,
            "reached": cached_ratio >= CACHED_GOAL and cold_ratio <= COLD_GOAL,
        },
    )


async def rate(call: Call, seconds: float) -> float:
    """Calls a second with `CONCURRENCY` of them under way."""
    done = 0
    start = time.perf_counter()

    async def caller() -> None:
        nonlocal done
        while time.perf_counter() - start < seconds:
            await call()
            done += 1

    await asyncio.gather(*(caller() for _ in range(CONCURRENCY)))
    return done / (time.perf_counter() - start)


async def latencies(call: Call, per_second: float, count: int) -> list[float]:
    """Seconds from the moment a call was due to its answer, at a steady rate whatever the answers take."""
    start = time.perf_counter()
    found: list[float] = []

    async def one(due: float) -> None:
        await call()
        found.append(time.perf_counter() - due)

    calls = []
    for number in range(count):
        due = start + number / per_second
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        calls.append(asyncio.create_task(one(due)))
    await asyncio.gather(*calls)
    return found


def p99(seconds: list[float]) -> float:
    """The 99th percentile."""
    return float(np.quantile(seconds, 0.99))


def one_history() -> Iterator[Inputs]:
    """Encoder inputs of one history each, (1, L), lengths as of the users asked."""
    rng = np.random.default_rng(0)
    while True:
        length = int(np.clip(rng.geometric(1 / 20), 8, 200))
        yield {
            "item_index": rng.integers(1, 1000, (1, length), np.int32),
            "action_index": rng.integers(1, 4, (1, length), np.int32),
            "value": rng.normal(size=(1, length)).astype(np.float32),
            "gap_index": rng.integers(1, 20, (1, length), np.int32),
        }


if __name__ == "__main__":
    main()
