"""Changes of the traffic through a server: refusals and loading first."""

import asyncio
import errno
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration
from segrec.v1 import model_service_pb2 as pb

from server.core.errors import (
    InvalidArgument,
    NotFound,
    NothingToRollBack,
    ReadOnlyRepository,
    TrafficChanged,
    TrafficLocked,
)
from server.core.repository.audit import read_audit
from server.core.repository.layout import MODEL_NAME
from server.core.repository.traffic import Guard, Traffic, locked_traffic, read_traffic
from server.releases import directory, promotion
from server.releases import loader as loading
from server.releases.directory import ReleaseDirectory
from server.releases.loader import Loader
from server.releases.promotion import Promotion
from server.releases.registry import ReleaseRegistry
from server.releases.traffic_watcher import TrafficWatcher
from server.rpc.messages.traffic_messages import checked_text, record_message, traffic_of
from tests.support.onnx_encoder import OnnxEncoder
from tests.support.releases import tiny_release
from tests.support.waiting import wait_until_async


@pytest.fixture
def encoder(tmp_path: Path) -> OnnxEncoder:
    return OnnxEncoder(tmp_path)


@pytest.fixture
async def changes(tmp_path: Path, encoder: OnnxEncoder, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Promotion]:
    """Changes the traffic of a repository with releases 1 to 4; release 4 answers at first."""
    monkeypatch.setattr(directory, "FIRST_RETRY_SECONDS", 0.0)
    monkeypatch.setattr(loading, "PROBE_SECONDS", 0.0)
    for number in (1, 2, 3, 4):
        tiny_release(tmp_path, number)
    releases, watcher, stop = (
        ReleaseRegistry(ReleaseDirectory(tmp_path / MODEL_NAME)),
        TrafficWatcher(tmp_path),
        asyncio.Event(),
    )
    loader = Loader(releases, encoder, keep=2)
    watcher.on_change += [releases.set_traffic, lambda _: loader.refresh_soon()]
    await watcher.refresh()
    task = asyncio.create_task(loader.follow(0.01, stop))
    await wait_until_async(lambda: _true(releases.loaded_numbers() == [3, 4]))
    yield Promotion(tmp_path, releases, loader, watcher)
    stop.set()
    await task


async def _true(value: bool) -> bool:
    return value


async def test_the_requested_releases_are_loaded_and_in_force_when_set_returns(changes: Promotion) -> None:
    wanted = Traffic(stable=1, canary=2, canary_share=0.05, shadow=3, guard=Guard(max_error_share=0.1))
    traffic = await changes.set(wanted, "me", "to see")
    assert changes.releases.shares() == {1: 0.95, 2: 0.05}
    assert changes.releases.shadow is not None
    assert (traffic.previous, traffic.changed_by, traffic.reason) == ((4,), "me", "to see")
    assert read_traffic(changes.repository) == traffic


async def test_a_rollback_undoes_a_change_from_the_newest_release(changes: Promotion) -> None:
    await changes.set(Traffic(stable=2), "me", "")
    traffic, summary = await changes.roll_back("me", "")
    assert (traffic.stable, summary) == (4, "Release 4 answers instead of release 2.")
    active = changes.releases.active
    assert active is not None
    assert active.number == 4


async def test_a_rollback_from_the_newest_release_goes_to_the_next_older_good_one(changes: Promotion) -> None:
    traffic, _ = await changes.roll_back("me", "")
    assert traffic.stable == 3
    assert [entry.what for entry in read_audit(changes.repository)] == ["rollback"]


async def test_a_rollback_passes_over_releases_that_failed(changes: Promotion) -> None:
    await changes.set(Traffic(stable=2), "me", "")
    (changes.repository / MODEL_NAME / "1" / "centroids.npy").write_bytes(b"damaged")
    await changes.set(Traffic(stable=2, canary=3, canary_share=0.05), "me", "")
    taken_out, _ = await changes.roll_back("me", "")
    assert (taken_out.stable, taken_out.canary) == (2, 0)
    traffic, _ = await changes.roll_back("me", "")
    assert traffic.stable == 4


async def test_a_second_rollback_or_change_of_the_same_traffic_is_refused(changes: Promotion) -> None:
    await changes.set(Traffic(stable=3), "anna", "", etag="0")
    seen = await changes.set(Traffic(stable=2), "anna", "")
    assert (await changes.roll_back("anna", "", seen.etag))[0].stable == 3
    for change in (changes.roll_back("ben", "", seen.etag), changes.set(Traffic(stable=1), "ben", "", seen.etag)):
        with pytest.raises(TrafficChanged, match="changed by anna since you have read it; nothing was changed"):
            await change
    traffic = read_traffic(changes.repository)
    assert traffic.stable == 3
    assert (await changes.roll_back("anna", "", record_message(traffic).etag))[0].stable == 4


