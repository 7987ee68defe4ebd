"""What a loader does to a Triton that other servers use too."""

from pathlib import Path

import pytest

from server.core.repository.layout import MODEL_NAME
from server.core.repository.traffic import Traffic
from server.releases import directory
from server.releases import loader as loading
from server.releases.directory import ReleaseDirectory
from server.releases.loader import Loader
from server.releases.registry import ReleaseRegistry
from server.releases.unused import UNUSED_SECONDS, UnusedReleases
from tests.support.onnx_encoder import OnnxEncoder
from tests.support.releases import tiny_release
from tests.support.ticking import Clock


@pytest.fixture
def triton(tmp_path: Path) -> OnnxEncoder:
    """A Triton with releases 1 to 5 on disk, of which others have loaded 1, 2 and 3."""
    for number in range(1, 6):
        tiny_release(tmp_path, number)
    encoder = OnnxEncoder(tmp_path)
    encoder.loaded = (1, 2, 3)
    return encoder


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def loader(triton: OnnxEncoder, tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> Loader:
    monkeypatch.setattr(directory, "FIRST_RETRY_SECONDS", 0.0)
    monkeypatch.setattr(loading, "UNUSED_CHECK_SECONDS", 0.0)
    registry = ReleaseRegistry(ReleaseDirectory(tmp_path / MODEL_NAME))
    registry.set_traffic(Traffic(stable=5))
    return Loader(registry, triton, keep=1, shared=True, clock=clock)


async def test_a_start_unloads_nothing_and_unused_releases_go_when_nobody_has_used_them_for_long(
    loader: Loader, triton: OnnxEncoder, clock: Clock
) -> None:
    await loader.refresh()
    assert triton.loaded == (1, 2, 3, 5)
    for _ in range(3):
        clock.now += UNUSED_SECONDS / 2 - 1
        triton.counts[2] += 1  # another server
        await loader.refresh()
    assert triton.loaded == (2, 5)
    clock.now += UNUSED_SECONDS
    await loader.refresh()
    assert triton.loaded == (5,)


async def test_a_release_without_a_directory_is_not_named_in_a_load(
    loader: Loader, triton: OnnxEncoder, tmp_path: Path
) -> None:
    (tmp_path / MODEL_NAME / "2").rename(tmp_path / "away")
    await loader.refresh()
    assert triton.loaded == (1, 3, 5)


async def test_a_release_that_fails_here_stays_for_the_servers_that_answer_from_it(
    loader: Loader, triton: OnnxEncoder
) -> None:
    triton.loaded = (3, 5)
    triton.wrong_releases = {4, 5}
    for _ in range(3):
        await loader.refresh()
        assert triton.loaded == (3, 5)


async def test_a_release_that_triton_has_lost_is_loaded_again(
    loader: Loader, triton: OnnxEncoder, clock: Clock
) -> None:
    await loader.refresh()
    triton.loaded = (1,)
    clock.now += loading.PROBE_SECONDS
    await loader.refresh()
    assert triton.loaded == (1, 5)


def test_a_release_that_is_wanted_again_is_unused_from_its_last_use_on(clock: Clock) -> None:
    unused = UnusedReleases(clock)
    assert unused.find({1: 7}, wanted=()) == set()
    clock.now += UNUSED_SECONDS
    assert unused.find({1: 7}, wanted={1}) == set()
    assert unused.find({1: 7}, wanted=()) == set()
    clock.now += UNUSED_SECONDS
    assert unused.find({1: 8}, wanted=()) == set()
    clock.now += UNUSED_SECONDS
    assert unused.find({1: 8}, wanted=()) == {1}
