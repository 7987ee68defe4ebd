"""More calls than the server can answer: how much of its capacity callers still get, and what the others are told.

    python -m tests.benchmarks.bench_overload

Capacity is what 128 callers get who each ask again at once, without a cache. Then calls come at 1.5 and 4 times that
rate, whatever the answers take, from a process of its own, with a deadline of two seconds and without retries; the
capacity is found anew before each. Goodput counts answers that are in time and not degraded. The same for
`RecordEvents`. At the end come bursts of calls at once, which must end in OK or RESOURCE_EXHAUSTED. Goal: goodput of at
least 90 % of the capacity. Ends in one JSON line.
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
from segrec.errors import error_of_status
from segrec.v1 import event_service_pb2, segrec_service_pb2
from segrec.v1.common_pb2 import Event
from segrec.v1.event_service_pb2_grpc import EventServiceStub
from segrec.v1.segrec_service_pb2_grpc import SegrecServiceStub

from server.adapters.embedded_triton.environment import install_environment
from tests.benchmarks.common import realistic_release, show, write_histories
from tests.support.server import ServerProcess
from tests.support.triton import ENVIRONMENT

DEADLINE_SECONDS = 2.0
CONCURRENCY = 128
USERS = 20_000
GOAL = 0.9


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--times", type=float, nargs="+", default=[1.5, 4.0])
    parser.add_argument("--bursts", type=int, nargs="+", default=[1500, 3000, 6000])
    parser.add_argument("--caller", nargs=3, metavar=("ADDRESS", "METHOD", "RATE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.caller:
        address, method, rate = options.caller
        print(json.dumps(asyncio.run(_call(address, method, float(rate), options.seconds))))
        return
    install_environment(ENVIRONMENT)
    rows: list[tuple[object, ...]] = []
    figures: dict[str, object] = {"benchmark": "overload"}
    shares = []
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        realistic_release(directory / "repository")
        write_histories(directory / "events.parquet", USERS)
        server = ServerProcess(
            directory, ENVIRONMENT, "--cache-entries", "0", "--bootstrap-events", str(directory / "events.parquet")
        )
        try:
            server.wait_until_serving()
            for method in ("Segment", "RecordEvents"):
                for times in options.times:
                    capacity = _ask(server.address, method, 0.0, options.seconds / 2)["per_second"]
                    seen = _ask(server.address, method, times * capacity, options.seconds)
                    shares.append(seen["per_second"] / capacity)
                    figures[f"{method} at {times:g}"] = seen | {"capacity": capacity, "share": round(shares[-1], 3)}
                    rows.append((f"{method} at {times:g} ×", capacity, seen["per_second"], shares[-1], _text(seen)))
            for calls in options.bursts:
                seen = _ask(server.address, "Segment", -float(calls), 1.0)
                figures[f"burst of {calls}"] = seen
                rows.append((f"{calls:,} calls at once", "", "", "", _text(seen)))
            refusal = asyncio.run(_bare_refusal(max(options.times) * capacity, options.seconds))
            figures["bare_refusal_ms"] = refusal
            rows.append((f"a bare server that refuses all: {refusal:.2f} ms of CPU a call", "", "", "", ""))
            figures["memory_mib"] = psutil.Process(server.process.pid).memory_info().rss >> 20
        finally:
            server.end()
    columns = ("load", "capacity, calls/s", "in time, calls/s", "share", "outcomes")
    show("More than the server can answer", columns, rows, figures | {"goal": GOAL, "least": round(min(shares), 3)})
    if min(shares) < GOAL:
        sys.exit(f"Goodput fell to {min(shares):.0%} of the capacity, below {GOAL:.0%}.")


async def _bare_refusal(rate: float, seconds: float) -> float:
    """Milliseconds of CPU for each call that a gRPC server of nothing else refuses: what no limit of calls can save."""

    async def refuse(_: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> None:
        await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED)

    class Refuse(grpc.aio.ServerInterceptor):
        async def intercept_service(self, *_: Any) -> Any:
            return grpc.unary_unary_rpc_method_handler(refuse)

    server = grpc.aio.server(interceptors=[Refuse()])
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    begun = time.process_time()
    seen = await asyncio.to_thread(_ask, f"127.0.0.1:{port}", "Segment", rate, seconds)
    spent = time.process_time() - begun
    await server.stop(None)
    calls: int = sum(seen["outcomes"].values())
    return round(1e3 * spent / calls, 3)


def _text(seen: dict[str, Any]) -> str:
    return ", ".join(f"{value:,} {key}" for key, value in seen["outcomes"].items())


def _ask(address: str, method: str, rate: float, seconds: float) -> dict[str, Any]:
    """What a process of its own sees; see `_call`."""
    command = [sys.executable, "-m", "tests.benchmarks.bench_overload", "--seconds", str(seconds)]
    done = subprocess.run(
        [*command, "--caller", address, method, str(rate)], capture_output=True, text=True, check=True
    )
    seen: dict[str, Any] = json.loads(done.stdout)
    return seen


async def _call(address: str, method: str, rate: float, seconds: float) -> dict[str, Any]:
    """Call for `seconds` at `rate` calls a second; 0 is as fast as 128 callers can, and -n is n calls at once.

    Returns the good answers a second, the outcomes, and the longest call in seconds.
    """
    options = (("grpc.enable_retries", 0), ("grpc.use_local_subchannel_pool", 1))
    channels = [grpc.aio.insecure_channel(address, options=options) for _ in range(4)]
    numbers = iter(range(10**9))
    outcomes: Counter[str] = Counter()
    good: list[float] = []
    longest = 0.0
    deadline = 30.0 if rate < 0 else DEADLINE_SECONDS

    async def one() -> None:
        nonlocal longest
        number = next(numbers)
        start = time.monotonic()
        try:
            outcome = await _one(channels[number % len(channels)], method, number, deadline)
        except grpc.aio.AioRpcError as error:
            outcome = error.code().name
        now = time.monotonic()
        longest = max(longest, now - start)
        outcomes[outcome] += 1
        if outcome == "OK":
            good.append(now)

    async def again_and_again(end: float) -> None:
        while time.monotonic() < end:
            await one()

    begun = time.monotonic()
    if rate < 0:
        await asyncio.gather(*(one() for _ in range(int(-rate))))
    elif rate == 0:
        await asyncio.gather(*(again_and_again(begun + seconds) for _ in range(CONCURRENCY)))
    else:
        rng = np.random.default_rng(0)
        due, calls = begun, set()
        while due < begun + seconds:
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            task = asyncio.create_task(one())
            calls.add(task)
            task.add_done_callback(calls.discard)
            due += rng.exponential(1 / rate)
        await asyncio.gather(*calls)
    for channel in channels:
        await channel.close()
    # The first second fills the queues, and after the last nothing new comes.
    counted = [second for second in good if begun + 1.0 <= second < begun + seconds]
    per_second = len(counted) / max(1e-9, seconds - 1.0)
    return {"per_second": round(per_second, 1), "outcomes": dict(outcomes.most_common()), "longest": round(longest, 2)}


async def _one(channel: grpc.aio.Channel, method: str, number: int, deadline: float) -> str:
    user = f"user-{number % USERS:08d}"
    if method == "RecordEvents":
        event = event_service_pb2.UserEvent(
            user_id=user, event=Event(item_id="item-001", action="view", event_id=f"e{number}-{time.monotonic_ns()}")
        )
        request = event_service_pb2.RecordEventsRequest(events=[event])
        stored = await EventServiceStub(channel).RecordEvents(request, timeout=deadline)
        return "OK" if not stored.refused else error_of_status(stored.refused[0].status).reason
    answer = await SegrecServiceStub(channel).Segment(segrec_service_pb2.SegmentRequest(user_id=user), timeout=deadline)
    return "degraded" if answer.info.degraded else "OK"


if __name__ == "__main__":
    main()
