import asyncio
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from server.core.errors import NoRelease, NotFound
from server.core.repository.layout import MODEL_NAME
from server.core.repository.traffic import Traffic
from server.releases import directory
from server.releases import loader as loading
from server.releases.directory import ReleaseDirectory
from server.releases.loader import Loader
from server.releases.registry import ReleaseRegistry, State
from tests.support.onnx_encoder import OnnxEncoder
from tests.support.releases import tiny_release


@pytest.fixture
def encoder(tmp_path: Path) -> OnnxEncoder:
    return OnnxEncoder(tmp_path)


@pytest.fixture
def registry(tmp_path: Path) -> ReleaseRegistry:
    """The registry of an empty repository."""
    return ReleaseRegistry(ReleaseDirectory(tmp_path / MODEL_NAME))


@pytest.fixture
def loader(registry: ReleaseRegistry, encoder: OnnxEncoder, monkeypatch: pytest.MonkeyPatch) -> Loader:
    """Tries failed releases again and probes in every round."""
    monkeypatch.setattr(directory, "FIRST_RETRY_SECONDS", 0.0)
    monkeypatch.setattr(loading, "PROBE_SECONDS", 0.0)
    return Loader(registry, encoder, keep=2)


async def test_without_a_release_get_says_how_to_publish_one(registry: ReleaseRegistry, loader: Loader) -> None:
    await loader.refresh()
    with pytest.raises(NoRelease, match="segrec-train publish"):
        registry.get()


async def test_the_newest_good_release_becomes_active(
    tmp_path: Path, registry: ReleaseRegistry, loader: Loader
) -> None:
    tiny_release(tmp_path, 1)
    tiny_release(tmp_path, 2)
    changes: list[int] = []
    registry.on_change.append(lambda: changes.append(registry.get().number))
    await loader.refresh()
    assert registry.get().number == 2
    assert changes == [2, 2]  # active, then healthy
    tiny_release(tmp_path, 3)
    await loader.refresh()
    assert registry.get().number == 3
    assert registry.loaded_numbers() == [2, 3]
    assert registry.get(2).number == 2
    with pytest.raises(NotFound, match="loaded releases are 2, 3"):
        registry.get(1)


async def test_a_damaged_release_leaves_the_old_one_active_and_says_why(
    tmp_path: Path, registry: ReleaseRegistry, loader: Loader, caplog: pytest.LogCaptureFixture
) -> None:
    tiny_release(tmp_path, 1)
    await loader.refresh()
    broken = tiny_release(tmp_path, 2)
    (broken / "centroids.npy").write_bytes(b"damaged")
    for _ in range(3):
        await loader.refresh()
    assert registry.get().number == 1
    status = registry.status(2)
    assert status.state is State.FAILED
    assert "centroids.npy is not the file that was published" in status.failure
    assert registry.failed_count() == 1
    named = [record for record in caplog.records if "release 2 is not activated" in record.message]
    assert len(named) == 1
    shutil.rmtree(broken)
    tiny_release(tmp_path, 2, seed=5)
    await loader.refresh()
    assert registry.get().number == 2
    assert registry.failed_count() == 0


async def test_a_damaged_newest_release_does_not_hide_a_good_older_one(
    tmp_path: Path, registry: ReleaseRegistry, loader: Loader
) -> None:
    tiny_release(tmp_path, 1)
    (tmp_path / MODEL_NAME / "2").mkdir()
    await loader.refresh()
    assert registry.get().number == 1
    assert [(status.number, status.state) for status in registry.statuses()] == [(2, State.FAILED), (1, State.ACTIVE)]


async def test_wrong_golden_embeddings_are_refused(
    tmp_path: Path, registry: ReleaseRegistry, loader: Loader, encoder: OnnxEncoder
) -> None:
    tiny_release(tmp_path, 1)
    encoder.wrong = True
    await loader.refresh()
    with pytest.raises(NoRelease):
        registry.get()
    assert "golden inputs differ" in registry.status(1).failure
    assert encoder.loaded == ()


async def test_a_release_that_triton_cannot_load_is_tried_again(
    tmp_path: Path, registry: ReleaseRegistry, loader: Loader, encoder: OnnxEncoder
) -> None:
    tiny_release(tmp_path, 1)
    encoder.unloadable = {1}
    await loader.refresh()
    assert registry.status(1).state is State.FAILED
    encoder.unloadable = set()
    await loader.refresh()
    assert registry.get().number == 1


