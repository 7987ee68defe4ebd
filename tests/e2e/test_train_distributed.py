"""A step is the same however it is cut: in pieces one after the other, or on real processes that torchrun starts."""

import os
import signal
from pathlib import Path

import psutil
import pytest
import torch
from typer.testing import CliRunner

from tests.support.training import prepared_run, start_training, wait_for_checkpoint, weights_of
from training.cli.main import app
from training.config import TrainSettings
from training.errors import ConfigError
from training.fit.processes import Processes
from training.fit.train import train
from training.runs import Run

# Sampled negatives, and steps whose windows cannot be shared out evenly; the last step has one window only.
SETTINGS = TrainSettings(
    embedding_dim=16,
    layers=1,
    max_length=16,
    epochs=10,
    dropout=0.0,
    learning_rate=0.01,
    batch_size=13,
    negatives=20,
    patience=10,
    device="cpu",
)
SHAPE = {"users": 20, "items": 40, "events_per_user": 21}


def trained(directory: Path, settings: TrainSettings) -> Run:
    run = prepared_run(directory, settings, **SHAPE)
    train(run)
    return run


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return trained(tmp_path_factory.mktemp("whole"), SETTINGS)


def validation_ndcg(run: Run) -> float:
    [figure] = run.quality("train")
    assert figure.name == "validation/encoder/ndcg@10"
    return figure.value


def assert_same_weights(run: Run, whole: Run) -> None:
    for name, tensor in weights_of(whole).items():
        torch.testing.assert_close(weights_of(run)[name], tensor, rtol=0, atol=1e-4)
    assert validation_ndcg(run) == pytest.approx(validation_ndcg(whole))


def test_a_step_in_pieces_is_the_step(tmp_path: Path, whole: Run) -> None:
    assert_same_weights(trained(tmp_path, SETTINGS.model_copy(update={"accumulate": 5})), whole)


def test_two_processes_train_as_one_and_one_that_dies_ends_both(tmp_path: Path, whole: Run) -> None:
    run = prepared_run(tmp_path, SETTINGS, **SHAPE)
    with start_training(run, processes=2) as broken:
        wait_for_checkpoint(run, broken)
        [second] = [child for child in psutil.Process(broken.pid).children() if child.environ()["RANK"] == "1"]
        os.kill(second.pid, signal.SIGKILL)
        said, _ = broken.communicate(timeout=120)
    assert broken.returncode != 0, said
    assert run.record()["stages"]["train"]["state"] != "done"
    with start_training(run, "--resume", processes=2) as resumed:
        said, _ = resumed.communicate(timeout=120)
    assert resumed.returncode == 0, said
    assert said.count("train …") == 1
    assert "on 2 × cpu" in said
    assert_same_weights(run, whole)


def test_other_commands_refuse_to_run_several_times_over(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name, value in {"TORCHELASTIC_RUN_ID": "x", "RANK": "1", "WORLD_SIZE": "3", "LOCAL_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match="the same number on every machine"):
        Processes.from_environment()
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")
    assert Processes.from_environment() == Processes(rank=1, count=3, local_count=1)
    answer = CliRunner().invoke(app, ["evaluate", "--runs", str(tmp_path), "--run", "any"])
    assert answer.exit_code == 2
    assert "Only `segrec-train train` runs on several processes" in answer.output
