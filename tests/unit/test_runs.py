"""A run's directory and its record."""

from pathlib import Path

import pytest

from training.config import Config
from training.errors import RunError
from training.runs import Run, fingerprint


def test_runs_are_numbered(tmp_path: Path) -> None:
    assert [Run.create(tmp_path, name).path.name for name in ("demo", "mine")] == ["0001-demo", "0002-mine"]
    assert Run.create(tmp_path, run_id="own").path.name == "own"
    assert Run.open(tmp_path, "own").record()["id"] == "own"


@pytest.mark.parametrize(("name", "message"), [("../up", "no name for a run"), ("taken", "there already")])
def test_a_name_must_be_plain_and_free(tmp_path: Path, name: str, message: str) -> None:
    Run.create(tmp_path, run_id="taken")
    with pytest.raises(RunError, match=message):
        Run.create(tmp_path, run_id=name)


@pytest.mark.parametrize("name", ["none", "..", "0001-x/../0001-x"])
def test_a_run_that_is_not_there(tmp_path: Path, name: str) -> None:
    Run.create(tmp_path, "x")
    with pytest.raises(RunError, match=r"There is no run .*0001-x"):
        Run.open(tmp_path, name)


def test_a_stage_notes_time_and_figures_and_a_repeat_replaces_them(tmp_path: Path) -> None:
    run = Run.create(tmp_path)
    for figure in (1, 2):
        with run.stage("prepare") as stage:
            assert run.record()["stages"]["prepare"]["state"] == "running"
            stage.figures["events"] = figure
    assert run.require("prepare") == run.path / "prepare"
    assert run.figures("prepare") == {"events": 2}
    assert run.record()["stages"]["prepare"]["seconds"] >= 0


def test_a_missing_stage_says_what_to_run(tmp_path: Path) -> None:
    run = Run.create(tmp_path)
    with pytest.raises(RunError, match="run `segrec-train prepare --run 0001-run` first"):
        run.require("prepare")
    with pytest.raises(RunError, match="segrec-train prepare"):
        run.config()


def test_a_failed_stage_is_not_done(tmp_path: Path) -> None:
    run = Run.create(tmp_path)
    with pytest.raises(ZeroDivisionError), run.stage("prepare"):
        raise ZeroDivisionError
    assert run.record()["stages"]["prepare"]["state"] == "failed"
    with pytest.raises(RunError, match="not done"):
        run.require("prepare")


def test_a_stage_older_than_what_it_read_must_run_again(tmp_path: Path) -> None:
    run = Run.create(tmp_path)
    for name in ("prepare", "train", "prepare"):
        with run.stage(name):
            pass
    with pytest.raises(RunError, match=r"prepare of .* was repeated after train.*segrec-train train"):
        run.require("train")


def test_the_configuration_comes_back(tmp_path: Path) -> None:
    run = Run.create(tmp_path)
    config = Config.model_validate({"actions": {"购买": 2}, "train": {"seed": 7}})
    run.describe(config, {})
    assert run.config() == config
    assert run.record()["seed"] == 7
    assert run.record()["versions"]["polars"]
    assert [path.name for path in run.path.iterdir()] == ["run.json"]


def test_a_damaged_record(tmp_path: Path) -> None:
    run = Run.create(tmp_path)
    (run.path / "run.json").write_text("{")
    with pytest.raises(RunError, match="damaged"):
        run.record()


def test_the_fingerprint_is_of_the_content(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("same")
    (tmp_path / "b").write_text("same")
    assert fingerprint(tmp_path / "a") | {"file": "b"} == fingerprint(tmp_path / "b")