@pytest.mark.parametrize("name", ["2.tmp", "02", "0", "-1", "1" * 18 + "x"])
async def test_directories_without_a_release_number_are_ignored_and_logged_once(
    tmp_path: Path, registry: ReleaseRegistry, loader: Loader, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    tiny_release(tmp_path, 1)
    (tmp_path / MODEL_NAME / name).mkdir()
    await loader.refresh()
    await loader.refresh()
    assert registry.get().number == 1
    assert [status.number for status in registry.statuses()] == [1]
    assert len([record for record in caplog.records if name in record.message]) == 1


async def test_nothing_is_loaded_while_a_directory_name_would_crash_triton(
    tmp_path: Path, registry: ReleaseRegistry, loader: Loader, encoder: OnnxEncoder
) -> None:
    tiny_release(tmp_path, 1)
    await loader.refresh()
    long = tmp_path / MODEL_NAME / ("1" * 20)
    long.mkdir()
    tiny_release(tmp_path, 2)
    await loader.refresh()
    assert (registry.get().number, encoder.loaded) == (1, (1,))
    assert "19 or more digits crashes Triton: remove it" in registry.status(2).failure
    long.rmdir()
    await loader.refresh()
    assert (registry.get().number, encoder.loaded) == (2, (1, 2))


async def test_a_leased_release_stays_loaded_until_the_lease_ends(
    tmp_path: Path, registry: ReleaseRegistry, loader: Loader, encoder: OnnxEncoder
) -> None:
    unloaded: list[int] = []
    registry.on_unload.append(unloaded.append)
    tiny_release(tmp_path, 1)
    await loader.refresh()
    with registry.lease() as release:
        for number in (2, 3, 4):
            tiny_release(tmp_path, number)
            await loader.refresh()
        assert release.number == 1
        assert encoder.loaded == (1, 3, 4)
        assert unloaded == [2]
    await loader.refresh()
    assert encoder.loaded == (3, 4)
    assert unloaded == [2, 1]


async def test_a_triton_that_forgot_everything_is_loaded_again(
    tmp_path: Path, registry: ReleaseRegistry, loader: Loader, encoder: OnnxEncoder
) -> None:
    tiny_release(tmp_path, 1)
    await loader.refresh()
    encoder.loaded = ()
    encoder.down = True
    await loader.refresh()
    assert not registry.encoder_healthy
    assert registry.get().number == 1
    encoder.down = False
    await loader.refresh()
    assert registry.encoder_healthy
    assert encoder.loaded == (1,)


async def test_an_encoder_that_answers_wrongly_is_not_healthy(
    tmp_path: Path, registry: ReleaseRegistry, loader: Loader, encoder: OnnxEncoder
) -> None:
    tiny_release(tmp_path, 1)
    await loader.refresh()
    encoder.wrong = True
    await loader.refresh()
    assert not registry.encoder_healthy


async def test_a_withheld_canary_gets_no_users_until_the_traffic_changes(
    tmp_path: Path, registry: ReleaseRegistry, loader: Loader
) -> None:
    def canary(percent: float) -> Traffic:
        return Traffic(stable=1, canary=2, canary_share=percent / 100, key="0" * 32)

    for number in (1, 2):
        tiny_release(tmp_path, number)
    registry.set_traffic(canary(50))
    await loader.refresh()
    registry.withhold_canary(canary(40), "of a traffic that is not in force")
    assert registry.shares() == {1: 0.5, 2: 0.5}
    registry.withhold_canary(canary(50), "it is too slow")
    await loader.refresh()
    assert registry.canary is None
    assert registry.shares() == {1: 1.0}
    status = registry.status(2)
    assert (status.state, status.failure) == (State.STANDBY, "it is too slow")
    registry.set_traffic(canary(50))
    assert registry.canary is None
    registry.set_traffic(canary(60))
    assert registry.shares() == {1: 0.4, 2: 0.6}
    assert registry.status(2).failure == ""


async def test_a_loaded_release_whose_files_were_pruned_does_not_hinder_the_next(
    tmp_path: Path, registry: ReleaseRegistry, encoder: OnnxEncoder
) -> None:
    loader = Loader(registry, encoder, keep=3)
    for number in (1, 2, 3):
        tiny_release(tmp_path, number)
        await loader.refresh()
    assert registry.loaded_numbers() == [1, 2, 3]
    shutil.rmtree(tmp_path / MODEL_NAME / "1")
    encoder.unloadable.add(1)  # as Triton refuses a load that names what is not in its repository
    tiny_release(tmp_path, 4)
    await loader.refresh()
    assert registry.get().number == 4
    assert registry.loaded_numbers() == [2, 3, 4]


async def test_an_active_release_that_triton_cannot_load_again_is_replaced_until_it_can(
    tmp_path: Path, registry: ReleaseRegistry, loader: Loader, encoder: OnnxEncoder, caplog: pytest.LogCaptureFixture
) -> None:
    for number in (1, 2, 3):
        tiny_release(tmp_path, number)
    registry.set_traffic(Traffic(stable=2, previous=(1,)))
    await loader.refresh()
    assert (registry.get().number, registry.is_replaced) == (2, False)
    encoder.loaded, encoder.unloadable = (), {2}
    for _ in range(3):
        await loader.refresh()
    assert (registry.get().number, registry.is_replaced) == (1, True)
    assert registry.encoder_healthy
    assert (registry.status(2).state, registry.status(2).failure) == (State.FAILED, "cannot load [2]")
    assert registry.failed_count() == 1
    assert len([one for one in caplog.records if "release 2 of traffic.json is not loaded" in one.message]) == 1
    encoder.unloadable = set()
    await loader.refresh()
    assert (registry.get().number, registry.is_replaced) == (2, False)
    assert registry.failed_count() == 0


async def test_an_active_release_of_wrong_embeddings_is_replaced_by_one_that_passes_and_loaded_anew(
    tmp_path: Path, registry: ReleaseRegistry, loader: Loader, encoder: OnnxEncoder
) -> None:
    for number in (1, 2):
        tiny_release(tmp_path, number)
    await loader.refresh()
    encoder.wrong_releases = {2}
    await loader.refresh()
    assert registry.get().number == 1
    assert registry.encoder_healthy
    assert encoder.loaded == (1,)
    assert "golden inputs differ" in registry.status(2).failure
    encoder.wrong_releases = set()
    await loader.refresh()
    assert registry.get().number == 2


async def test_a_lone_release_that_cannot_be_loaded_again_stays_and_is_tried_again(
    tmp_path: Path, registry: ReleaseRegistry, loader: Loader, encoder: OnnxEncoder
) -> None:
    tiny_release(tmp_path, 1)
    await loader.refresh()
    encoder.loaded, encoder.unloadable = (), {1}
    await loader.refresh()
    assert (registry.get().number, registry.encoder_healthy) == (1, False)
    encoder.unloadable = set()
    await loader.refresh()
    assert registry.encoder_healthy


@pytest.mark.parametrize("active", [0, 1])
async def test_an_unreadable_directory_and_a_link_to_nothing_stop_no_other_release(
    tmp_path: Path, registry: ReleaseRegistry, loader: Loader, monkeypatch: pytest.MonkeyPatch, active: int
) -> None:
    """Also at a start, when no release is active yet. The tests may run as root, who can read every directory."""
    if active:
        tiny_release(tmp_path, active)
        await loader.refresh()
    for number in (2, 3, 4):
        tiny_release(tmp_path, number)
    (tmp_path / MODEL_NAME / "3" / ".#manifest.json").symlink_to("anna@laptop.4711")
    closed, read_bytes, iterdir = tmp_path / MODEL_NAME / "4", Path.read_bytes, Path.iterdir

    def refused(read: Callable[[Path], Any]) -> Callable[[Path], Any]:
        def refuse(path: Path) -> Any:
            if closed in (path, path.parent):
                raise PermissionError(13, "Permission denied", str(path))
            return read(path)

        return refuse

    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", refused(read_bytes))
        patch.setattr(Path, "iterdir", refused(iterdir))
        await loader.refresh()
        assert registry.get().number == 3
        assert registry.status(4).state is State.FAILED
        assert "Permission denied" in registry.status(4).failure
    await loader.refresh()
    assert registry.get().number == 4


@pytest.mark.parametrize("place", [".#config.pbtxt", "../.#traffic.json"])
async def test_nothing_is_loaded_beside_a_link_that_triton_stumbles_over(
    tmp_path: Path, registry: ReleaseRegistry, loader: Loader, encoder: OnnxEncoder, place: str
) -> None:
    tiny_release(tmp_path, 1)
    await loader.refresh()
    link = tmp_path / MODEL_NAME / place
    link.symlink_to("anna@laptop.4711")
    tiny_release(tmp_path, 2)
    await loader.refresh()
    assert (registry.get().number, encoder.loaded) == (1, (1,))
    assert "a link to a file that does not exist: remove it" in registry.status(2).failure
    link.unlink()
    await loader.refresh()
    assert registry.get().number == 2


async def test_a_repository_that_cannot_be_read_is_said_once(
    tmp_path: Path, loader: Loader, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    stop, rounds = asyncio.Event(), 0

    async def refresh() -> None:
        nonlocal rounds
        rounds += 1
        if rounds == 3:
            stop.set()
        raise PermissionError(13, "Permission denied", str(tmp_path))

    monkeypatch.setattr(loader, "refresh", refresh)
    await asyncio.wait_for(loader.follow(0.001, stop), 5)
    [record] = [record for record in caplog.records if "cannot be read" in record.message]
    assert record.exc_info is None
