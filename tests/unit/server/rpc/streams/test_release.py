"""Which release answers a stream, and how long the stream keeps it loaded."""

from pathlib import Path

import pytest

from server.core.errors import NoRelease, ReleaseGone
from server.core.repository.layout import MODEL_NAME
from server.core.repository.read import read_release
from server.releases.directory import ReleaseDirectory
from server.releases.registry import ReleaseRegistry
from server.releases.routing import Routing
from server.rpc.streams.release import StreamRelease
from tests.support.releases import tiny_release
from tests.support.waiting import wait_until_async

LONG, SHORT = 60.0, 0.02


@pytest.fixture
def registry(tmp_path: Path) -> ReleaseRegistry:
    registry = ReleaseRegistry(ReleaseDirectory(tmp_path / MODEL_NAME))
    registry.add(read_release(tiny_release(tmp_path, 1)))
    return registry


def push(registry: ReleaseRegistry, tmp_path: Path, number: int) -> list[int]:
    """Make a release active, and unload those that nobody uses; returns the numbers of the loaded ones."""
    registry.add(read_release(tiny_release(tmp_path, number)))
    registry.drop_idle(keep=1, needed=(), present=(number,))
    return registry.loaded_numbers()


def chunk(stream: StreamRelease) -> int:
    with stream.lease() as release:
        return release.number


async def test_a_stream_keeps_the_release_of_its_first_chunk(registry: ReleaseRegistry, tmp_path: Path) -> None:
    stream = StreamRelease(Routing(registry), LONG)
    assert chunk(stream) == 1
    assert push(registry, tmp_path, 2) == [1, 2]
    assert chunk(stream) == 1
    stream.close()
    assert push(registry, tmp_path, 3) == [3]


async def test_a_stream_without_chunks_holds_no_release(registry: ReleaseRegistry, tmp_path: Path) -> None:
    stream = StreamRelease(Routing(registry), LONG)
    assert push(registry, tmp_path, 2) == [2]
    assert chunk(stream) == 2
    stream.close()


async def test_an_idle_stream_gives_its_release_back_and_goes_on_with_the_active_one(
    registry: ReleaseRegistry, tmp_path: Path
) -> None:
    stream = StreamRelease(Routing(registry), SHORT)
    assert chunk(stream) == 1
    push(registry, tmp_path, 2)

    async def is_given_back() -> bool:
        registry.drop_idle(keep=1, needed=(), present=(2,))
        return registry.loaded_numbers() == [2]

    await wait_until_async(is_given_back)
    assert chunk(stream) == 2
    stream.close()


async def test_an_idle_stream_goes_on_with_its_release_while_that_is_loaded(
    registry: ReleaseRegistry, tmp_path: Path
) -> None:
    stream = StreamRelease(Routing(registry), 0.0)
    with stream.lease() as release, stream.lease():
        assert release.number == 1
        push(registry, tmp_path, 2)
    assert chunk(stream) == 1
    stream.close()


async def test_an_interrupted_stream_goes_on_with_its_release_or_says_that_it_is_gone(
    registry: ReleaseRegistry, tmp_path: Path
) -> None:
    routing = Routing(registry)
    with routing.lease():
        push(registry, tmp_path, 2)
    resumed = StreamRelease(routing, LONG, base_release=1)
    assert [chunk(resumed), chunk(resumed)] == [1, 1]
    resumed.close()
    push(registry, tmp_path, 3)
    late = StreamRelease(routing, LONG, base_release=1)
    with pytest.raises(ReleaseGone, match=r"release 1 is not loaded.*without --resume"):
        chunk(late)
    late.close()


async def test_a_stream_waits_for_a_release_on_another_connection(tmp_path: Path) -> None:
    stream = StreamRelease(Routing(ReleaseRegistry(ReleaseDirectory(tmp_path))), LONG)
    with pytest.raises(NoRelease):
        chunk(stream)
    stream.close()