async def test_a_held_lock_refuses_the_change_says_who_holds_it_and_holds_up_nothing_else(
    changes: Promotion, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(promotion, "LOCK_SECONDS", 0.2)
    with locked_traffic(changes.repository):
        waiting = [asyncio.create_task(changes.roll_back("me", "")) for _ in range(40)]
        await asyncio.wait_for(asyncio.to_thread(changes.releases.statuses), 5.0)
        with pytest.raises(TrafficLocked, match=rf"process {os.getpid()} of .* holds the lock .* for more than 0\.2 s"):
            await waiting[0]
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
    await changes.set(Traffic(stable=3), "me", "")
    assert (changes.repository / ".traffic.lock").read_text() == ""


async def test_a_change_that_waited_for_a_caller_who_has_left_is_not_made(changes: Promotion) -> None:
    with locked_traffic(changes.repository):
        task = asyncio.create_task(changes.roll_back("me", ""))
        await wait_until_async(lambda: _true(bool(changes.executor._threads)))  # type: ignore[attr-defined]
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    await asyncio.to_thread(changes.executor.shutdown)
    assert read_audit(changes.repository) == []
    assert read_traffic(changes.repository) == Traffic()


async def test_with_one_release_there_is_nothing_to_roll_back(changes: Promotion) -> None:
    for number in (4, 3, 2):
        traffic, _ = await changes.roll_back("me", "")
        assert traffic.stable == number - 1
    with pytest.raises(NothingToRollBack):
        await changes.roll_back("me", "")


async def test_a_missing_release_is_refused_before_any_release_is_loaded(
    changes: Promotion, encoder: OnnxEncoder
) -> None:
    with pytest.raises(NotFound) as caught:
        await changes.set(Traffic(stable=1, canary=9, canary_share=0.05), "me", "")
    assert caught.value.field == "traffic.canary_release"
    assert encoder.loaded == (3, 4)
    assert read_audit(changes.repository) == []


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.ENOSPC])
async def test_a_repository_that_cannot_be_written_gives_a_clear_error(
    changes: Promotion, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(number, "no")

    monkeypatch.setattr(promotion, "change_traffic", fail)
    with pytest.raises(ReadOnlyRepository, match="cannot be written"):
        await changes.set(Traffic(stable=3), "me", "")
    active = changes.releases.active
    assert active is not None
    assert active.number == 4


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"stable_release": -1}, "traffic.stable_release"),
        ({"shadow_release": 10**18}, "traffic.shadow_release"),
        ({"canary_share": float("nan")}, "traffic.canary_share"),
        ({"canary_share": 0.995}, "traffic.canary_share"),
        ({"stable_release": 1, "canary_release": 1, "canary_share": 0.05}, "traffic"),
        ({"stable_release": 1, "canary_release": 2}, "traffic"),
        ({"guard": pb.Guard()}, "traffic.guard"),
        ({"guard": pb.Guard(max_error_share=1.5)}, "traffic.guard.max_error_share"),
        ({"guard": pb.Guard(max_p99_time=Duration())}, "traffic.guard.max_p99_time"),
        ({"guard": pb.Guard(max_error_share=0.1, window=Duration(nanos=5))}, "traffic.guard.window"),
        ({"guard": pb.Guard(max_error_share=0.1, min_answer_count=-1)}, "traffic.guard.min_answer_count"),
    ],
)
def test_wrong_fields_are_named_by_their_path(fields: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        traffic_of(pb.Traffic(**fields))
    assert caught.value.field == field


def test_a_guard_may_allow_zero_errors() -> None:
    message = pb.Traffic(stable_release=1, canary_release=2, canary_share=0.05, guard=pb.Guard(max_error_share=0.0))
    assert traffic_of(message).guard == Guard(max_error_share=0.0)


def test_traffic_comes_back_as_it_was_sent() -> None:
    guard = pb.Guard(max_degraded_share=0.25, max_p99_time=Duration(nanos=50_000_000), window=Duration(seconds=9))
    guard.min_answer_count = 7
    sent = pb.Traffic(stable_release=1, canary_release=2, canary_share=0.025, shadow_release=3, guard=guard)
    assert record_message(traffic_of(sent)).traffic == sent


def test_texts_for_the_audit_log_are_one_line_of_limited_length() -> None:
    assert checked_text("größer", 8, "reason") == "größer"
    for text in ("ä" * 5, "two\nlines", "\x1b[31m"):
        with pytest.raises(InvalidArgument) as caught:
            checked_text(text, 9, "reason")
        assert caught.value.field == "reason"
