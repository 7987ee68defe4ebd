"""A release that stands by answers when the traffic names it, and never because it is the newest."""

import json
from pathlib import Path

import pytest

from server.core.errors import NoRelease
from server.core.repository.layout import MODEL_NAME
from server.core.repository.traffic import Traffic
from server.releases.directory import ReleaseDirectory
from server.releases.loader import Loader
from server.releases.registry import ReleaseRegistry
from tests.support.onnx_encoder import OnnxEncoder
from tests.support.releases import tiny_release

REASON = "A rule of one line, `popularity`, predicts better."


@pytest.fixture
def registry(tmp_path: Path) -> ReleaseRegistry:
    return ReleaseRegistry(ReleaseDirectory(tmp_path / MODEL_NAME))


@pytest.fixture
def loader(registry: ReleaseRegistry, tmp_path: Path) -> Loader:
    return Loader(registry, OnnxEncoder(tmp_path), keep=2)


def standing_by(repository: Path, number: int) -> None:
    path = tiny_release(repository, number) / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"stands_by": REASON}))


async def test_alone_it_answers_nobody_and_the_error_says_why(
    tmp_path: Path, registry: ReleaseRegistry, loader: Loader
) -> None:
    standing_by(tmp_path, 1)
    await loader.refresh()
    with pytest.raises(NoRelease, match=r"release 1 stands by \(A rule of one line, `popularity`, predicts better\)"):
        registry.get()
    assert registry.loaded_numbers() == []
    registry.set_traffic(Traffic(stable=1))
    await loader.refresh()
    assert registry.get().number == 1


async def test_the_newest_other_release_answers(tmp_path: Path, registry: ReleaseRegistry, loader: Loader) -> None:
    tiny_release(tmp_path, 1)
    standing_by(tmp_path, 2)
    await loader.refresh()
    assert registry.get().number == 1
    assert registry.good_numbers() == [1]
    registry.set_traffic(Traffic(stable=2, previous=(1,)))
    await loader.refresh()
    assert (registry.get().number, registry.good_numbers()) == (2, [2, 1])
    registry.set_traffic(Traffic())
    assert registry.get().number == 1
