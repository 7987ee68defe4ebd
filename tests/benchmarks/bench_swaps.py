"""Pushes, canary steps and roll-backs while callers ask at 80 % of what the server can do.

    python -m tests.benchmarks.bench_swaps --pushes 20 --rollbacks 10

Calls of `Segment`, and one in ten of `Recommend`, come at a steady rate whatever the answers take: in turns with
nothing else going on, and while a release is renamed in, gets 1, 10, 50 and 100 % of the users, and, every other one,
is rolled back. The capacity is found anew before each push, since machines are shared. Each release has another
encoder, other centroids and other items. A sample of the answers is computed again with ONNX Runtime from the release
that they name: segment, distance, items and scores must be those of that release alone. Nothing is cached. Memory of
server and Triton is read after each push. Ends in one JSON line. Goals: no failed call, no degraded answer, p99 ≤ 2 ×
the steady one, memory flat after the first pushes.
"""

import argparse
import asyncio
import gc
import random
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import grpc
import numpy as np
import psutil
from numpy.typing import NDArray
from segrec.v1 import model_service_pb2
from segrec.v1 import segrec_service_pb2 as pb
from segrec.v1.model_service_pb2_grpc import ModelServiceStub
from segrec.v1.segrec_service_pb2_grpc import SegrecServiceStub

from server.adapters.lmdb_store import LmdbStore
from server.core.features import batches, features_of
from server.core.history import History
from server.core.ranking.query import Query, Subject
from server.core.ranking.rank import past_events, rank
from server.core.release import Release
from server.core.repository.audit import AuditKind
from server.core.repository.layout import MODEL_NAME
from server.core.repository.read import read_release
from server.core.repository.traffic import Traffic, change_traffic, rolled_back
from server.core.segments import nearest, next_item_part, segment_part
from tests.benchmarks.common import another_release, realistic_release, show, write_histories
from tests.support.server import ServerProcess
from training.model.onnx_inference import open_session

LOAD_SHARE, P99_GOAL = 0.80, 2.0
CONCURRENCY = 32
CAPACITY_SECONDS = 2.0
SAMPLED = 0.02
STEPS = (1.0, 10.0, 50.0)
STAGES = ("loading", *(f"{percent:g} %" for percent in STEPS), "all", "rolled back")
STANDING = (model_service_pb2.RELEASE_STATE_ACTIVE, model_service_pb2.RELEASE_STATE_STANDBY)

Answer = pb.SegmentResponse | pb.RecommendResponse
Ask = Callable[[], Awaitable[None]]


