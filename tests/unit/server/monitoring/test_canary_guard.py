"""When the guard takes a canary out."""

import asyncio
from pathlib import Path

import pytest

from server.core.repository.audit import read_audit
from server.core.repository.traffic import Guard, Traffic, change_traffic, read_traffic
from server.monitoring.canary_guard import CanaryGuard, verdict
from server.monitoring.release_stats import ReleaseStats
from server.serving.answer import Degraded
from tests.support.ticking import Clock
from tests.unit.server.monitoring.test_release_stats import STALE, SURE, UNSURE, call, figures_of

GUARD = Guard(max_unconfident_share=0.5, window_seconds=10, min_answer_count=4)


class FileRouting:
    """A routing whose traffic is that of the file, as on a real server."""

    def __init__(self, repository: Path) -> None:
        self._repository = repository
        self.withheld: list[tuple[Traffic, str]] = []

    @property
    def traffic(self) -> Traffic:
        return read_traffic(self._repository)

    def withhold_canary(self, traffic: Traffic, reason: str) -> None:
        self.withheld.append((traffic, reason))


def set_canary(repository: Path, number: int = 8, guard: Guard | None = GUARD) -> None:
    def change(before: Traffic) -> Traffic:
        return before.with_stable(7).with_answering(canary=number, share=0.05, shadow=6, guard=guard)

    change_traffic(repository, change, what="traffic", who="a test")


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def stats(clock: Clock) -> ReleaseStats:
    return ReleaseStats(clock)


@pytest.fixture
def routing(tmp_path: Path) -> FileRouting:
    return FileRouting(tmp_path)


@pytest.fixture
def canary_guard(tmp_path: Path, routing: FileRouting, stats: ReleaseStats, clock: Clock) -> CanaryGuard:
    set_canary(tmp_path)
    return CanaryGuard(tmp_path, routing, stats, "guard of a test", clock)


async def watch(canary_guard: CanaryGuard, clock: Clock, seconds: int) -> None:
    for _ in range(seconds):
        await canary_guard.check()
        clock.now += 1


@pytest.mark.parametrize(
    ("guard", "reason"),
    [
        (Guard(max_error_share=0.19, min_answer_count=10), "its error share is 0.2, above 0.19, over 10 answers"),
        (Guard(max_degraded_share=0.12, min_answer_count=10), "its degraded share is 0.125, above 0.12"),
        (Guard(max_unconfident_share=0.24, min_answer_count=8), "its unconfident share is 0.25, above 0.24"),
        (Guard(max_p99_seconds=0.1, min_answer_count=2), "its p99 is 0.204 s, above 0.1 s, over 2 answers"),
        (Guard(max_error_share=0.2, max_degraded_share=0.125, max_unconfident_share=0.25, min_answer_count=1), ""),
        (Guard(max_error_share=0.0, min_answer_count=11), ""),
        (Guard(max_unconfident_share=0.0, min_answer_count=9), ""),
        (Guard(max_p99_seconds=0.1, min_answer_count=3), ""),
    ],
)
def test_a_bound_counts_only_over_enough_answers(guard: Guard, reason: str, stats: ReleaseStats, clock: Clock) -> None:
    stats.answered(8, [SURE] * 3 + [UNSURE] * 2 + [STALE])
    stats.failed(8, 2)
    for _ in range(2):
        call(stats, clock, 8, 0.2)
    found = verdict(guard, figures_of(stats, 8))
    assert found.startswith(reason)
    assert bool(found) == bool(reason)


async def test_a_canary_past_its_bound_is_taken_out_and_the_audit_says_why(
    tmp_path: Path, canary_guard: CanaryGuard, stats: ReleaseStats, clock: Clock
) -> None:
    stats.answered(8, [UNSURE] * 9 + [SURE])
    await watch(canary_guard, clock, 10)
    assert read_traffic(tmp_path).canary == 8, "it has not been watched for the whole window yet"
    stats.answered(8, [UNSURE] * 9 + [SURE])
    await watch(canary_guard, clock, 3)
    after = read_traffic(tmp_path)
    assert (after.stable, after.canary, after.guard, after.shadow) == (7, 0, None, 6)
    entry = read_audit(tmp_path)[-1]
    assert (entry.what, entry.who) == ("guard", "guard of a test")
    assert entry.reason == ("release 8 is taken out: its unconfident share is 0.9, above 0.5, over 10 answers in 10 s")
    assert canary_guard.trip_count == 1
    assert not canary_guard.is_withholding


