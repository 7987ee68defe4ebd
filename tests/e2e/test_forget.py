"""`segrec-train forget`: a user leaves every file of every run, and the runs still work."""

import json
import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from numpy.typing import NDArray
from typer.testing import CliRunner, Result

from server.core.erasure import ErasureMarks, new_erasure_key
from tests.support.logs import START_MS
from tests.support.segments import Place, released
from training.cli.main import app
from training.data.account import Account
from training.privacy.tables import rewriting
from training.runs import Run

USER = "u00007"


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return released(tmp_path_factory.mktemp("original"), users=60)


@pytest.fixture
def place(original: Place, tmp_path: Path) -> Place:
    """A copy of a published run, and a run that was derived from it."""
    copy = Place(tmp_path / "copy")
    shutil.copytree(original.path, copy.path, symlinks=True)
    derived = Run(copy.runs / "one").derive("twin")
    shutil.copytree(copy.runs / "one" / "segment", derived.path / "segment")
    return copy


def forget(place: Place, *words: str) -> Result:
    places = ["--runs", str(place.runs), "--repository", str(place.repository)]
    return CliRunner().invoke(app, ["forget", *words, *places])


def files_that_name(user_id: str, runs: Path) -> set[str]:
    """Files with the id, in their bytes or in a table."""
    found = set()
    for path in runs.rglob("*"):
        if not path.is_file():
            continue
        is_table = path.suffix == ".parquet" and "user_id" in pl.read_parquet_schema(path)
        if user_id.encode() in path.read_bytes() or (is_table and user_id in pl.read_parquet(path)["user_id"]):
            found.add(str(path.relative_to(runs)))
    return found


def embeddings_by_user(directory: Path) -> dict[str, NDArray[np.float32]]:
    user_ids = pl.read_parquet(directory / "assignments.parquet")["user_id"]
    return dict(zip(user_ids, np.load(directory / "user_embeddings.npy"), strict=True))


def test_a_forgotten_user_is_in_no_file_and_the_others_stay_as_they_were(place: Place, tmp_path: Path) -> None:
    assert {"one/prepare/events.parquet", "one/evaluate/ranks.parquet", "one/segment/assignments.parquet"} <= (
        files_that_name(USER, place.runs)
    )
    before = embeddings_by_user(place.runs / "one" / "segment")
    done = forget(place, "--user-id", USER, "--json", str(tmp_path / "receipt.json"))
    assert done.exit_code == 0, done.output
    assert files_that_name(USER, place.runs) == set()
    assert USER not in done.output
    del before[USER]
    for run in ("one", "0001-one-twin"):
        after = embeddings_by_user(place.runs / run / "segment")
        assert after.keys() == before.keys()
        assert all((after[user_id] == vector).all() for user_id, vector in before.items())
    receipt = json.loads((tmp_path / "receipt.json").read_text())
    rows = {file["path"]: file["rows"] for file in receipt["files"]}
    assert rows["one/prepare/events.parquet"] == 20
    assert rows["one/segment/user_embeddings.npy"] == rows["0001-one-twin/segment/assignments.parquet"] == 1
    assert [release["release"] for release in receipt["releases"]] == [1]
    assert "Release 1" in done.output


def test_the_account_still_adds_up(place: Place) -> None:
    forget(place, "--user-id", USER)
    prepared = place.runs / "one" / "prepare"
    account = Account.model_validate_json((prepared / "account.json").read_bytes())
    assert account.rows_in - sum(step.rows_dropped for step in account.steps) == account.rows_out == 59 * 20
    assert (account.steps[-1].name, account.steps[-1].rows_dropped) == ("erased", 20)
    figures = Run(place.runs / "one").figures("prepare")
    assert (figures["events"], figures["users"]) == (59 * 20, 59)


def test_the_run_can_be_segmented_and_published_again(place: Place) -> None:
    forget(place, "--user-id", USER)
    for command in ("evaluate", "segment", "publish"):
        words = [command, "--run", "one", "--runs", str(place.runs)]
        more = [] if command == "evaluate" else ["--repository", str(place.repository)]
        more += ["--force", "a rule wins on so small a log"] if command == "publish" else []
        done = CliRunner().invoke(app, [*words, *more])
        assert done.exit_code == 0, done.output
    assert len(embeddings_by_user(place.runs / "one" / "segment")) == 59


