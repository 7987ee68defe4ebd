"""Unary calls beside streams: what ten streams of full chunks cost the callers of `Segment`, and whether a row is lost.

    python -m tests.benchmarks.bench_lanes

200 calls a second come at random moments, each for another user, without a cache; first alone, then beside ten streams
of 1,024 users a chunk from a process of its own. Goal: p99 beside streams at most five times that without, no call and
no row degraded or failed, and less than 1.5 GiB of memory. Ends in one JSON line.
"""

import argparse
import asyncio
import json
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import psutil
from segrec import AsyncSegrecClient
from segrec.errors import error_of_status
from segrec.v1 import segrec_service_pb2
from segrec.v1.segrec_service_pb2_grpc import SegrecServiceStub

from server.adapters.embedded_triton.environment import install_environment
from tests.benchmarks.common import realistic_release, show, write_histories
from tests.support.server import ServerProcess
from tests.support.triton import ENVIRONMENT

RATE = 200
STREAMS = 10
USERS = 20_000
GOAL_RATIO = 5.0
GOAL_BYTES = 1.5 * 2**30


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--streams", metavar="ADDRESS", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.streams:
        print(json.dumps(asyncio.run(_stream_all(options.streams, options.seconds))))
        return
    install_environment(ENVIRONMENT)
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        realistic_release(directory / "repository")
        write_histories(directory / "events.parquet", USERS)
        server = ServerProcess(
            directory, ENVIRONMENT, "--cache-entries", "0", "--bootstrap-events", str(directory / "events.parquet")
        )
        try:
            server.wait_until_serving()
            asyncio.run(_call(server.address, 2.0))  # warm
            alone = asyncio.run(_call(server.address, options.seconds))
            with _streams(server.address, options.seconds + 4.0) as process:
                time.sleep(2.0)
                beside = asyncio.run(_call(server.address, options.seconds))
                rows = json.loads(process.communicate()[0])
            with _streams(server.address, options.seconds / 2) as process:
                quiet = json.loads(process.communicate()[0])
            memory = psutil.Process(server.process.pid).memory_info().rss
        finally:
            server.end()
    ratio = beside["p99"] / alone["p99"]
    table = [
        ("Segment, p50, ms", alone["p50"], beside["p50"], beside["p50"] / alone["p50"]),
        ("Segment, p99, ms", alone["p99"], beside["p99"], ratio),
        ("Segment, outcomes", str(alone["outcomes"]), str(beside["outcomes"]), ""),
        ("rows a second without and with calls", quiet["per_second"], rows["per_second"], ""),
        ("rows, outcomes", str(quiet["outcomes"]), str(rows["outcomes"]), ""),
        ("memory, MiB", "", memory >> 20, ""),
    ]
    figures = {"alone": alone, "beside": beside, "rows": rows, "rows_without_calls": quiet, "memory_mib": memory >> 20}
    columns = (f"{RATE} calls a second", "alone", f"beside {STREAMS} streams", "ratio")
    show("Unary calls beside streams", columns, table, {"benchmark": "lanes", **figures, "p99_ratio": round(ratio, 2)})
    outcomes = {*alone["outcomes"], *beside["outcomes"], *rows["outcomes"], *quiet["outcomes"]}
    if ratio > GOAL_RATIO or outcomes != {"OK"} or memory > GOAL_BYTES:
        sys.exit(f"Above the goal: p99 {ratio:.1f} × (at most {GOAL_RATIO}), outcomes {outcomes}, {memory >> 20} MiB.")


def _streams(address: str, seconds: float) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "tests.benchmarks.bench_lanes", "--streams", address, "--seconds", str(seconds)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


async def _stream_all(address: str, seconds: float) -> dict[str, Any]:
    """Rows a second and outcomes of `STREAMS` streams that ask for users as long as `seconds`."""
    end = time.monotonic() + seconds
    outcomes: Counter[str] = Counter()

    async def stream(client: AsyncSegrecClient) -> None:
        def users() -> Any:
            number = 0
            while time.monotonic() < end:
                yield f"user-{number % USERS:08d}"
                number += 1

        async with client.stream_segment(users()) as rows:
            async for row in rows:
                degraded = "degraded" if row.result.info.degraded else "OK"
                outcomes[error_of_status(row.status).reason or degraded] += 1

    begun = time.monotonic()
    async with AsyncSegrecClient(address) as client:
        await asyncio.gather(*(stream(client) for _ in range(STREAMS)))
    return {"per_second": round(outcomes.total() / (time.monotonic() - begun)), "outcomes": dict(outcomes)}


async def _call(address: str, seconds: float) -> dict[str, Any]:
    """Times of calls in milliseconds, counted from the moment at which each was due, and outcomes."""
    times: list[float] = []
    outcomes: Counter[str] = Counter()

    async def one(stub: Any, number: int, due: float) -> None:
        request = segrec_service_pb2.SegmentRequest(user_id=f"user-{number * 7919 % USERS:08d}")
        try:
            answer = await stub.Segment(request, timeout=2.0)
            outcomes["degraded" if answer.info.degraded else "OK"] += 1
        except grpc.aio.AioRpcError as error:
            outcomes[error.code().name] += 1
        times.append(1e3 * (time.monotonic() - due))

    rng = np.random.default_rng(0)
    async with grpc.aio.insecure_channel(address) as channel:
        stub: Any = SegrecServiceStub(channel)
        calls: list[asyncio.Task[None]] = []
        due = begun = time.monotonic()
        while due < begun + seconds:
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            calls.append(asyncio.create_task(one(stub, len(calls), due)))
            due += rng.exponential(1 / RATE)
        await asyncio.gather(*calls)
    p50, p99 = np.percentile(times, [50, 99])
    return {"p50": round(float(p50), 2), "p99": round(float(p99), 2), "outcomes": dict(outcomes)}


if __name__ == "__main__":
    main()
