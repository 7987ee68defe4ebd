"""Memory of server and client over one stream of ten million ids.

    python -m tests.benchmarks.bench_memory --ids 10000000

One id in a thousand is a user with a history; the others are unknown, which is as much work for everything but the
encoder. Anonymous memory (all but mapped files) is read every tenth of the way. `growth` is the last tenth's less the
second's, in MiB of the server. Ends in one JSON line.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from segrec import SegrecClient

from tests.benchmarks.common import anonymous_mib, realistic_release, show, write_histories
from tests.support.server import ServerProcess

KNOWN_EVERY = 1000


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ids", type=int, default=10_000_000)
    parser.add_argument("--triton-environment", type=Path, default=Path(".triton"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        realistic_release(directory / "repository")
        users = write_histories(directory / "events.parquet", 10_000)
        flags = ("--bootstrap-events", str(directory / "events.parquet"))
        server = ServerProcess(directory, options.triton_environment.absolute(), *flags)
        try:
            server.wait_until_serving()
            measure(server, users, options.ids)
        finally:
            server.end()


def measure(server: ServerProcess, users: list[str], ids: int) -> None:
    """Stream, and print the table and the JSON line."""
    processes = server.process.pid, os.getpid()
    readings: list[tuple[int, float, float]] = []
    answered = 0
    start = time.perf_counter()
    with SegrecClient(server.address) as client, client.stream_segment(_ids(users, ids)) as rows:
        for _ in rows:
            answered += 1
            if answered % (ids // 10) == 0:
                server_mib, client_mib = (round(anonymous_mib(pid), 1) for pid in processes)
                readings.append((answered, server_mib, client_mib))
        summary = rows.summary
    seconds = time.perf_counter() - start
    assert summary is not None
    assert answered == ids == summary.received_count == summary.answered_count + summary.failed_count
    growth = round(readings[-1][1] - readings[1][1], 1)
    show(
        f"One stream of {ids:,} ids, {ids / seconds:,.0f} ids/s",
        ("ids", "server MiB", "client MiB"),
        readings,
        {"benchmark": "memory", "ids": ids, "ids_per_second": round(ids / seconds), "growth_mib": growth},
    )


def _ids(users: list[str], count: int) -> Iterator[str]:
    for number in range(count):
        yield users[number // KNOWN_EVERY % len(users)] if number % KNOWN_EVERY == 0 else f"unknown-{number}"


if __name__ == "__main__":
    main()