def test_again_and_for_a_stranger_there_is_nothing_to_delete(place: Place) -> None:
    forget(place, "--user-id", USER, "--user-id", "u00008")
    times = {path: path.stat().st_mtime_ns for path in place.runs.rglob("*.parquet")}
    for user_id in (USER, "nobody"):
        done = forget(place, "--user-id", user_id)
        assert done.exit_code == 0
        assert "Nothing to delete: none of 2 runs holds one of these users" in done.output
    assert {path: path.stat().st_mtime_ns for path in place.runs.rglob("*.parquet")} == times


def test_a_rewriting_that_was_cut_off_is_completed(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("training.privacy.tables._rewrite", stop)  # after the embeddings, which come first
        assert forget(place, "--user-id", USER).exit_code == 130
    assert forget(place, "--user-id", USER).exit_code == 0
    assert files_that_name(USER, place.runs) == set()
    assert len(embeddings_by_user(place.runs / "one" / "segment")) == 59


def test_a_copy_of_the_log_that_a_killed_prepare_left_goes_too(place: Place) -> None:
    scratch = place.runs / "one" / "prepare" / "utf8"
    scratch.mkdir()
    (scratch / "log.csv").write_text(USER)
    assert "deleted" in forget(place, "--user-id", "nobody").output
    assert not scratch.exists()


def test_the_erased_users_of_a_store_are_forgotten(place: Place, tmp_path: Path) -> None:
    marks = ErasureMarks(new_erasure_key(), {})
    events = pl.read_parquet(place.runs / "one" / "prepare" / "events.parquet")
    middle = int(events.filter(pl.col("user_id") == "u00008")["timestamp"].sort()[9]) // 1000
    marks.mark(USER, 2 * START_MS // 1000)
    marks.mark("u00008", middle)
    marks.write(tmp_path / "erasures.json")
    assert forget(place, "--erasures", str(tmp_path / "erasures.json")).exit_code == 0
    left = pl.read_parquet(place.runs / "one" / "prepare" / "events.parquet")
    assert files_that_name(USER, place.runs) == set()
    assert min(left.filter(pl.col("user_id") == "u00008")["timestamp"].to_list()) > middle * 1000
    assert len(left) == 58 * 20 + 10, "the user came back after the erasure, with ten events"
    segmented = embeddings_by_user(place.runs / "one" / "segment")
    assert "u00008" not in segmented, "computed from events before the erasure"


def test_what_a_killed_forget_left_unfinished_goes(place: Place) -> None:
    unfinished = place.runs / "one" / "prepare" / ".rewritten.events.parquet"
    shutil.copyfile(place.runs / "one" / "prepare" / "events.parquet", unfinished)
    assert forget(place, "--user-id", "nobody").exit_code == 0
    assert not unfinished.exists()


def test_a_report_with_the_user_on_its_map_goes(place: Place) -> None:
    report = place.runs / "one" / "report"
    made = CliRunner().invoke(app, ["report", "one", "--runs", str(place.runs), "--repository", str(place.repository)])
    assert made.exit_code == 0, made.output
    assert (report / "report.html").is_file()
    assert "one/report " in forget(place, "--user-id", USER).output
    assert not report.exists()


def test_what_cannot_be_done_is_one_sentence(place: Place) -> None:
    with rewriting(place.runs):
        done = forget(place, "--user-id", USER)
    assert (done.exit_code, "Somebody else is deleting" in done.stderr) == (1, True)
    (place.runs / "one" / "segment" / "assignments.parquet").write_bytes(b"damaged")
    done = forget(place, "--user-id", USER)
    assert (done.exit_code, "cannot be rewritten" in done.stderr) == (1, True)
    missing_directory = forget(place, "--user-id", USER, "--json", str(place.path / "absent" / "receipt.json"))
    assert (missing_directory.exit_code, "absent" in missing_directory.stderr) == (2, True)
    assert "--user-id ID, or with --erasures FILE" in forget(place).stderr
    missing = CliRunner().invoke(app, ["forget", "--user-id", USER, "--runs", str(place.path / "absent")])
    assert (missing.exit_code, "There is no directory" in missing.stderr) == (1, True)


def test_a_stage_that_may_still_run_is_named(place: Place) -> None:
    record = json.loads((place.runs / "one" / "run.json").read_text())
    record["stages"]["segment"]["state"] = "running"
    (place.runs / "one" / "run.json").write_text(json.dumps(record))
    assert "Marked as running: one/segment" in forget(place, "--user-id", USER).output
