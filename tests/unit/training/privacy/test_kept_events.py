"""Events that a run keeps for later nights are forgotten and expire like those of its log."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import polars as pl
import pytest

from tests.support.logs import DAY_MS, START_MS
from training.config import Clean, Config
from training.data.left_out import erased_at
from training.data.nightly import RAW_EVENTS
from training.data.prepare import prepare
from training.privacy.forget import forget
from training.privacy.prune_runs import prune_runs
from training.runs import Run

CONFIG = Config(clean=Clean(min_events_per_user=3))
DAYS = {"often": range(40), "other": range(40), "seldom": (5, 30)}  # cleaning drops `seldom`, with two events


def a_night(tmp_path: Path, days: range, since: str) -> Path:
    """The directory of a run that prepared these days, and of one user an event without a time."""
    rows = [(user, f"i{day % 5}", START_MS + day * DAY_MS) for user in DAYS for day in DAYS[user] if day in days]
    log = pl.DataFrame([*rows, ("other", "i0", None)], schema=["user_id", "item_id", "timestamp"], orient="row")
    log.write_parquet(tmp_path / f"{since}.parquet")
    run = Run.create(tmp_path / "runs")
    clock = START_MS / 1000 + 50 * 86_400
    return prepare(run, tmp_path / f"{since}.parquet", None, None, CONFIG, since=since, clock=lambda: clock).directory


@pytest.fixture
def first(tmp_path: Path) -> Path:
    return a_night(tmp_path, range(35), "start")


def raw(directory: Path) -> pl.DataFrame:
    return pl.read_parquet(directory / RAW_EVENTS)


def test_forgotten_users_leave_them_also_where_cleaning_had_dropped_them(tmp_path: Path, first: Path) -> None:
    assert raw(first)["user_id"].value_counts().sort("user_id").rows() == [("often", 35), ("other", 36), ("seldom", 2)]
    assert "seldom" not in pl.read_parquet(first / "events.parquet")["user_id"]
    receipt = forget(tmp_path / "runs", tmp_path, erased_at(["often", "seldom"], START_MS + 100 * DAY_MS))
    rows = {file.path: file.rows for file in receipt.files}
    assert rows == {f"0001-run/prepare/{RAW_EVENTS}": 37, "0001-run/prepare/events.parquet": 35}
    second = a_night(tmp_path, range(35, 40), "last")
    left = pl.read_parquet(second / "events.parquet")
    assert dict(left["user_id"].value_counts().rows()) == {"often": 5, "other": 40}, "`often` came back"
    assert len(raw(second).filter(user_id="other")) == 41, "the event without a time is the other's, and stays"
    assert forget(tmp_path / "runs", tmp_path, erased_at(["seldom"], START_MS + 100 * DAY_MS)).files == ()


def test_an_erasure_takes_only_what_was_before_it(tmp_path: Path, first: Path) -> None:
    forget(tmp_path / "runs", tmp_path, erased_at(["other"], START_MS + 10 * DAY_MS))
    times = raw(first).filter(user_id="other")["timestamp"]
    assert (times.null_count(), times.min(), len(times)) == (0, START_MS + 10 * DAY_MS, 25)


def test_expired_events_leave_them(tmp_path: Path, first: Path) -> None:
    now = datetime.fromtimestamp(START_MS / 1000, UTC) + timedelta(days=30)
    done = prune_runs(tmp_path / "runs", tmp_path, None, timedelta(days=20), now)
    assert {file.path: file.rows for file in done.cut} == {
        f"0001-run/prepare/{RAW_EVENTS}": 21,
        "0001-run/prepare/events.parquet": 20,
    }
    kept = raw(first)
    assert (kept["timestamp"].min(), kept["timestamp"].null_count()) == (START_MS + 10 * DAY_MS, 1)
