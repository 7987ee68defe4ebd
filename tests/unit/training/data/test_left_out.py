"""Erased and expired events are left out of a run, and the account counts them."""

from pathlib import Path

import polars as pl
import pytest
from typer.testing import CliRunner

from server.core.erasure import ErasureMarks, new_erasure_key
from tests.support.logs import DAY_MS, START_MS
from training.cli.main import app
from training.config import Config, PrivacySettings
from training.data.account import Account
from training.data.prepare import prepare
from training.errors import ConfigError, LogError
from training.pipeline import RunInputs, remaining_stages
from training.runs import Run

USERS, DAYS = ("anna", "ben", "cleo"), 40


def write_log(path: Path, clock: bool = True) -> Path:
    """One event a day of each of three users."""
    rows = [
        (user, f"i{day % 9}", START_MS + day * DAY_MS + place)
        for place, user in enumerate(USERS)
        for day in range(DAYS)
    ]
    log = pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row")
    (log if clock else log.with_columns(pl.int_range(pl.len()).alias("timestamp"))).write_parquet(path)
    return path


def write_erasures(path: Path, erased: dict[str, int]) -> Path:
    marks = ErasureMarks(new_erasure_key(), {})
    for user_id, day in erased.items():
        marks.mark(user_id, START_MS // 1000 + day * DAY_MS // 1000)
    marks.write(path)
    return path


def prepared(
    tmp_path: Path, erased: dict[str, int] | None = None, retention_days: int | None = None, clock: bool = True
) -> tuple[pl.DataFrame, Account]:
    """The events and the account of a run that is prepared on day 50; `erased` are days of erasure by user."""
    config = Config(privacy=PrivacySettings(retention_days=retention_days))
    run = Run.create(tmp_path / "runs")
    now = (START_MS + 50 * DAY_MS) / 1000
    events = write_log(tmp_path / "events.parquet", clock)
    erasures = None if erased is None else write_erasures(tmp_path / "erasures.json", erased)
    result = prepare(run, events, None, None, config, erasures=erasures, clock=lambda: now)
    return pl.read_parquet(result.directory / "events.parquet"), result.account


def counts(events: pl.DataFrame) -> dict[str, int]:
    return dict(events["user_id"].value_counts().rows())


def dropped(account: Account) -> dict[str, int]:
    """Dropped rows by step, which add up."""
    assert account.rows_in - sum(step.rows_dropped for step in account.steps) == account.rows_out
    return {step.name: step.rows_dropped for step in account.steps if step.rows_dropped}


def test_events_before_the_erasure_are_left_out_and_later_ones_stay(tmp_path: Path) -> None:
    events, account = prepared(tmp_path, {"ben": 30, "stranger": 30})
    assert counts(events) == {"anna": 40, "ben": 9, "cleo": 40}, "an event of the second of the erasure stays"
    assert events.filter(pl.col("user_id") == "ben")["timestamp"].min() == START_MS + 31 * DAY_MS + 1
    assert dropped(account) == {"erased": 31}


def test_without_a_clock_all_events_of_erased_users_are_left_out(tmp_path: Path) -> None:
    events, account = prepared(tmp_path, {"ben": 0}, clock=False)
    assert counts(events) == {"anna": 40, "cleo": 40}
    assert dropped(account) == {"erased": 40}


def test_events_older_than_the_retention_are_left_out(tmp_path: Path) -> None:
    events, account = prepared(tmp_path, retention_days=25)
    assert counts(events) == dict.fromkeys(USERS, 15)
    assert events["timestamp"].min() == START_MS + 25 * DAY_MS
    assert dropped(account) == {"older than the retention": 75}


def test_both_together_count_no_event_twice(tmp_path: Path) -> None:
    events, account = prepared(tmp_path, {"ben": 30}, retention_days=25)
    assert counts(events) == {"anna": 15, "ben": 9, "cleo": 15}
    assert dropped(account) == {"erased": 31, "older than the retention": 50}


def test_a_log_of_which_nothing_is_left_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LogError, match=r"None of 120 events is left .*: 0 are erased and 120 are older than the"):
        prepared(tmp_path, {}, retention_days=5)


def test_a_run_is_prepared_again_for_new_erasures_and_never_without_them(tmp_path: Path) -> None:
    events, run = write_log(tmp_path / "events.parquet"), Run.create(tmp_path / "runs", run_id="one")
    marks = write_erasures(tmp_path / "erasures.json", {"ben": 30})
    inputs = RunInputs(events, None, None, Config(), tmp_path / "repository", marks)
    prepare(run, events, None, None, Config(), erasures=marks)
    assert "prepare" not in remaining_stages(run, inputs)
    write_erasures(marks, {"ben": 30, "anna": 10})
    assert "prepare" in remaining_stages(run, inputs)
    words = ["prepare", "--events", str(events), "--runs", str(tmp_path / "runs"), "--run", "one"]
    refused = CliRunner().invoke(app, words)
    assert (refused.exit_code, "give it the file with --erasures again" in refused.stderr) == (2, True)
    done = CliRunner().invoke(app, [*words, "--erasures", str(marks)])
    assert done.exit_code == 0, done.output
    assert counts(pl.read_parquet(run.require("prepare") / "events.parquet")) == {"anna": 29, "ben": 9, "cleo": 40}


@pytest.mark.parametrize(("content", "why"), [("{}", "holds no erasures"), (None, "There is no file")])
def test_unusable_erasures_are_refused(tmp_path: Path, content: str | None, why: str) -> None:
    path = tmp_path / "erasures.json"
    if content is not None:
        path.write_text(content)
    events = write_log(tmp_path / "events.parquet")
    words = ["--events", str(events), "--erasures", str(path), "--runs", str(tmp_path / "runs")]
    refused = CliRunner().invoke(app, ["prepare", *words])
    assert (refused.exit_code, why in refused.stderr) == (2, True)
    assert not refused.stderr.count("Traceback")


def test_a_retention_needs_times(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no clock"):
        prepared(tmp_path, retention_days=5, clock=False)
