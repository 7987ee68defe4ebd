"""What a shadow costs the answers: unary `Recommend` for fresh users, with a shadow and without one, by turns.

    python -m tests.benchmarks.bench_shadow --seconds 10

One server with two releases of a usual size. Calls come at half of the rate at which they can be answered without a
shadow, each for a user never asked before; the traffic is changed between the turns, by the file, as in production.
Medians over the turns. The load generator runs on the same cores. Ends in one JSON line.
"""

import argparse
import asyncio
import statistics
import tempfile
from pathlib import Path

import grpc
import numpy as np
from segrec.v1 import model_service_pb2
from segrec.v1 import segrec_service_pb2 as pb
from segrec.v1.model_service_pb2_grpc import ModelServiceStub
from segrec.v1.segrec_service_pb2_grpc import SegrecServiceStub

from server.core.repository.traffic import change_traffic
from tests.benchmarks.bench_unary import CONCURRENCY, load, steady
from tests.benchmarks.common import realistic_release, show, write_histories
from tests.support.server import ServerProcess
from tests.support.waiting import wait_until_async

STABLE, SHADOW = 1, 2


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=10.0, help="Length of each measurement.")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--users", type=int, default=60_000)
    parser.add_argument("--triton-environment", type=Path, default=Path(".triton"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        for number in (STABLE, SHADOW):
            realistic_release(directory / "repository", number)
        users = write_histories(directory / "events.parquet", options.users)
        set_shadow(directory / "repository", 0)
        flags = ("--bootstrap-events", str(directory / "events.parquet"))
        server = ServerProcess(directory, options.triton_environment.absolute(), *flags)
        try:
            server.wait_until_serving()
            asyncio.run(measure(server, users, options))
        finally:
            server.end()


def set_shadow(repository: Path, number: int) -> None:
    """Have a release computed beside the stable one; 0 for none."""
    change_traffic(
        repository,
        lambda before: before.with_stable(STABLE).with_answering(shadow=number),
        what="traffic",
        who="the benchmark",
    )


async def measure(server: ServerProcess, users: list[str], options: argparse.Namespace) -> None:
    """All turns, and their table."""
    segrec = SegrecServiceStub(grpc.aio.insecure_channel(server.address))
    models = ModelServiceStub(grpc.aio.insecure_channel(server.model_address))

    async def is_shadow() -> bool:
        request = model_service_pb2.GetReleaseRequest(release=SHADOW)
        state = (await models.GetRelease(request)).release.state
        return bool(state == model_service_pb2.RELEASE_STATE_SHADOW)

    async def is_none() -> bool:
        return not await is_shadow()

    fresh = iter(users)

    async def ask() -> object:
        return await segrec.Recommend(pb.RecommendRequest(user_id=next(fresh)))

    answered, length = await load(ask, 3.0, CONCURRENCY)
    half = len(answered) / length / 2
    turn_seconds = min(options.seconds, len(users) // (2 * options.repeats + 2) / half)
    seconds: dict[int, list[list[float]]] = {0: [], SHADOW: []}
    for _ in range(options.repeats):
        for number, found in seconds.items():
            set_shadow(server.repository, number)
            await wait_until_async(is_shadow if number else is_none)
            found.append((await steady(ask, half, turn_seconds))[0])
    live = (await models.GetRelease(model_service_pb2.GetReleaseRequest(release=SHADOW))).release.live
    report(half, seconds, live.compared_count)


def report(half: float, seconds: dict[int, list[list[float]]], compared: int) -> None:
    """Print the table and the JSON line."""
    medians = {
        number: [statistics.median(1000 * of(turn) for turn in turns) for of in (_median, p99)]
        for number, turns in seconds.items()
    }
    (p50, p99_), (p50_beside, p99_beside) = medians[0], medians[SHADOW]
    asked = sum(map(len, seconds[SHADOW]))
    show(
        "Recommend beside a shadow",
        ("what", "without", "with a shadow", "ratio"),
        [
            ("p50, ms", p50, p50_beside, p50_beside / p50),
            ("p99, ms", p99_, p99_beside, p99_beside / p99_),
            ("calls/s", half, half, 1.0),
            ("compared, share", 0.0, compared / asked, ""),
        ],
        {
            "benchmark": "shadow",
            "calls_per_second": round(half),
            "p50_ms": round(p50, 2),
            "p50_ratio": round(p50_beside / p50, 2),
            "p99_ms": round(p99_, 2),
            "p99_ratio": round(p99_beside / p99_, 2),
            "compared_share": round(compared / asked, 3),
        },
    )


def p99(seconds: list[float]) -> float:
    """The 99th percentile."""
    return float(np.quantile(seconds, 0.99))


def _median(seconds: list[float]) -> float:
    return float(np.median(seconds))


if __name__ == "__main__":
    main()
