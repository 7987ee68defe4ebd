"""The account of a log adds up, and names the rows that were dropped."""

import io
from pathlib import Path

import polars as pl
import pytest
from pydantic import ValidationError
from rich.console import Console

from training.config import Clean, Config, SplitSettings
from training.data.account import Account, LogPart, Step, dropping_step, row_name
from training.data.prepare import prepare
from training.data.reading.log_files import LogFiles
from training.data.split import read_split
from training.runs import Run

STEPS = (Step(name="a", rows_in=10, rows_dropped=3, why="x"), Step(name="b", rows_in=7, rows_dropped=1, why="y"))


def test_an_account_that_does_not_add_up_is_refused() -> None:
    assert Account(rows_in=10, rows_out=6, steps=STEPS).rows_out == 6
    for rows_in, rows_out, steps in ((11, 6, STEPS), (10, 5, STEPS), (10, 6, STEPS[:1]), (10, 9, ())):
        with pytest.raises(ValidationError, match="does not add up"):
            Account(rows_in=rows_in, rows_out=rows_out, steps=steps)


def test_the_first_dropped_rows_are_named() -> None:
    before = pl.DataFrame({"row": pl.Series([9, 2, 8, 4, 7, 1, 3, 6], dtype=pl.UInt32)})
    step = dropping_step("some", before, before.filter(pl.col("row").is_in([2, 6])), "why")
    assert (step.rows_dropped, step.first_rows) == (6, (1, 3, 4, 7, 8))
    assert dropping_step("none", before, before, "why").first_rows == ()
    parts = (LogPart(file="a.csv", rows=3), LogPart(file="b.csv", rows=9))
    assert [row_name(row, parts) for row in (3, 4)] == ["row 3 of a.csv", "row 1 of b.csv"]


def test_every_step_of_a_log_names_its_rows(tmp_path: Path) -> None:
    files = {
        "a.csv": "user_id,item_id,time\nNULL,x,2024-01-01\nu,x,2024-01-02\nu,x,2024-01-02\nu,y,1960-01-01\n",
        "b.csv": "user_id,item_id,time\nu,-,2024-01-03\nu,y,2024-01-04\nv,x,2024-01-05\nu,z,2024-01-06\n",
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    log = LogFiles.of([tmp_path / "a.csv", tmp_path / "b.csv"])
    config = Config(clean=Clean(min_events_per_user=2))
    account = prepare(Run.create(tmp_path / "runs"), log, None, None, config).account
    assert {step.name: step.first_rows for step in account.steps if step.rows_dropped} == {
        "missing user_id": (1,),
        "impossible timestamp": (4,),
        "missing item_id": (5,),
        "duplicates": (3,),
        "users with few events": (7,),
    }
    assert (account.rows_in, account.rows_out) == (8, 3)
    console = Console(file=io.StringIO(), width=200)
    console.print(account.table())
    assert f"row 1 of {tmp_path / 'b.csv'}" in console.file.getvalue().replace("\n", "")  # type: ignore[attr-defined]


def test_the_share_of_the_test_counts_possible_times(tmp_path: Path) -> None:
    rows = [f"u{row % 20},i{row % 7},{1_700_000_000 + row if row % 2 else -1}" for row in range(400)]
    (tmp_path / "log.csv").write_text("user_id,item_id,timestamp\n" + "\n".join(rows) + "\n")
    config = Config(split=SplitSettings(method="time"))
    run = Run.create(tmp_path / "runs")
    result = prepare(run, tmp_path / "log.csv", None, None, config)
    events = pl.read_parquet(result.directory / "events.parquet")
    test = events.filter(pl.col("timestamp") >= read_split(result.directory).test_from)
    assert (len(events), len(test)) == (200, 20)
