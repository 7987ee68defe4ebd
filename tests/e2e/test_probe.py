"""`segrec-train probe` on planted logs: what was planted is found, by the encoder and by two trainings alike."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from server.core.figures import values_by_name
from tests.support.logs import write_planted
from training.cli.main import app
from training.config import Config, TrainSettings
from training.data.prepare import prepare
from training.errors import LogError, RunError
from training.evaluation.probe import METRICS, probe_run
from training.evaluation.user_vectors import MEAN, SEGMENT, SVD
from training.fit.train import train
from training.runs import Run

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.nightly]

SETTINGS = TrainSettings(embedding_dim=16, layers=1, max_length=16, epochs=4, learning_rate=0.01, batch_size=32)


def trained(directory: Path, name: str, settings: TrainSettings, with_users: bool = True, **shape: int) -> Run:
    log = directory / name
    log.mkdir()
    events, items, users = write_planted(log, **shape)
    run = Run.create(directory / "runs", run_id=name)
    prepare(run, events, items, users if with_users else None, Config(train=settings))
    train(run)
    return run


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("probe")
    trained(made, "one", SETTINGS, users=80)
    trained(made, "two", SETTINGS.model_copy(update={"seed": 1}), with_users=False, users=80)
    return made


def test_what_was_planted_is_found(directory: Path) -> None:
    called = CliRunner().invoke(app, ["probe", "one", "two", "--runs", str(directory / "runs")])
    assert called.exit_code == 0, called.output
    assert "Linear probes" in called.output
    assert "Two trainings" in called.output
    run = Run.open(directory / "runs", "one")
    found = json.loads((run.require("probe") / METRICS).read_bytes())
    [label] = found["labels"]
    assert (label["label"], label["users"], label["classes"], label["majority"]) == ("segment", 80, 4, 0.25)
    assert label["by_kind"][MEAN]["auroc"] > 0.95
    assert label["by_kind"][SVD]["auroc"] > 0.95
    assert label["by_kind"][SEGMENT]["auroc"] > 0.95
    few = found["segments"][MEAN][0]
    assert few["halves"] > 0.3
    assert few["hr"] > found["global_hr"]
    assert {entry["kind"] for entry in found["stability"]} == {"last", "mean", "last + mean", "for segments"}
    by_chance = 10 / 79
    assert found["stability"][1]["neighbours"] > 3 * by_chance
    assert values_by_name(run.quality("probe"))[f"probe of segment/{MEAN}/auroc"] == pytest.approx(
        label["by_kind"][MEAN]["auroc"], abs=1e-6
    )


def test_a_run_agrees_with_itself_and_needs_no_labels(tmp_path: Path) -> None:
    run = trained(tmp_path, "small", SETTINGS.model_copy(update={"epochs": 1}), with_users=False, users=40)
    result = probe_run(run, run)
    assert result.labels == ()
    assert any("user table" in note for note in result.notes)
    for entry in result.stability:
        assert entry.neighbours == 1.0
        assert set(entry.segments.values()) == {1.0}


def test_what_cannot_be_probed_is_said(directory: Path, tmp_path: Path) -> None:
    one = Run.open(directory / "runs", "one")
    few = trained(tmp_path, "few", SETTINGS.model_copy(update={"epochs": 1}), users=15)
    with pytest.raises(LogError, match="20 users"):
        probe_run(few)
    with pytest.raises(RunError, match="different logs"):
        probe_run(one, few)
    with pytest.raises(RunError, match="segrec-train train"):
        probe_run(Run.create(tmp_path / "runs"))
