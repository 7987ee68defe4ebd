"""A server that lives with everything that comes and goes: does its memory grow, does it lose descriptors?

    python -m tests.benchmarks.bench_soak --minutes 20

For as long as that, callers ask and record on connections that they open and close, streams are read, left early and
cancelled, users are erased, and every half minute a release is pushed and an old one deleted. Anonymous memory (all but
mapped files) and descriptors of the server are read each second. The slope is a line through the least memory of each
half minute, after the first third; with 95 % of what chance would make of it. Goals: a slope under 1 MiB an hour,
descriptors flat. Ends in one JSON line.
"""

import argparse
import asyncio
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import numpy as np
import psutil
from numpy.typing import NDArray
from scipy.stats import linregress
from segrec import AsyncSegrecClient
from segrec.errors import SegrecError
from segrec.v1.common_pb2 import Event
from segrec.v1.event_service_pb2 import UserEvent

from server.core.repository.layout import MODEL_NAME
from tests.benchmarks.common import anonymous_mib, another_release, realistic_release, show, write_histories
from tests.support.server import ServerProcess

USERS = 2_000
PAUSE_SECONDS = 0.02
WINDOW_SECONDS = 30.0
KEPT_RELEASES = 3
GOAL_MIB_AN_HOUR = 1.0


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--no-pushes", action="store_true", help="leave the release as it is")
    parser.add_argument("--triton-environment", type=Path, default=Path(".triton"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        realistic_release(directory / "repository")
        write_histories(directory / "events.parquet", USERS)
        flags = ("--bootstrap-events", str(directory / "events.parquet"), "--cache-entries", "500")
        server = ServerProcess(directory, options.triton_environment.absolute(), *flags)
        try:
            server.wait_until_serving()
            readings, outcomes = asyncio.run(_soak(server, 60 * options.minutes, pushes=not options.no_pushes))
        finally:
            server.end()
    _report(readings, outcomes)


def _report(readings: NDArray[np.float64], outcomes: Counter[str]) -> None:
    """Print the table; `readings` are second, MiB and descriptors, (n, 3)."""
    windows = (readings[:, 0] // WINDOW_SECONDS).astype(int)
    least = np.array([readings[windows == window].min(axis=0) for window in np.unique(windows)])
    settled = least[least[:, 0] >= readings[-1, 0] / 3]
    memory, descriptors = (linregress(settled[:, 0] / 3600, settled[:, place]) for place in (1, 2))
    rows = [(f"{second / 60:.1f} min", f"{mib:.1f}", int(count)) for second, mib, count in least]
    figures = {
        "benchmark": "soak",
        "minutes": round(readings[-1, 0] / 60, 1),
        "outcomes": dict(outcomes),
        "mib_an_hour": round(float(memory.slope), 2),
        "mib_an_hour_95": round(1.96 * float(memory.stderr), 2),
        "descriptors_an_hour": round(float(descriptors.slope), 2),
    }
    show("Least anonymous memory of each half minute", ("until", "MiB", "descriptors"), rows, figures)
    if memory.slope - 1.96 * memory.stderr > GOAL_MIB_AN_HOUR:
        sys.exit(f"Memory grows by {memory.slope:.1f} ± {1.96 * memory.stderr:.1f} MiB an hour.")


async def _soak(server: ServerProcess, seconds: float, *, pushes: bool) -> tuple[NDArray[np.float64], Counter[str]]:
    churn = Churn(server, time.monotonic() + seconds)
    process, start = psutil.Process(server.process.pid), time.monotonic()
    readings = []
    life = asyncio.gather(*(churn.repeat(act) for act in churn.acts), *([churn.push_releases()] if pushes else ()))
    while not life.done():
        readings.append((time.monotonic() - start, anonymous_mib(process.pid), process.num_fds()))
        await asyncio.wait([life], timeout=1.0)
    life.result()
    return np.array(readings), churn.outcomes


class Churn:
    """All that comes and goes; each act is repeated until `end`, in monotonic seconds."""

    def __init__(self, server: ServerProcess, end: float) -> None:
        self._server, self._end = server, end
        self._random = random.Random(0)
        self.outcomes: Counter[str] = Counter()
        self.acts = (self._ask, self._ask, self._record, self._erase, self._stream, self._leave_stream, self._cancel)

    async def repeat(self, act: Callable[[AsyncSegrecClient], Awaitable[None]]) -> None:
        """Do this until the end, on a new connection each ten times."""
        while time.monotonic() < self._end:
            async with AsyncSegrecClient(self._server.address) as client:
                for _ in range(10):
                    try:
                        await act(client)
                        self.outcomes[f"{act.__name__.strip('_')} done"] += 1
                    except SegrecError as error:
                        self.outcomes[f"{act.__name__.strip('_')} {error.code.name}"] += 1
                    await asyncio.sleep(PAUSE_SECONDS)

    def _user(self) -> str:
        return f"user-{self._random.randrange(USERS):08d}"

    async def _ask(self, client: AsyncSegrecClient) -> None:
        await (client.segment(self._user()) if self._random.random() < 0.5 else client.recommend(self._user()))

    async def _record(self, client: AsyncSegrecClient) -> None:
        item = f"item-{self._random.randrange(1000):06d}"
        await client.record([UserEvent(user_id=self._user(), event=Event(item_id=item, action="view"))])

    async def _erase(self, client: AsyncSegrecClient) -> None:
        user = f"passing-{self._random.randrange(100)}"
        await client.record([UserEvent(user_id=user, event=Event(item_id="item-000001", action="view"))])
        await client.erase(user)

    async def _users(self, count: int) -> AsyncIterator[str]:
        for _ in range(count):
            yield self._user()

    async def _stream(self, client: AsyncSegrecClient) -> None:
        async with client.stream_segment(self._users(2_048)) as rows:
            async for _ in rows:
                pass

    async def _leave_stream(self, client: AsyncSegrecClient) -> None:
        async with client.stream_recommend(self._users(10**9), top_k=20) as rows:
            async for _ in rows:
                break

    async def _cancel(self, client: AsyncSegrecClient) -> None:
        task = asyncio.ensure_future(client.recommend(self._user()))
        await asyncio.sleep(self._random.uniform(0.0, 0.01))
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    async def push_releases(self) -> None:
        """Every half minute a new release appears, and the oldest of more than three is deleted."""
        repository = self._server.repository / MODEL_NAME
        latest = self._server.directory / "made" / "1"
        await asyncio.to_thread(shutil.copytree, repository / "1", latest)
        while time.monotonic() + WINDOW_SECONDS < self._end:
            await asyncio.sleep(WINDOW_SECONDS)
            number = int(latest.name) + 1
            latest = await asyncio.to_thread(another_release, latest, number)
            staged = await asyncio.to_thread(shutil.copytree, latest, repository.with_name(f".staged-{number}"))
            staged.rename(repository / latest.name)
            self.outcomes["releases pushed"] += 1
            if number > KEPT_RELEASES:
                await asyncio.to_thread(shutil.rmtree, repository / str(number - KEPT_RELEASES))


if __name__ == "__main__":
    main()
