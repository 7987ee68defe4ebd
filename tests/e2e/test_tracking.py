"""Runs in MLflow (a database of its own, no server) and TensorBoard, and releases whose aliases follow the traffic."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests.support.logs import write_planted
from tests.support.training import prepared_run
from training.cli.main import app
from training.config import TrackingSettings, TrainSettings
from training.errors import ConfigError
from training.fit.train import train
from training.runs import Run
from training.tracking import Tracking, check_tracking, mlflow_client

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:mlflow"),
    pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SADeprecationWarning"),
]

SETTINGS = """
[train]
embedding_dim = 16
layers = 1
max_length = 16
epochs = 2
[segment]
k = 4
min_segment_size = 5
naming = { url = "http://localhost:1/v1", model = "gpt" }
[tracking]
to = "mlflow"
experiment = "shop"
"""
Command = Callable[..., str]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tracked")


@pytest.fixture(scope="module")
def command(place: Path) -> Command:
    """`segrec-train` with the runs, the repository and MLflow's database of this module."""

    def call(*words: str) -> str:
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(place)
            result = CliRunner().invoke(app, list(words), env={"COLUMNS": "200"})
        assert result.exit_code == 0, result.output
        return result.output

    return call


@pytest.fixture(scope="module")
def run(place: Path, command: Command) -> Run:
    events, items, _ = write_planted(place, users=80)
    (place / "config.toml").write_text(SETTINGS + f'uri = "sqlite:///{place}/mlflow.db"\n')
    files = ("--events", str(events), "--items", str(items), "--config", str(place / "config.toml"))
    command("run", *files, "--run", "first", "--force", "rules win on so small a log")
    return Run(place / "runs" / "first")


@pytest.mark.nightly
def test_settings_curves_figures_and_the_release_are_at_mlflow(run: Run) -> None:
    tracking = Tracking(run)
    seen = tracking.client.get_run(tracking.mlflow_run)
    assert seen.data.params["train.epochs"] == "2"
    assert not [name for name in seen.data.params if "naming.url" in name or "tracking" in name]
    curve = tracking.client.get_metric_history(tracking.mlflow_run, "curve/loss")
    assert len(curve) == 2
    assert seen.data.metrics["train/epochs"] == 2
    assert any(name.startswith("evaluate/") and name.endswith("ndcg_at_10") for name in seen.data.metrics)
    assert [file.path for file in tracking.client.list_artifacts(tracking.mlflow_run, "release")] == [
        "release/manifest.json"
    ]


@pytest.mark.nightly
def test_aliases_follow_the_traffic(run: Run, place: Path, command: Command) -> None:
    client = mlflow_client(run.config().tracking.uri)
    assert client.get_model_version_by_alias("shop", "stable").tags["release"] == "1"
    command("traffic", "1=100")
    said = command("publish", "--run", "first", "--force", "the same again")
    assert "MLflow" not in said
    command("traffic", "1=90", "2=10")
    assert client.get_model_version_by_alias("shop", "canary").tags["release"] == "2"
    command("traffic", "2=100")
    assert client.get_registered_model("shop").aliases.keys() == {"stable"}
    assert client.get_model_version_by_alias("shop", "stable").tags["release"] == "2"
    command("rollback")
    assert client.get_model_version_by_alias("shop", "stable").tags["release"] == "1"
    assert len(client.search_model_versions("name='shop'")) == 2


@pytest.mark.nightly
def test_a_registry_that_is_away_stops_no_change_of_the_traffic(run: Run, place: Path, command: Command) -> None:
    link = place / "model_repository" / "mlflow.json"
    whole = link.read_text()
    link.write_text(json.dumps({"uri": f"sqlite:///{place}/none/here.db", "model": "shop"}))
    assert "did not follow the traffic" in command("traffic", "1=100")
    link.write_text(whole)


def test_tensorboard_gets_files(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    tiny = TrainSettings(embedding_dim=8, layers=1, max_length=16, epochs=2)
    run = prepared_run(tmp_path / "log", tiny, users=40)
    raw = json.loads((run.path / "run.json").read_text())
    raw["config"]["tracking"] = {"to": "tensorboard"}
    (run.path / "run.json").write_text(json.dumps(raw))
    train(run)
    tracking = Tracking(run)
    tracking.update()
    assert tracking.problem == ""
    read = EventAccumulator(str(run.path / "tensorboard"))
    read.Reload()
    assert {"loss", "ndcg@10", "train/epochs"} <= set(read.Tags()["scalars"])
    assert len(read.Scalars("loss")) == 2


@pytest.mark.nightly
def test_what_cannot_be_reached_is_said_first() -> None:
    with pytest.raises(ConfigError, match=r"MLflow does not answer.*tracking\.uri"):
        check_tracking(TrackingSettings(to="mlflow", uri="http://127.0.0.1:1"))
    check_tracking(TrackingSettings())


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.tracking.find_spec", lambda _: None)
    with pytest.raises(ConfigError, match=r"segrec-platform\[tracking\]"):
        check_tracking(TrackingSettings(to="tensorboard"))


def test_a_password_does_not_belong_into_the_settings() -> None:
    with pytest.raises(ValueError, match="MLFLOW_TRACKING_PASSWORD"):
        TrackingSettings(to="mlflow", uri="http://me:secret@mlflow.internal")