@dataclass
class Seen:
    """What callers saw: seconds from when a call was due to its answer, outcomes, and the sampled answers."""

    seconds: list[float] = field(default_factory=list)
    outcomes: Counter[str] = field(default_factory=Counter)
    releases: Counter[int] = field(default_factory=Counter)
    by_stage: dict[tuple[int, str], list[float]] = field(default_factory=dict)
    sample: list[tuple[str, Answer]] = field(default_factory=list)

    def p99_ms(self, push: int | None = None, stage: str = "") -> float:
        """The 99th percentile of all calls, or of those of one push or stage, milliseconds."""
        chosen = [
            times for (where, what), times in self.by_stage.items() if push in (None, where) and stage in ("", what)
        ]
        return 1000 * float(np.quantile(np.concatenate(chosen), 0.99)) if chosen else 0.0


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pushes", type=int, default=20)
    parser.add_argument("--rollbacks", type=int, default=10)
    parser.add_argument("--steady-seconds", type=float, default=8.0, help="Without a push, before each: as long.")
    parser.add_argument("--step-seconds", type=float, default=1.0, help="How long each share of a canary lasts.")
    parser.add_argument("--users", type=int, default=20_000)
    parser.add_argument("--triton-environment", type=Path, default=Path(".triton"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        made = directory / "made"
        first = realistic_release(made, 1)
        staged = [first, *(another_release(first, number) for number in range(2, options.pushes + 2))]
        users = write_histories(directory / "events.parquet", options.users)
        model = directory / "repository" / MODEL_NAME
        model.mkdir(parents=True)
        (made / MODEL_NAME / "config.pbtxt").rename(model / "config.pbtxt")
        staged[0].rename(model / "1")
        flags = ("--bootstrap-events", str(directory / "events.parquet"), "--cache-entries", "0")
        server = ServerProcess(directory, options.triton_environment.absolute(), *flags)
        try:
            server.wait_until_serving()
            swaps = Swaps(server, users, staged[1:], options)
            asyncio.run(swaps.run())
        finally:
            server.end()
        wrong = swaps.check(LmdbStore.open(directory / "history", 1000))
    swaps.report(wrong)


class Swaps:
    """The load, what is done meanwhile, and the check of what was answered."""

    def __init__(
        self, server: ServerProcess, users: list[str], staged: list[Path], options: argparse.Namespace
    ) -> None:
        self._server, self._users, self._staged, self._options = server, users, staged, options
        self._repository = server.repository
        self._random = random.Random(0)
        self._memory: list[int] = []
        self.steady, self.swapped = Seen(), Seen()
        self._per_second: list[float] = []
        self._stage = (0, "")
        self._load_seconds: list[float] = []

    async def run(self) -> None:
        """For each push: find the capacity, load steadily, then load while the release comes and goes."""
        channel = grpc.aio.insecure_channel(self._server.address)
        models = grpc.aio.insecure_channel(self._server.model_address)
        self._segrec, self._models = SegrecServiceStub(channel), ModelServiceStub(models)
        await self._change(lambda before: before.with_stable(1), "traffic")
        await self._capacity(3.0)
        for place, staged in enumerate(self._staged):
            self._stage = (place, "steady")
            gc.collect()
            gc.freeze()  # or the callers' own collections, of up to half a second, would be taken for the server's
            self._per_second.append(LOAD_SHARE * await self._capacity(CAPACITY_SECONDS))
            await self._load(self.steady, partial(asyncio.sleep, self._options.steady_seconds))
            await self._load(self.swapped, partial(self._swap, place, staged))
            self._memory.append(await asyncio.to_thread(self._rss_mib))
        await channel.close()
        await models.close()

    async def _capacity(self, seconds: float) -> float:
        seen, start = Seen(), time.perf_counter()

        async def caller() -> None:
            while time.perf_counter() - start < seconds:
                await self._ask(seen, time.perf_counter())

        await asyncio.gather(*(caller() for _ in range(CONCURRENCY)))
        assert set(seen.outcomes) == {"OK"}, seen.outcomes
        return len(seen.seconds) / (time.perf_counter() - start)

    async def _load(self, seen: Seen, meanwhile: Ask) -> None:
        """Ask at a steady rate until `meanwhile` is done."""
        doing = asyncio.ensure_future(meanwhile())
        start, number, calls = time.perf_counter(), 0, set[asyncio.Task[None]]()
        while not doing.done():
            due = start + number / self._per_second[-1]
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            call = asyncio.ensure_future(self._ask(seen, due))
            calls.add(call)
            call.add_done_callback(calls.discard)
            number += 1
        await asyncio.gather(doing, *calls)

    async def _ask(self, seen: Seen, due: float) -> None:
        user_id, stage = self._random.choice(self._users), self._stage
        try:
            if self._random.random() < 0.1:
                answer: Answer = await self._segrec.Recommend(pb.RecommendRequest(user_id=user_id), timeout=5)
            else:
                answer = await self._segrec.Segment(pb.SegmentRequest(user_id=user_id), timeout=5)
        except grpc.aio.AioRpcError as error:
            seen.outcomes[error.code().name] += 1
            return
        seen.seconds.append(time.perf_counter() - due)
        seen.by_stage.setdefault(stage, []).append(seen.seconds[-1])
        seen.outcomes["DEGRADED" if answer.info.degraded else "OK"] += 1
        seen.releases[answer.info.release] += 1
        if self._random.random() < SAMPLED:
            seen.sample.append((user_id, answer))

    async def _swap(self, place: int, staged: Path) -> None:
        """Push a release, give it more and more of the users, and take every other one back."""
        number = int(staged.name)
        started, self._stage = time.perf_counter(), (place, "loading")
        await asyncio.to_thread(staged.rename, self._repository / MODEL_NAME / staged.name)
        await self._until(number, STANDING)
        self._load_seconds.append(time.perf_counter() - started)
        for percent in STEPS:
            self._stage = (place, f"{percent:g} %")
            await self._change(partial(Traffic.with_answering, canary=number, share=percent / 100.0), "traffic")
            await asyncio.sleep(self._options.step_seconds)
        self._stage = (place, "all")
        await self._change(partial(_promoted, number=number), "traffic")
        await self._until(number, (model_service_pb2.RELEASE_STATE_ACTIVE,))
        await asyncio.sleep(self._options.step_seconds)
        if place % 2 and place // 2 < self._options.rollbacks:
            self._stage = (place, "rolled back")
            await self._change(lambda now: rolled_back(now, self._good())[0], "rollback")
            await asyncio.sleep(self._options.step_seconds)

    async def _change(self, change: Callable[[Traffic], Traffic], what: AuditKind) -> None:
        await asyncio.to_thread(change_traffic, self._repository, change, what, "bench")

    def _good(self) -> list[int]:
        return sorted(int(path.name) for path in (self._repository / MODEL_NAME).iterdir() if path.is_dir())

    async def _until(self, number: int, states: tuple[int, ...]) -> None:
        while True:
            response = await self._models.GetRelease(model_service_pb2.GetReleaseRequest(release=number))
            if response.release.state in states:
                return
            assert response.release.state != model_service_pb2.RELEASE_STATE_FAILED, response.release.failure
            await asyncio.sleep(0.05)

    def _rss_mib(self) -> int:
        process = psutil.Process(self._server.process.pid)
        return sum(one.memory_info().rss for one in (process, *process.children(recursive=True))) >> 20

    def check(self, store: LmdbStore) -> list[str]:
        """What of the sampled answers is not as the release that they name would have it."""
        by_release: dict[int, list[tuple[str, Answer]]] = {}
        for user_id, answer in self.steady.sample + self.swapped.sample:
            by_release.setdefault(answer.info.release, []).append((user_id, answer))
        ids = sorted({user_id for answers in by_release.values() for user_id, _ in answers})
        histories = dict(zip(ids, asyncio.run(_histories(store, ids)), strict=True))
        wrong = []
        for number, answers in by_release.items():
            release = read_release(self._repository / MODEL_NAME / str(number))
            wrong += _differences(release, self._repository, answers, histories)
        return wrong

    def report(self, wrong: list[str]) -> None:
        """Print the table and the JSON line."""
        steady, swapped = self.steady.p99_ms(), self.swapped.p99_ms()
        per_push = [
            (round(rate), round(self.steady.p99_ms(push), 1), round(self.swapped.p99_ms(push), 1))
            for push, rate in enumerate(self._per_second)
        ]
        stages = {name: round(self.swapped.p99_ms(stage=name), 1) for name in STAGES}
        failed = sum(count for name, count in self.swapped.outcomes.items() if name not in ("OK", "DEGRADED"))
        settled = self._memory[len(self._memory) // 4 :]
        per_second = float(np.median(self._per_second))
        checked = len(self.steady.sample) + len(self.swapped.sample)
        reached = failed == 0 and not wrong and swapped <= P99_GOAL * steady
        for line in wrong[:10]:
            print(line)
        rows = [
            ("load, calls/s, median", per_second),
            ("calls while releases came and went", self.swapped.outcomes.total()),
            ("failed", failed),
            ("degraded", self.swapped.outcomes["DEGRADED"]),
            ("releases that answered", len(self.swapped.releases)),
            ("answers computed again", checked),
            ("of them not as their release says", len(wrong)),
            ("p99 steady, ms", steady),
            ("p99 with swaps, ms", swapped),
            ("ratio", swapped / steady),
            ("median of the pushes' own ratios", float(np.median([after / before for _, before, after in per_push]))),
            ("longest, ms", 1000 * max(self.swapped.seconds)),
            *((f"p99 while {name}, ms", value) for name, value in stages.items()),
            ("seconds from a push to its standing by, median", float(np.median(self._load_seconds))),
            ("memory after the first push, MiB", self._memory[0]),
            ("after a quarter of them", settled[0]),
            ("after the last", settled[-1]),
        ]
        show(
            f"{self._options.pushes} pushes and {self._options.rollbacks} roll-backs at {LOAD_SHARE:.0%} of capacity",
            ("what", "value"),
            rows,
            {
                "benchmark": "swaps",
                "pushes": self._options.pushes,
                "rollbacks": self._options.rollbacks,
                "per_second": round(per_second),
                "calls": self.swapped.outcomes.total(),
                "failed": failed,
                "degraded": self.swapped.outcomes["DEGRADED"],
                "checked": checked,
                "wrong": len(wrong),
                "steady_p99_ms": round(steady, 2),
                "swaps_p99_ms": round(swapped, 2),
                "ratio": round(swapped / steady, 2),
                "by_push": per_push,
                "by_stage": stages,
                "goal": P99_GOAL,
                "memory_mib": self._memory,
                "reached": reached,
            },
        )


def _promoted(now: Traffic, number: int) -> Traffic:
    return now.with_answering().with_stable(number)


async def _histories(store: LmdbStore, ids: list[str]) -> Sequence[History | None]:
    try:
        return list(await store.get_many(ids))
    finally:
        await store.close()


def _differences(
    release: Release, repository: Path, answers: list[tuple[str, Answer]], histories: dict[str, History | None]
) -> list[str]:
    """What differs from ONNX Runtime and `server.core` on the same histories."""
    asked = [histories[user_id] for user_id, _ in answers]
    found = [history for history in asked if history is not None]
    features = features_of(found, release.item_index, release.action_index, release.preprocessing)
    session = open_session(repository / MODEL_NAME / str(release.number) / "model.onnx")
    wrong = []
    for rows, inputs in batches(features, release.preprocessing.max_length):
        embeddings = session.run(None, inputs)[0]
        place = nearest(segment_part(embeddings, release.item_embeddings.shape[1]), release.centroids)
        items = next_item_part(embeddings, release.item_embeddings.shape[1])
        for at, row in enumerate(rows.tolist()):
            _, answer = answers[row]
            segment = release.segments[int(place.first[at])]
            here = answer.assignment
            if (here.segment_id, here.label) != (segment.segment_id, segment.label):
                wrong.append(f"release {release.number}: segment {here.segment_id}, expected {segment.segment_id}")
            elif abs(here.distance - float(place.first_distance[at])) > 1e-4:
                wrong.append(f"release {release.number}: distance {here.distance}, expected {place.first_distance[at]}")
            if isinstance(answer, pb.RecommendResponse):
                wrong += _item_differences(release, answer, items[at], segment.segment_id, found[row])
    return wrong


def _item_differences(
    release: Release, answer: pb.RecommendResponse, embedding: NDArray[np.float32], segment_id: int, history: History
) -> list[str]:
    subject = Subject(np.ascontiguousarray(embedding), segment_id, past_events(release, history))
    [ranked] = rank(release, Query(), [subject])
    expected = [item.score for item in ranked.items]
    scores = [item.score for item in answer.items]
    if len(scores) != len(expected) or not np.allclose(scores, expected, atol=1e-3):
        return [f"release {release.number}: items have other scores than its own"]
    return []


if __name__ == "__main__":
    main()
