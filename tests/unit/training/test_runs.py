"""A run's directory and its record."""

import json
from pathlib import Path

import pytest

from training.config import Config
from training.errors import RunError
from training.runs import Run, fingerprint


def test_runs_are_numbered(tmp_path: Path) -> None:
    assert [Run.create(tmp_path, name).path.name for name in ("demo", "mine")] == ["0001-demo", "0002-mine"]
    assert Run.create(tmp_path, run_id="own").path.name == "own"
    assert Run.open(tmp_path, "own").record()["id"] == "own"


@pytest.mark.parametrize(("name", "message"), [("../up", "cannot name a run"), ("taken", "exists already")])
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


def prepared_run(root: Path) -> Run:
    run = Run.create(root, "demo")
    with run.stage("prepare") as stage:
        (stage.directory / "items").write_text("data")
    run.describe(Config(), {"events": "log"})
    return run


def test_a_derived_run_has_its_parents_data_and_its_own_weights(tmp_path: Path) -> None:
    parent = prepared_run(tmp_path)
    run = parent.derive("int8")
    assert run.path.name == "0002-demo-int8"
    assert (run.made_by, run.record()["parents"]) == ("int8", ["0001-demo"])
    assert (run.require("prepare") / "items").read_text() == "data"
    assert run.config() == Config()
    with pytest.raises(RunError, match="Stage train of"):
        run.require("train")
    for name in ("prepare", "train"):
        with pytest.raises(RunError, match=rf"made of 0001-demo \(int8\); {name} cannot be repeated"), run.stage(name):
            pass
    with run.stage("train", deriving=True):
        pass
    assert run.require("train") == run.path / "train"
    assert run.derive("again").require("prepare").resolve() == (parent.path / "prepare").resolve()


def test_a_derived_run_is_stale_once_its_parents_data_are_repeated(tmp_path: Path) -> None:
    parent = prepared_run(tmp_path)
    run = parent.derive("student")
    with parent.stage("prepare"):
        pass
    with pytest.raises(RunError, match=r"prepare of .*0001-demo was repeated after .*0002-demo-student was made from"):
        run.require("prepare")


@pytest.mark.parametrize(("version", "said"), [(99, "99"), (None, "none")])
def test_a_run_of_another_schema_is_refused(tmp_path: Path, version: int | None, said: str) -> None:
    run = Run.create(tmp_path)
    record = run.record() | {"schema_version": version}
    (run.path / "run.json").write_text(json.dumps({name: value for name, value in record.items() if value is not None}))
    with pytest.raises(RunError, match=rf"schema version {said}, and this build reads 1; start a new run with `segrec"):
        Run.open(tmp_path, run.path.name).config()


def test_a_removed_setting_is_named(tmp_path: Path) -> None:
    run = Run.create(tmp_path)
    run.describe(Config(), {})
    record = run.record()
    record["config"]["segment"]["min_users"] = 1
    (run.path / "run.json").write_text(json.dumps(record))
    with pytest.raises(RunError, match=r"segment\.min_users.*prepare it again"):
        run.config()
