"""Options of `segrec-train` that take several values."""

from pathlib import Path
from typing import Annotated

import pytest
import typer
from typer.testing import CliRunner

from training.cli.options import Events, SeveralEvents, log_of
from training.errors import LogError

app = typer.Typer()


@app.command(cls=SeveralEvents)
def command(events: Events, items: Path | None = None, demo: bool = False) -> None:
    """Print what it was given."""
    typer.echo(f"{events} {items} {demo}")


@app.command()
def another(name: Annotated[str, typer.Argument()]) -> None:
    """Make it a program of several commands."""


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (["--events", "a"], "['a'] None False"),
        (["--events", "a", "b", "c", "--items", "i", "--demo"], "['a', 'b', 'c'] i True"),
        (["--items", "i", "--events", "a", "--demo", "--events", "b", "c"], "['a', 'b', 'c'] i True"),
        (["--events=a", "--items", "i"], "['a'] i False"),
    ],
)
def test_events_take_all_values_that_follow(args: list[str], expected: str) -> None:
    result = CliRunner().invoke(app, ["command", *args])
    assert (result.exit_code, result.output.strip()) == (0, expected)


@pytest.mark.parametrize("args", [["--events"], ["--items", "a", "b", "--events", "c"], ["x", "--events", "c"]])
def test_other_values_are_refused(args: list[str]) -> None:
    assert CliRunner().invoke(app, ["command", *args]).exit_code == 2


def test_a_log_is_files_or_one_table(tmp_path: Path) -> None:
    for name in ("b.csv", "a.csv"):
        (tmp_path / name).write_text("x")
    log = log_of([str(tmp_path / "b.csv"), str(tmp_path / "a.csv")])
    assert str(log) == f"{tmp_path / 'b.csv'} and 1 more file"
    with pytest.raises(LogError, match="one table or query, or files only"):
        log_of([str(tmp_path / "a.csv"), "postgresql://host/db?query=SELECT%201"])
    with pytest.raises(LogError, match=r"There is no file .*c\.csv\."):
        log_of([str(tmp_path / "a.csv"), str(tmp_path / "c.csv")])
