"""Small trainings on planted logs, in this process and in others."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.support.logs import write_planted
from tests.support.waiting import wait_until
from training.config import Clean, Config, SplitSettings, TrainSettings
from training.data.prepare import prepare
from training.fit.checkpoints import CHECKPOINT
from training.model.encoder import Encoder
from training.model.export import random_inputs
from training.model.weights import WEIGHTS
from training.runs import Run

LAST_EVENTS = SplitSettings(method="leave_one_out")
ROOT = Path(__file__).parents[2]


def prepared_run(directory: Path, settings: TrainSettings, **shape: int) -> Run:
    """A new run with a prepared log of the given shape, the same for equal shapes."""
    directory.mkdir(exist_ok=True)
    events, items, _ = write_planted(directory, **shape)
    run = Run.create(directory / "runs")
    prepare(run, events, items, None, Config(train=settings, clean=Clean(exclude_seen=False), split=LAST_EVENTS))
    return run


@torch.no_grad()
def assert_plain_is_the_same(encoder: Encoder) -> None:
    """That what is saved of an encoder, with one plain table of items, computes what the encoder does."""
    plain = Encoder(encoder.shape)
    plain.load_state_dict(encoder.plain_state())
    inputs = {name: torch.from_numpy(array) for name, array in random_inputs(encoder, 4, 9, seed=1).items()}
    torch.testing.assert_close(plain.eval()(**inputs), encoder(**inputs), rtol=0, atol=1e-6)
    torch.testing.assert_close(plain.item_embeddings(), encoder.item_embeddings(), rtol=0, atol=0)


def weights_of(run: Run) -> dict[str, torch.Tensor]:
    """The weights that validated best."""
    return load_file(run.path / "train" / WEIGHTS)


def start_training(run: Run, *more: str, processes: int = 1) -> subprocess.Popen[str]:
    """`segrec-train train`, by torchrun where several processes are asked for; output goes to a pipe."""
    launcher = ["torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", "-m", "--"]
    command = [sys.executable, "-m", *(launcher if processes > 1 else []), "training.cli.main", "train"]
    return subprocess.Popen(
        [*command, "--runs", str(run.path.parent), "--run", run.path.name, *more],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "POLARS_MAX_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def wait_for_checkpoint(run: Run, process: subprocess.Popen[str]) -> None:
    """Return once an epoch of a training that `start_training` began is on disk."""
    checkpoint = run.path / "train" / CHECKPOINT
    wait_until(lambda: checkpoint.is_file() or process.poll() is not None, 120)
    assert checkpoint.is_file(), process.communicate()[0]


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Models this small are only slowed down by a second thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
