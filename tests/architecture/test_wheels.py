"""The two wheels: what each of them puts into site-packages, and what it needs."""

import subprocess
import sys
from collections.abc import Set
from dataclasses import dataclass
from email.message import Message
from email.parser import Parser
from pathlib import Path
from zipfile import ZipFile

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
DATA = {
    "server/adapters/embedded_triton/requirements.txt",
    "server/core/repository/config.pbtxt",
    *(path.relative_to(ROOT).as_posix() for path in (ROOT / "training").rglob("*.j2")),
}


@dataclass(frozen=True)
class Wheel:
    """A wheel's packages, their files, its metadata and its scripts."""

    files: Set[str]
    metadata: Message
    entry_points: str

    @classmethod
    def build(cls, project: Path, out: Path) -> "Wheel":
        command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(out)]
        result = subprocess.run(command, cwd=project, capture_output=True, text=True, timeout=60, check=False)
        assert result.returncode == 0, result.stderr
        [path] = out.iterdir()
        with ZipFile(path) as archive:
            info = f"{'-'.join(path.name.split('-')[:2])}.dist-info"
            metadata = Parser().parsestr(archive.read(f"{info}/METADATA").decode())
            scripts = archive.read(f"{info}/entry_points.txt").decode()
            files = {name for name in archive.namelist() if not name.startswith(f"{info}/")}
        return cls(files, metadata, scripts)

    @property
    def packages(self) -> set[str]:
        return {name.split("/")[0] for name in self.files}

    def requirements(self) -> set[str]:
        """What it needs without an extra."""
        found = map(Requirement, self.metadata.get_all("Requires-Dist", []))
        return {f"{one.name}{one.specifier}" for one in found if one.marker is None}


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Wheel:
    return Wheel.build(ROOT / "protos", tmp_path_factory.mktemp("client"))


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Wheel:
    return Wheel.build(ROOT, tmp_path_factory.mktemp("platform"))


def sources(*folders: str) -> set[str]:
    return {path.relative_to(ROOT).as_posix() for folder in folders for path in (ROOT / folder).rglob("*.py")}


def test_the_clients_wheel_holds_the_client(client: Wheel) -> None:
    files = {f"protos/{name}" for name in client.files}
    assert client.packages == {"segrec"}
    assert {name for name in files if name.endswith(".py")} == sources("protos")
    assert {Path(name).suffix for name in files} == {".py", ".pyi", ".proto", ".typed"}
    assert "segrec/py.typed" in client.files


def test_the_client_needs_grpcio_and_protobuf_with_googles_messages(client: Wheel) -> None:
    names = {Requirement(text).name for text in client.metadata.get_all("Requires-Dist", [])}
    assert names == {"grpcio", "protobuf", "googleapis-common-protos"}
    assert client.metadata["Name"] == "segrec"
    assert client.entry_points.split() == ["[console_scripts]", "segrec", "=", "segrec.cli.main:main"]


def test_the_platforms_wheel_holds_server_and_training_with_their_data(platform: Wheel) -> None:
    assert platform.packages == {"server", "training"}
    assert platform.files == sources("server", "training") | DATA


def test_the_platform_needs_the_client_of_its_own_version(client: Wheel, platform: Wheel) -> None:
    assert platform.metadata["Version"] == client.metadata["Version"]
    assert platform.requirements() == {f"segrec=={client.metadata['Version']}"}
    extras = {"server", "training", "dask", "text", "llm", "gpu", "sources", "tune", "tracking", "demo", "dev"}
    assert set(platform.metadata.get_all("Provides-Extra", [])) == extras
    assert "segrec =" not in platform.entry_points
