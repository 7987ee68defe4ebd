"""Users a second through `StreamSegment`, against ONNX Runtime in one process on the same histories and cores.

    python -m tests.benchmarks.bench_stream --users 50000

The limit is ONNX Runtime alone: the same model, batches of 32 sorted by length among 1,024, the quickest found, made
before the clock starts, on as many threads as there are cores. The stream is all of it: a client in this process,
`segrec-serve`, LMDB, features, Triton, nearest centroid, all on those same cores, and no embedding cached. Both run by
turns, `--repeats` times; medians count. Ends in one JSON line. `ratio` ≥ 0.70 is the goal.
"""

import argparse
import asyncio
import statistics
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from os import sched_getaffinity
from pathlib import Path

import psutil
from segrec import SegrecClient
from segrec.v1.segrec_service_pb2 import SEGMENT_STATE_ASSIGNED

from server.adapters.lmdb_store import LmdbStore
from server.core.features import batches, features_of
from server.core.history import History
from server.core.repository.read import read_release
from tests.benchmarks.common import realistic_release, show, write_histories
from tests.support.server import ServerProcess
from training.model.onnx_inference import open_session

GOAL = 0.70


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=50_000)
    parser.add_argument("--chunk-size", type=int, default=1024)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--triton-environment", type=Path, default=Path(".triton"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        release = realistic_release(directory / "repository")
        users = write_histories(directory / "events.parquet", options.users)
        flags = ("--bootstrap-events", str(directory / "events.parquet"))
        server = ServerProcess(directory, options.triton_environment.absolute(), *flags)
        try:
            server.wait_until_serving()
            limits, streams = [], []
            for _ in range(options.repeats):
                streams.append(stream(server, users, options.chunk_size))
                limits.append(limit(directory, release, users))
            memory = psutil.Process(server.process.pid).memory_info().rss
        finally:
            server.end()
    limit_rate, stream_rate = statistics.median(limits), statistics.median(streams)
    ratio = stream_rate / limit_rate
    show(
        f"StreamSegment, {options.users:,} users, 20 events on average, chunks of {options.chunk_size}",
        ("what", "users/s"),
        [("ONNX Runtime alone", limit_rate), ("StreamSegment", stream_rate), ("ratio", ratio)],
        {
            "benchmark": "stream",
            "users": options.users,
            "limit_users_per_second": round(limit_rate),
            "users_per_second": round(stream_rate),
            "ratio": round(ratio, 3),
            "goal": GOAL,
            "reached": ratio >= GOAL,
            "server_rss_mib": memory >> 20,
        },
    )


def stream(server: ServerProcess, users: list[str], chunk_size: int) -> float:
    """Users a second, every one of them answered with a segment."""
    with SegrecClient(server.address) as client:
        start = time.perf_counter()
        with client.stream_segment(users, chunk_size=chunk_size) as rows:
            assigned = sum(row.result.assignment.state == SEGMENT_STATE_ASSIGNED for row in rows)
        seconds = time.perf_counter() - start
    assert assigned == len(users), f"{assigned} of {len(users)} users got a segment"
    return len(users) / seconds


def limit(directory: Path, release_directory: Path, users: list[str]) -> float:
    """Users a second of ONNX Runtime alone."""
    release = read_release(release_directory)
    histories = asyncio.run(_histories(directory, users))
    parts = []
    for start in range(0, len(users), 1024):  # the largest chunk that a stream may sort by length
        features = features_of(
            histories[start : start + 1024], release.item_index, release.action_index, release.preprocessing
        )
        parts += [inputs for _, inputs in batches(features, release.preprocessing.max_length)]
    session = open_session(release_directory / "model.onnx")
    session.run(None, parts[0])
    with ThreadPoolExecutor(len(sched_getaffinity(0))) as pool:
        start_seconds = time.perf_counter()
        for _ in pool.map(lambda inputs: session.run(None, inputs), parts):
            pass
        return len(users) / (time.perf_counter() - start_seconds)


async def _histories(directory: Path, users: list[str]) -> list[History]:
    store = LmdbStore.open(directory / "history", 1000)
    try:
        return [history for history in await store.get_many(users) if history is not None]
    finally:
        await store.close()


if __name__ == "__main__":
    main()
