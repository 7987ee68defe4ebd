"""Which release answers which user, and which releases are loaded, without Triton or a server."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from server.core.errors import DamagedRelease, EncoderUnavailable, InvalidArgument, NotFound
from server.core.repository.layout import MODEL_NAME
from server.core.repository.traffic import TRAFFIC, Traffic, change_traffic
from server.releases import directory, traffic_watcher
from server.releases import loader as loading
from server.releases.directory import ReleaseDirectory
from server.releases.loader import Loader
from server.releases.registry import ReleaseRegistry, State
from server.releases.routing import Alias, Pin, Routing
from server.releases.traffic_watcher import TrafficWatcher
from server.rpc.messages.validation import pin_of
from tests.support.onnx_encoder import OnnxEncoder
from tests.support.releases import tiny_release
from tests.support.waiting import wait_until_async

KEY = "0123456789abcdef0123456789abcdef"
USERS = [f"user-{number}" for number in range(200)]


@pytest.fixture
def encoder(tmp_path: Path) -> OnnxEncoder:
    return OnnxEncoder(tmp_path)


@pytest.fixture
def registry(tmp_path: Path) -> ReleaseRegistry:
    return ReleaseRegistry(ReleaseDirectory(tmp_path / MODEL_NAME))


@pytest.fixture
def routing(registry: ReleaseRegistry) -> Routing:
    return Routing(registry)


@pytest.fixture
def loader(registry: ReleaseRegistry, encoder: OnnxEncoder, monkeypatch: pytest.MonkeyPatch) -> Loader:
    monkeypatch.setattr(directory, "FIRST_RETRY_SECONDS", 0.0)
    monkeypatch.setattr(loading, "PROBE_SECONDS", 0.0)
    return Loader(registry, encoder, keep=2)


@pytest.fixture
async def following(loader: Loader) -> AsyncIterator[Loader]:
    """The loader, following the repository until the test ends."""
    stop = asyncio.Event()
    task = asyncio.create_task(loader.follow(0.01, stop))
    yield loader
    stop.set()
    await task


def canary(percent: float, stable: int = 1, number: int = 2, shadow: int = 0) -> Traffic:
    return Traffic(stable=stable, canary=number, canary_share=percent / 100, shadow=shadow, key=KEY)


def answering(routing: Routing, user_id: str, pin: Pin = Pin()) -> int:  # noqa: B008 it is frozen
    with routing.lease(pin, user_id) as release:
        return release.number


async def test_the_stable_release_of_the_traffic_answers_and_a_newer_one_is_on_standby(
    tmp_path: Path, registry: ReleaseRegistry, loader: Loader
) -> None:
    for number in (1, 2, 3):
        tiny_release(tmp_path, number)
    registry.set_traffic(Traffic(stable=2, previous=(1,)))
    await loader.refresh()
    assert registry.get().number == 2
    assert [(one.number, one.state, one.traffic_share) for one in registry.statuses()] == [
        (3, State.STANDBY, 0.0),
        (2, State.ACTIVE, 1.0),
        (1, State.STANDBY, 0.0),
    ]
    registry.set_traffic(Traffic())
    assert registry.get().number == 3


async def test_the_canary_answers_its_users_and_nobody_else(
    tmp_path: Path, registry: ReleaseRegistry, loader: Loader, routing: Routing
) -> None:
    for number in (1, 2):
        tiny_release(tmp_path, number)
    traffic = canary(30)
    registry.set_traffic(traffic)
    await loader.refresh()
    assert registry.shares() == {1: 0.7, 2: 0.3}
    assert [status.state for status in registry.statuses()] == [State.CANARY, State.ACTIVE]
    told = {user: answering(routing, user) for user in USERS}
    assert told == {user: 2 if traffic.is_canary_user(user) else 1 for user in USERS}
    assert set(told.values()) == {1, 2}
    with routing.lease() as release:
        assert release.number == 1  # a history given inline


async def test_a_pin_overrides_the_traffic(
    tmp_path: Path, registry: ReleaseRegistry, loader: Loader, routing: Routing
) -> None:
    for number in (1, 2, 3):
        tiny_release(tmp_path, number)
    registry.set_traffic(canary(50))
    await loader.refresh()
    for user in USERS[:20]:
        assert answering(routing, user, Pin(3)) == 3
        assert answering(routing, user, Pin(alias=Alias.STABLE)) == 1
        assert answering(routing, user, Pin(alias=Alias.CANARY)) == 2
    assert routing.get(Pin(alias=Alias.CANARY)).number == 2
    registry.set_traffic(Traffic(stable=1))
    with pytest.raises(NotFound, match="no canary") as caught:
        routing.get(Pin(alias=Alias.CANARY))
    assert caught.value.field == "release_alias"


async def test_a_canary_that_is_damaged_gets_no_traffic_and_says_why_once(
    tmp_path: Path, registry: ReleaseRegistry, loader: Loader, routing: Routing, caplog: pytest.LogCaptureFixture
) -> None:
    tiny_release(tmp_path, 1)
    broken = tiny_release(tmp_path, 2)
    kept = (broken / "centroids.npy").read_bytes()
    (broken / "centroids.npy").write_bytes(b"damaged")
    registry.set_traffic(canary(99))
    for _ in range(3):
        await loader.refresh()
    assert {answering(routing, user) for user in USERS} == {1}
    assert registry.shares() == {1: 1.0}
    assert registry.status(2).state is State.FAILED
    assert "centroids.npy" in registry.status(2).failure
    assert len([one for one in caplog.records if "release 2 is not activated" in one.message]) == 1
    (broken / "centroids.npy").write_bytes(kept)
    await loader.refresh()
    assert answering(routing, next(filter(canary(99).is_canary_user, USERS))) == 2


async def test_a_canary_that_fails_its_golden_inputs_later_gets_no_traffic_until_it_passes_them(
    tmp_path: Path, registry: ReleaseRegistry, loader: Loader, routing: Routing, encoder: OnnxEncoder
) -> None:
    for number in (1, 2):
        tiny_release(tmp_path, number)
    registry.set_traffic(canary(99))
    await loader.refresh()
    user = next(filter(canary(99).is_canary_user, USERS))
    assert answering(routing, user) == 2
    encoder.wrong_releases = {2}
    await loader.refresh()
    assert answering(routing, user) == 1
    assert registry.status(2).state is State.FAILED
    assert "golden inputs differ" in registry.status(2).failure
    assert registry.encoder_healthy
    encoder.wrong_releases = set()
    await loader.refresh()
    assert answering(routing, user) == 2
    assert registry.status(2).failure == ""


async def test_a_stable_release_that_cannot_be_loaded_leaves_the_one_before_answering(
    tmp_path: Path, registry: ReleaseRegistry, loader: Loader, caplog: pytest.LogCaptureFixture
) -> None:
    for number in (1, 2):
        tiny_release(tmp_path, number)
    await loader.refresh()
    registry.set_traffic(Traffic(stable=7, previous=(1,)))
    await loader.refresh()
    await loader.refresh()
    assert registry.get().number == 2
    assert [(one.number, one.state) for one in registry.statuses()] == [
        (7, State.FAILED),
        (2, State.ACTIVE),
        (1, State.STANDBY),
    ]
    assert len([one for one in caplog.records if "release 7 is not activated" in one.message]) == 1
    tiny_release(tmp_path, 7)
    await loader.refresh()
    assert registry.get().number == 7


async def test_at_a_start_with_a_damaged_stable_release_the_previous_one_answers(
    tmp_path: Path, registry: ReleaseRegistry, loader: Loader
) -> None:
    for number in (1, 2, 3):
        tiny_release(tmp_path, number)
    (tmp_path / MODEL_NAME / "2" / "manifest.json").write_text("{}")
    registry.set_traffic(Traffic(stable=2, previous=(1,)))
    await loader.refresh()
    assert registry.get().number == 1


async def test_a_rollback_after_a_start_finds_its_release_loaded(
    tmp_path: Path, registry: ReleaseRegistry, loader: Loader, encoder: OnnxEncoder
) -> None:
    for number in (1, 2, 3):
        tiny_release(tmp_path, number)
    await loader.refresh()
    assert encoder.loaded == (2, 3)
    registry.set_traffic(Traffic(stable=2))
    assert registry.get().number == 2


async def test_the_releases_of_the_traffic_the_newest_and_the_last_active_ones_are_loaded(
    tmp_path: Path, registry: ReleaseRegistry, loader: Loader, encoder: OnnxEncoder
) -> None:
    for number in range(1, 8):
        tiny_release(tmp_path, number)
    registry.set_traffic(canary(5, stable=3, number=4, shadow=2).model_copy(update={"previous": (1,)}))
    await loader.refresh()
    assert encoder.loaded == (1, 2, 3, 4, 7)
    assert registry.status(2).state is State.SHADOW
    registry.set_traffic(Traffic(stable=5, previous=(3, 1)))
    await loader.refresh()
    assert encoder.loaded == (3, 5, 7)


async def test_a_chunk_is_split_by_the_canary_and_keeps_the_stable_release_of_its_stream(
    tmp_path: Path, registry: ReleaseRegistry, loader: Loader, routing: Routing, encoder: OnnxEncoder
) -> None:
    for number in (1, 2, 3):
        tiny_release(tmp_path, number)
    registry.set_traffic(canary(50))
    await loader.refresh()
    with routing.lease() as current:
        registry.set_traffic(canary(50, stable=3))
        with routing.lease_chunk(current) as route:
            assert {route.release_for(user).number for user in USERS} == {1, 2}
            registry.set_traffic(Traffic(stable=3))
            await loader.refresh()
            assert encoder.loaded == (1, 2, 3)  # leased
            assert {route.release_for(user).number for user in USERS} == {1, 2}
        with routing.lease_chunk(current) as route:
            assert {route.release_for(user).number for user in USERS} == {1}


async def test_a_rollback_takes_effect_while_another_release_is_being_loaded(
    tmp_path: Path, registry: ReleaseRegistry, loader: Loader, routing: Routing
) -> None:
    for number in (1, 2):
        tiny_release(tmp_path, number)
    registry.set_traffic(canary(99))
    await loader.refresh()
    user = next(filter(canary(99).is_canary_user, USERS))
    held = asyncio.Event()

    async def warm_for_long(release: object) -> None:
        held.set()
        await asyncio.Event().wait()

    loader.warm_up = warm_for_long
    tiny_release(tmp_path, 3)
    task = asyncio.create_task(loader.refresh())
    await held.wait()
    assert answering(routing, user) == 2
    assert registry.status(3).state is State.LOADING
    registry.set_traffic(Traffic(stable=1))
    assert answering(routing, user) == 1
    task.cancel()


async def test_a_release_takes_traffic_only_after_its_warm_up(
    tmp_path: Path, registry: ReleaseRegistry, loader: Loader
) -> None:
    warmed: list[int] = []

    async def warm(release: object) -> None:
        assert registry.active is None
        warmed.append(1)

    loader.warm_up = warm
    tiny_release(tmp_path, 1)
    await loader.refresh()
    assert warmed == [1]
    assert registry.get().number == 1


async def test_a_release_whose_warm_up_fails_is_not_activated(
    tmp_path: Path, registry: ReleaseRegistry, loader: Loader, encoder: OnnxEncoder
) -> None:
    async def warm(release: object) -> None:
        raise EncoderUnavailable("Triton's answer holds embeddings that are not finite")

    tiny_release(tmp_path, 1)
    await loader.refresh()
    loader.warm_up = warm
    tiny_release(tmp_path, 2)
    await loader.refresh()
    assert registry.get().number == 1
    assert "not finite" in registry.status(2).failure
    assert encoder.loaded == (1,)


async def test_hold_loaded_loads_releases_and_keeps_them_until_the_block_ends(
    tmp_path: Path, registry: ReleaseRegistry, following: Loader, encoder: OnnxEncoder
) -> None:
    for number in range(1, 6):
        tiny_release(tmp_path, number)
    await wait_until_async(lambda: _is(registry.active is not None and encoder.loaded == (4, 5)))
    async with following.hold_loaded([1, 2], 10.0):
        assert encoder.loaded == (1, 2, 4, 5)
    await wait_until_async(lambda: _is(encoder.loaded == (4, 5)))


async def test_hold_loaded_raises_the_failure_of_a_release_at_once(tmp_path: Path, following: Loader) -> None:
    tiny_release(tmp_path, 2)
    (tiny_release(tmp_path, 1) / "centroids.npy").write_bytes(b"damaged")
    with pytest.raises(DamagedRelease, match=r"centroids\.npy"):
        async with following.hold_loaded([1], 10.0):
            pass


async def test_hold_loaded_waits_no_longer_than_its_timeout(
    tmp_path: Path, following: Loader, encoder: OnnxEncoder
) -> None:
    encoder.gate = asyncio.Event()
    tiny_release(tmp_path, 1)
    with pytest.raises(EncoderUnavailable, match=r"release 1 was not loaded within 0\.05 s"):
        async with following.hold_loaded([1], 0.05):
            pass
    encoder.gate.set()


async def test_a_damaged_traffic_file_leaves_the_last_good_traffic_in_force(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    watcher = TrafficWatcher(tmp_path)
    seen: list[int] = []
    watcher.on_change.append(lambda traffic: seen.append(traffic.stable))
    await watcher.refresh()
    change_traffic(tmp_path, lambda before: before.with_stable(3), "traffic", "me")
    await watcher.refresh()
    (tmp_path / TRAFFIC).write_text("{")
    for _ in range(3):
        await watcher.refresh()
    assert watcher.traffic.stable == 3
    assert "is damaged" in watcher.failure
    assert len([one for one in caplog.records if "is damaged" in one.message]) == 1
    change_traffic(tmp_path, lambda before: before.with_stable(4), "traffic", "me")
    await watcher.refresh()
    assert watcher.failure == ""
    assert seen == [0, 3, 4]


async def test_at_a_start_with_a_damaged_traffic_file_the_last_traffic_of_the_audit_log_is_in_force(
    tmp_path: Path,
) -> None:
    change_traffic(tmp_path, lambda before: before.with_stable(3), "traffic", "me")
    (tmp_path / TRAFFIC).write_text("[]")
    watcher = TrafficWatcher(tmp_path)
    await watcher.refresh()
    assert watcher.traffic.stable == 3
    assert watcher.failure


async def test_following_the_traffic_survives_any_exception(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(traffic_watcher, "POLL_SECONDS", 0.001)
    watcher, stop, seen = TrafficWatcher(tmp_path), asyncio.Event(), asyncio.Event()

    def fail_once(traffic: Traffic) -> None:
        if traffic.stable == 1:
            raise RuntimeError
        if traffic.stable == 2:
            seen.set()

    watcher.on_change.append(fail_once)
    task = asyncio.create_task(watcher.follow(stop))
    change_traffic(tmp_path, lambda before: before.with_stable(1), "traffic", "me")
    await wait_until_async(lambda: _is(watcher.traffic.stable == 1))
    change_traffic(tmp_path, lambda before: before.with_stable(2), "traffic", "me")
    await asyncio.wait_for(seen.wait(), 5.0)
    stop.set()
    await task
    assert "the traffic could not be followed" in caplog.text


async def _is(value: bool) -> bool:
    return value


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"release": -1}, "release"),
        ({"release_alias": 9}, "release_alias"),
        ({"release": 0}, "release"),
        ({"release_alias": 0}, "release_alias"),
    ],
)
def test_wrong_pins_name_their_field(fields: dict[str, int], field: str) -> None:
    from segrec.v1.segrec_service_pb2 import SegmentRequest

    with pytest.raises(InvalidArgument) as caught:
        pin_of(SegmentRequest(**fields))  # type: ignore[arg-type]
    assert caught.value.field == field
