"""A training that is cut off goes on where its last checkpoint was, and ends as if nothing had happened."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

import training.fit.checkpoints
from tests.support.training import prepared_run, start_training, wait_for_checkpoint, weights_of
from training.config import TrainSettings
from training.fit.checkpoints import CHECKPOINT, AtomicCheckpointIO
from training.fit.train import train
from training.runs import Progress, Run

STEPS = 6
"""Steps an epoch, each in two pieces."""

SETTINGS = TrainSettings(
    embedding_dim=16,
    layers=1,
    max_length=16,
    epochs=8,
    dropout=0.1,
    learning_rate=0.01,
    batch_size=8,
    accumulate=2,
    patience=10,
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Run:
    run = prepared_run(tmp_path_factory.mktemp("whole"), SETTINGS, users=40)
    train(run)
    return run


def assert_same(run: Run, whole: Run) -> None:
    for name, tensor in weights_of(whole).items():
        torch.testing.assert_close(weights_of(run)[name], tensor, rtol=0, atol=1e-6)


class Cut(Exception):
    """Stands for the process's end."""


def cut_after(step: int) -> Progress:
    def progress(what: str, done: int, total: int) -> None:
        if done == step:
            raise Cut

    return progress


def resumed_steps(run: Run, settings: TrainSettings = SETTINGS) -> list[int]:
    """Go on with a training; the numbers of its steps."""
    steps: list[int] = []
    train(
        run,
        settings=settings,
        resume=True,
        progress=lambda what, done, total: steps.append(done) if what.startswith("epoch") else None,
    )
    return sorted(set(steps))


def change_clock(run: Run, **times: float) -> None:
    """Make the checkpoint say that so much time was spent."""
    path = run.path / "train" / CHECKPOINT
    state: dict[str, Any] = torch.load(path, weights_only=True)
    state["callbacks"]["TrainingClock"] |= times
    torch.save(state, path)


def test_kill_9_loses_nothing_before_the_last_checkpoint(tmp_path: Path, whole: Run) -> None:
    run = prepared_run(tmp_path, SETTINGS, users=40)
    checkpoint = run.path / "train" / CHECKPOINT
    with start_training(run) as process:
        wait_for_checkpoint(run, process)
        os.kill(process.pid, signal.SIGKILL)
    assert run.record()["stages"]["train"]["state"] == "running"
    done = torch.load(checkpoint, weights_only=True)["global_step"]
    assert done % STEPS == 0
    assert resumed_steps(run) == list(range(done, SETTINGS.epochs * STEPS + 1))
    assert_same(run, whole)


def test_an_epoch_goes_on_in_its_middle(tmp_path: Path, whole: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training.fit.checkpoints, "CHECKPOINT_MINUTES", 0)
    run = prepared_run(tmp_path, SETTINGS, users=40)
    with pytest.raises(Cut):
        train(run, progress=cut_after(2 * STEPS + 3))
    assert resumed_steps(run) == list(range(2 * STEPS + 2, SETTINGS.epochs * STEPS + 1))
    assert_same(run, whole)


def test_time_spent_before_the_cut_counts(tmp_path: Path) -> None:
    run = prepared_run(tmp_path, SETTINGS, users=40)
    bounded = SETTINGS.model_copy(update={"max_minutes": 1.0})
    for times in ({"seconds": 60.0}, {"seconds": 45.0, "validation_seconds": 60.0}):
        with pytest.raises(Cut):
            train(run, settings=bounded, progress=cut_after(STEPS + 1))
        change_clock(run, **times)
        resumed_steps(run, bounded)
        assert torch.load(run.path / "train" / CHECKPOINT, weights_only=True)["global_step"] == STEPS + 1, times


class Unwritable:
    """Fails in the middle of a file."""

    def __reduce__(self) -> Any:
        raise Cut


def test_a_checkpoint_is_replaced_in_one_step(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint({"epoch": 1}, path)
    with pytest.raises(Cut):
        AtomicCheckpointIO().save_checkpoint({"weights": torch.zeros(10_000), "epoch": Unwritable()}, path)
    assert torch.load(path, weights_only=True) == {"epoch": 1}
