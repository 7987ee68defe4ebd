"""Users a second through `StreamSegment`, against ONNX Runtime in one process on the same histories and cores.

    python -m tests.benchmarks.bench_stream --users 50000

The limit is ONNX Runtime alone: the same model, batches of 32 sorted by length among 1,024, the quickest found, made
before the clock starts, on as many threads as there are cores. The stream is all of it: a client in this process,
`segrec-serve`, LMDB, features, Triton, nearest centroid, all on those same cores, and no embedding cached. All run by
turns, `--repeats` times; medians count. Processor time is that of all processes: client, server, Triton and its stubs.
It says what a user costs even where other work shares the machine; the time on the clock does not. Ends in one JSON
line. `ratio` is the limit's processor time for a user divided by the stream's.
"""

import argparse
import asyncio
import statistics
import tempfile
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from os import sched_getaffinity
from pathlib import Path
from typing import NamedTuple

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

GOALS = {"rows": 0.80}
"""Goals of `ratio`."""
LIMIT = "ONNX Runtime alone"


class Cost(NamedTuple):
    """What one turn took for a user: seconds on the clock, and processor seconds by process."""

    wall: float
    processor: Mapping[str, float]

    @property
    def total(self) -> float:
        return sum(self.processor.values())


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
            limit = Limit(directory, release, users)
            costs: dict[str, list[Cost]] = {LIMIT: [], **{form: [] for form in GOALS}}
            for _ in range(options.repeats):
                costs[LIMIT].append(limit.cost())
                for form in GOALS:
                    costs[form].append(stream(server, users, options.chunk_size))
            memory = psutil.Process(server.process.pid).memory_info().rss
        finally:
            server.end()
    _report(costs, options.users, options.chunk_size, memory)


def _report(costs: dict[str, list[Cost]], users: int, chunk_size: int, memory: int) -> None:
    totals = {name: statistics.median(cost.total for cost in turns) for name, turns in costs.items()}
    rates = {name: 1 / statistics.median(cost.wall for cost in turns) for name, turns in costs.items()}
    ratios = {name: totals[LIMIT] / totals[name] for name in GOALS}
    parts = ("client", "server", "Triton", "stubs")
    table = [
        (
            name,
            rates[name],
            1e6 * totals[name],
            *(1e6 * statistics.median(cost.processor.get(part, 0.0) for cost in turns) for part in parts),
            totals[LIMIT] / totals[name],
        )
        for name, turns in costs.items()
    ]
    show(
        f"StreamSegment, {users:,} users, 20 events on average, chunks of {chunk_size}; processor time in µs a user",
        ("what", "users/s", "all processes", *parts, "ratio"),
        table,
        {
            "benchmark": "stream",
            "users": users,
            "limit_users_per_second": round(rates[LIMIT]),
            "limit_processor_us": round(1e6 * totals[LIMIT], 1),
            **{f"{name}_users_per_second": round(rates[name]) for name in GOALS},
            **{f"{name}_processor_us": round(1e6 * totals[name], 1) for name in GOALS},
            **{f"{name}_ratio": round(ratio, 3) for name, ratio in ratios.items()},
            **{f"{name}_wall_ratio": round(rates[name] / rates[LIMIT], 3) for name in GOALS},
            "goals": GOALS,
            "reached": {name: ratios[name] >= goal for name, goal in GOALS.items()},
            "server_rss_mib": memory >> 20,
        },
    )


def stream(server: ServerProcess, users: list[str], chunk_size: int) -> Cost:
    """The cost of a stream, every user of which is answered with a segment."""
    with SegrecClient(server.address) as client:
        before, start = _processor_seconds(server), time.perf_counter()
        with client.stream_segment(users, chunk_size=chunk_size) as rows:
            assigned = sum(row.result.assignment.state == SEGMENT_STATE_ASSIGNED for row in rows)
        seconds = time.perf_counter() - start
        processor = _processor_seconds(server)
    assert assigned == len(users), f"{assigned} of {len(users)} users got a segment"
    return Cost(seconds / len(users), {part: (processor[part] - before[part]) / len(users) for part in before})


def _processor_seconds(server: ServerProcess) -> dict[str, float]:
    """Processor seconds of this process, the server's, Triton's and those of its stubs, so far."""
    spent = {"client": time.process_time(), "server": 0.0, "Triton": 0.0, "stubs": 0.0}
    process = psutil.Process(server.process.pid)
    for one in (process, *process.children(recursive=True)):
        times, name = one.cpu_times(), " ".join(one.cmdline())
        part = "Triton" if "tritonserver" in name else "stubs" if "triton_python_backend_stub" in name else "server"
        spent[part] += times.user + times.system
    return spent


class Limit:
    """ONNX Runtime alone, with its inputs ready."""

    def __init__(self, directory: Path, release_directory: Path, users: list[str]) -> None:
        release = read_release(release_directory)
        histories = asyncio.run(_histories(directory, users))
        self._users = len(users)
        self._parts = []
        for start in range(0, len(users), 1024):  # the largest chunk that a stream may sort by length
            features = features_of(
                histories[start : start + 1024], release.item_index, release.action_index, release.preprocessing
            )
            self._parts += [inputs for _, inputs in batches(features, release.preprocessing.max_length)]
        self._session = open_session(release_directory / "model.onnx")
        self._session.run(None, self._parts[0])

    def cost(self) -> Cost:
        with ThreadPoolExecutor(len(sched_getaffinity(0))) as pool:
            start, spent = time.perf_counter(), time.process_time()
            for _ in pool.map(lambda inputs: self._session.run(None, inputs), self._parts):
                pass
            spent, seconds = time.process_time() - spent, time.perf_counter() - start
        return Cost(seconds / self._users, {"client": spent / self._users})


async def _histories(directory: Path, users: list[str]) -> list[History]:
    store = LmdbStore.open(directory / "history", 1000)
    try:
        return [history for history in await store.get_many(users) if history is not None]
    finally:
        await store.close()


if __name__ == "__main__":
    main()
