"""Runs go by number and by age; what is needed stays, and old events leave the runs that stay."""

import json
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from server.core.repository.layout import EVENTS_MARK, MODEL_NAME, WITH_CLOCK
from tests.support.logs import DAY_MS, START_MS
from training.config import Config
from training.data.account import Account
from training.data.prepare import prepare
from training.errors import RunError
from training.privacy.prune_runs import PrunedRuns, prune_runs
from training.privacy.tables import rewriting
from training.runs import Run

START = datetime.fromtimestamp(START_MS / 1000, UTC)
RETENTION = timedelta(days=100)


def write_log(path: Path, first_day: int, last_day: int, clock: bool = True) -> Path:
    """An event a day of `early`, and one of `late` on the last ten days."""
    days = [("early", day) for day in range(first_day, last_day + 1)]
    days += [("late", day) for day in range(last_day - 9, last_day + 1)]
    rows = [(user, f"i{day % 5}", START_MS + day * DAY_MS) for user, day in days]
    log = pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row")
    (log if clock else log.with_columns(pl.int_range(pl.len()).alias("timestamp"))).write_parquet(path)
    return path


def a_run(tmp_path: Path, run_id: str, first_day: int = 0, last_day: int = 40, clock: bool = True) -> Run:
    """A prepared run, whose creation is moved to the day after its log."""
    run = Run.create(tmp_path / "runs", run_id=run_id)
    prepare(run, write_log(tmp_path / f"{run_id}.parquet", first_day, last_day, clock), None, None, Config())
    change(run, {"created": (START + timedelta(days=last_day + 1)).isoformat(timespec="microseconds")})
    return run


def change(run: Run, update: dict[str, object]) -> None:
    (run.path / "run.json").write_text(json.dumps(run.record() | update))


def pruned(tmp_path: Path, retain: int | None = None, day: int | None = None, dry_run: bool = False) -> PrunedRuns:
    """Pruned on a day of the log; with a day, to the retention."""
    now = START + timedelta(days=day or 41)
    return prune_runs(tmp_path / "runs", tmp_path / "repository", retain, RETENTION if day else None, now, dry_run)


def names(tmp_path: Path) -> set[str]:
    return {path.name for path in (tmp_path / "runs").iterdir() if path.is_dir()}


def test_the_newest_stay(tmp_path: Path) -> None:
    for day, run_id in enumerate(("c", "a", "b")):
        a_run(tmp_path, run_id, last_day=40 + day)
    assert pruned(tmp_path, retain=2, dry_run=True).gone == ("c",)
    assert names(tmp_path) == {"a", "b", "c"}
    assert pruned(tmp_path, retain=2) == PrunedRuns(("c",), ("a", "b"), ())
    assert names(tmp_path) == {"a", "b"}
    assert pruned(tmp_path, retain=2).gone == ()


def test_what_is_needed_stays(tmp_path: Path) -> None:
    released, running, killed, parent = (
        a_run(tmp_path, run_id, last_day=40 + day)
        for day, run_id in enumerate(("released", "running", "killed", "parent"))
    )
    twin = parent.derive("twin")
    (tmp_path / "repository" / MODEL_NAME / "7").mkdir(parents=True)
    place = str((tmp_path / "repository").resolve())
    publish = {"state": "done", "figures": {"release": 7, "repository": place}}
    change(released, {"stages": released.record()["stages"] | {"publish": publish}})
    for run, day in ((running, 41), (killed, 30)):
        train = {"state": "running", "started": (START + timedelta(days=day)).isoformat()}
        change(run, {"stages": run.record()["stages"] | {"train": train}})
    done = pruned(tmp_path, retain=1)
    assert done.gone == ("killed",)
    assert set(done.kept) == {"parent", "released", "running", twin.path.name}


def test_old_events_leave_the_runs_and_then_the_runs_go(tmp_path: Path) -> None:
    prepared = a_run(tmp_path, "one").require("prepare")
    a_run(tmp_path, "younger", first_day=60, last_day=90)
    assert pruned(tmp_path, day=100).cut == ()
    done = pruned(tmp_path, day=135)
    assert (done.gone, {file.path: file.rows for file in done.cut}) == ((), {"one/prepare/events.parquet": 39})
    left = pl.read_parquet(prepared / "events.parquet")
    assert pl.read_parquet_metadata(prepared / "events.parquet")[EVENTS_MARK] == WITH_CLOCK
    assert left["timestamp"].min() == START_MS + 35 * DAY_MS
    account = Account.model_validate_json((prepared / "account.json").read_bytes())
    assert account.rows_in - sum(step.rows_dropped for step in account.steps) == account.rows_out == len(left) == 12
    assert pruned(tmp_path, day=141).gone == ("one",)
    assert [(file.path, file.rows) for file in pruned(tmp_path, day=190).cut] == [
        ("younger/prepare/events.parquet", 39)
    ]
    assert pruned(tmp_path, day=191).gone == ("younger",)
    assert names(tmp_path) == set()


def test_users_without_younger_events_leave_the_tables(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "runs", run_id="one")
    days = {"gone": range(20), "stays": range(10, 40)}
    rows = [(user, f"i{day % 5}", START_MS + day * DAY_MS) for user in days for day in days[user]]
    log = pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row")
    log.write_parquet(tmp_path / "log.parquet")
    prepare(run, tmp_path / "log.parquet", None, None, Config())
    segment = run.path / "segment"
    segment.mkdir()
    pl.DataFrame({"user_id": ["stays", "gone"], "segment_id": [1, 2]}).write_parquet(segment / "assignments.parquet")
    np.save(segment / "user_embeddings.npy", np.array([[1.0], [2.0]], np.float32))
    pruned(tmp_path, day=125)
    assert pl.read_parquet(segment / "assignments.parquet").rows() == [("stays", 1)]
    assert np.load(segment / "user_embeddings.npy").tolist() == [[1.0]]


def test_a_log_without_a_clock_is_as_old_as_its_run(tmp_path: Path) -> None:
    a_run(tmp_path, "one", clock=False)
    assert pruned(tmp_path, day=141).gone == ()
    assert pruned(tmp_path, day=142).gone == ("one",)


def test_a_damaged_run_goes_by_the_time_of_its_record(tmp_path: Path) -> None:
    run = a_run(tmp_path, "one", clock=False)
    (run.path / "run.json").write_text("{")
    written = (START + timedelta(days=10)).timestamp()
    os.utime(run.path / "run.json", (written, written))
    assert pruned(tmp_path, day=110).gone == ()
    assert pruned(tmp_path, day=111).gone == ("one",)


def test_a_deletion_that_was_cut_off_is_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    a_run(tmp_path, "old"), a_run(tmp_path, "new", last_day=41)

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("training.privacy.prune_runs.shutil.rmtree", stop)
        with pytest.raises(KeyboardInterrupt):
            pruned(tmp_path, retain=1)
    assert (tmp_path / "runs" / ".pruned").is_dir()
    assert pruned(tmp_path, retain=1).gone == ()
    assert names(tmp_path) == {"new"}


def test_what_cannot_be_done_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="There is no directory"):
        pruned(tmp_path, retain=1)
    a_run(tmp_path, "old"), a_run(tmp_path, "new", last_day=41)
    with rewriting(tmp_path / "runs"), pytest.raises(RunError, match="Somebody else is deleting"):
        pruned(tmp_path, retain=1)
    assert names(tmp_path) == {"old", "new"}