async def test_rows_of_streams_and_answers_without_a_loaded_release_do_not_count(
    tmp_path: Path, canary_guard: CanaryGuard, stats: ReleaseStats, clock: Clock
) -> None:
    await watch(canary_guard, clock, 10)
    stats.answered(8, [UNSURE] * 90, is_batch=True)
    stats.failed(8, 9, is_batch=True)
    stats.answered(8, [UNSURE._replace(degraded=Degraded.ENCODER_UNAVAILABLE, tells_of_release=False)] * 50)
    stats.answered(8, [SURE] * 10)
    await watch(canary_guard, clock, 5)
    assert read_traffic(tmp_path).canary == 8
    stats.answered(8, [UNSURE] * 11)
    await watch(canary_guard, clock, 2)
    assert read_traffic(tmp_path).canary == 0


async def test_answers_before_the_window_do_not_count(
    tmp_path: Path, canary_guard: CanaryGuard, stats: ReleaseStats, clock: Clock
) -> None:
    stats.answered(8, [UNSURE] * 90)
    await watch(canary_guard, clock, 10)
    stats.answered(8, [SURE] * 10)
    await watch(canary_guard, clock, 5)
    assert read_traffic(tmp_path).canary == 8
    assert canary_guard.trip_count == 0


async def test_a_new_canary_is_watched_for_a_whole_window_again(
    tmp_path: Path, canary_guard: CanaryGuard, stats: ReleaseStats, clock: Clock
) -> None:
    await watch(canary_guard, clock, 8)
    set_canary(tmp_path, 9)
    stats.answered(9, [UNSURE] * 10)
    await watch(canary_guard, clock, 5)
    assert read_traffic(tmp_path).canary == 9
    stats.answered(9, [UNSURE] * 10)
    await watch(canary_guard, clock, 6)
    assert read_traffic(tmp_path).canary == 0


async def test_without_a_guard_nothing_is_done(
    tmp_path: Path, canary_guard: CanaryGuard, stats: ReleaseStats, clock: Clock
) -> None:
    set_canary(tmp_path, guard=None)
    stats.answered(8, [UNSURE] * 10)
    await watch(canary_guard, clock, 20)
    assert read_traffic(tmp_path).canary == 8


async def test_a_change_of_the_canary_in_the_meantime_is_not_overruled(
    tmp_path: Path,
    canary_guard: CanaryGuard,
    routing: FileRouting,
    stats: ReleaseStats,
    clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen_long_ago = routing.traffic
    monkeypatch.setattr(FileRouting, "traffic", seen_long_ago)
    set_canary(tmp_path, 9)
    await watch(canary_guard, clock, 10)
    stats.answered(8, [UNSURE] * 10)
    await watch(canary_guard, clock, 2)
    assert read_traffic(tmp_path).canary == 9
    assert canary_guard.trip_count == 0


async def test_when_the_repository_cannot_be_written_the_canary_is_withheld_on_this_server(
    tmp_path: Path,
    canary_guard: CanaryGuard,
    routing: FileRouting,
    stats: ReleaseStats,
    clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("server.monitoring.canary_guard.change_traffic", refuse)
    await watch(canary_guard, clock, 10)
    for _ in range(15):  # pinned requests still reach it
        stats.answered(8, [UNSURE] * 10)
        await watch(canary_guard, clock, 1)
    assert [traffic.canary for traffic, _ in routing.withheld] == [8]
    assert canary_guard.trip_count == 1
    assert canary_guard.is_withholding
    [record] = [record for record in caplog.records if "on this server alone" in record.message]
    assert "Read-only file system" in record.message
    set_canary(tmp_path)
    assert not canary_guard.is_withholding, "somebody has set the traffic anew"


async def test_a_check_that_fails_does_not_end_the_watch(
    canary_guard: CanaryGuard, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    stop = asyncio.Event()
    checks = 0

    async def fail() -> None:
        nonlocal checks
        checks += 1
        if checks == 3:
            stop.set()
        raise RuntimeError("broken")

    monkeypatch.setattr("server.monitoring.canary_guard.CHECK_SECONDS", 0.001)
    monkeypatch.setattr(canary_guard, "check", fail)
    await asyncio.wait_for(canary_guard.watch(stop), 10)
    assert checks == 3
    assert "trying again" in caplog.text
