"""The real Triton for tests: one for all that only ask, and one of its own for a test that breaks it.

`running_triton` (session) is `segrec-triton run` in a process of its own, so that it belongs to no event loop.
`model_repository` and `embedded_triton` are made anew for each test.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray

from server.adapters.embedded_triton import EmbeddedTriton, install_environment, launch
from server.adapters.embedded_triton.environment import DEFAULT_PATH
from server.adapters.triton import TritonEncoder
from server.core.repository.layout import MODEL_NAME
from tests.support.onnx_models import write_tiny_encoder

ROOT = Path(__file__).parents[2]
ENVIRONMENT = ROOT / DEFAULT_PATH


@dataclass(frozen=True)
class ModelRepository:
    """A Triton model repository with the committed config.pbtxt and no release."""

    path: Path

    @classmethod
    def create(cls, path: Path) -> "ModelRepository":
        (path / MODEL_NAME).mkdir(parents=True)
        shutil.copy(ROOT / "model_repository" / MODEL_NAME / "config.pbtxt", path / MODEL_NAME)
        return cls(path)

    @property
    def config_path(self) -> Path:
        return self.path / MODEL_NAME / "config.pbtxt"

    def model_path(self, release: int) -> Path:
        return self.path / MODEL_NAME / str(release) / "model.onnx"

    def add_tiny(self, release: int, dim: int = 8) -> Path:
        """Add a release that holds the tiny encoder; each release number gives other embeddings."""
        staged = write_tiny_encoder(self.path / "staging" / str(release) / "model.onnx", seed=release, dim=dim)
        staged.with_name("manifest.json").write_text("{}")
        staged.parent.rename(self.model_path(release).parent)
        return self.model_path(release)

    def add_damaged(self, release: int) -> None:
        self.model_path(release).parent.mkdir()
        self.model_path(release).write_bytes(b"not a model")

    def expected(self, release: int, inputs: dict[str, NDArray[np.generic]]) -> NDArray[np.float32]:
        """What ONNX Runtime in this process says."""
        session = onnxruntime.InferenceSession(str(self.model_path(release)), providers=["CPUExecutionProvider"])
        return np.asarray(session.run(None, inputs)[0], dtype=np.float32)


@dataclass(frozen=True)
class RunningTriton:
    """A Triton that answers, and the repository it reads."""

    address: str
    repository: ModelRepository

    def encoder(self) -> TritonEncoder:
        return TritonEncoder(self.address, self.repository.config_path)


@pytest.fixture(scope="session")
def triton_environment() -> Path:
    """The installed Triton; installs it on first use."""
    install_environment(ENVIRONMENT)
    return ENVIRONMENT


@contextmanager
def triton_process(environment: Path, repository: Path, log_path: Path) -> Iterator[str]:
    """`segrec-triton run` in a process of its own, for this block; gives Triton's address."""
    cli = "from server.adapters.embedded_triton.cli import main; main()"
    flags = ["--repository", repository, "--path", environment, "--log", log_path]
    tied = [sys.executable, launch.__file__, str(os.getpid()), sys.executable, "-c", cli, "run", *map(str, flags)]
    with subprocess.Popen(tied, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout
        line = process.stdout.readline()
        assert "Triton answers on" in line, f"Triton did not start: {line}"
        yield line.split("answers on ")[1].split(";")[0]
        process.terminate()
        assert process.wait(timeout=30) == 0


@pytest.fixture(scope="session")
def running_triton(triton_environment: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningTriton]:
    """One Triton for the whole session. Use release numbers of your own, or load what you need at the start."""
    directory = tmp_path_factory.mktemp("triton")
    repository = ModelRepository.create(directory / "repository")
    with triton_process(triton_environment, repository.path, directory / "log") as address:
        yield RunningTriton(address, repository)


@pytest.fixture
def model_repository(tmp_path: Path) -> ModelRepository:
    return ModelRepository.create(tmp_path / "repository")


@pytest.fixture
async def embedded_triton(
    triton_environment: Path, model_repository: ModelRepository, tmp_path: Path
) -> AsyncIterator[EmbeddedTriton]:
    """A started Triton of this test's own, on `model_repository`."""
    triton = EmbeddedTriton(model_repository.path, triton_environment, log_path=tmp_path / "triton.log")
    await triton.start()
    yield triton
    await triton.stop()
