"""The console of `segrec-train`: every text is data."""

import pytest
import typer
from rich.console import Group
from rich.table import Table

from training.cli.console import BAD_INPUT, INTERRUPTED, command_console
from training.data.account import Account, Step
from training.errors import LogError

TEXTS = [
    "[/view]",
    "[bold]loud[/bold]",
    ":smile:",
    "\x1b[31mred",
    "<script>alert(1)</script>",
    "[link=http://x]y[/link]",
]
SHOWN = [text.replace("\x1b", r"\u001b") for text in TEXTS]


def test_texts_tables_and_groups_show_what_is_there(capsys: pytest.CaptureFixture[str]) -> None:
    table = Table("name", title=TEXTS[0], caption=TEXTS[3])
    for text in TEXTS:
        table.add_row(text)
    with command_console() as console:
        console.print(table, Group(*TEXTS), *TEXTS)
    output = capsys.readouterr().out
    assert [output.count(text) for text in SHOWN] == [4, 3, 3, 4, 3, 3]
    assert "\x1b" not in output


def test_an_account_with_any_action(capsys: pytest.CaptureFixture[str]) -> None:
    notes = tuple(f"action `{text}\n` is not a common one: change it in [actions]" for text in TEXTS)
    account = Account(
        rows_in=1, rows_out=0, steps=(Step(name="s", rows_in=1, rows_dropped=1, why=TEXTS[1]),), notes=notes
    )
    with command_console() as console:
        console.print(account.table())
    output = capsys.readouterr().out
    for text in SHOWN:
        assert rf"action `{text}\n` is not a common one: change it in [actions]" in output
    assert TEXTS[1] in output


def test_an_error_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit) as stopped, command_console():
        raise LogError("row 1 `\x1b[31m\n[/view]` :smile:")
    assert stopped.value.exit_code == BAD_INPUT
    assert capsys.readouterr().err == "row 1 `\\u001b[31m\\n[/view]` :smile:\n"


def test_a_stage_shows_what_it_works_on(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    with command_console() as console:
        console.start_stage("prepare")("[/view]\x1b[99m", 0, 1)
    assert r"prepare: [/view]\u001b[99m" in capsys.readouterr().out


class Terminated(SystemExit):
    """What Lightning raises at SIGTERM: without a code."""


def test_a_stage_that_is_terminated_does_not_end_with_success(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit) as ended, command_console():
        raise Terminated
    assert ended.value.exit_code == INTERRUPTED
    assert "Stopped." in capsys.readouterr().err


def test_an_exit_with_a_code_keeps_it() -> None:
    with pytest.raises(SystemExit) as ended, command_console():
        raise SystemExit(3)
    assert ended.value.code == 3
