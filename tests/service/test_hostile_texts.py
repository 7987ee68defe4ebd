"""Ids and titles are data: what they hold changes no row, no column and no terminal."""

import json
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest
from segrec.cli import main

from tests.support.client_cli import read
from tests.support.fake_segrec import WAIT_SECONDS, FakeSegrec

HOSTILE = [
    'a"b,c;d\te|f',
    '=HYPERLINK("x")',
    "line\nbreak",
    "return\rhome",
    "\x1b[31mred\x1b[0m",
    "right\u202eleft",
    "line\u2028separator",
    "'; DROP TABLE users; --",
    "<script>alert(1)</script>",
    "[bold]markup[/bold]",
    "{{ jinja }} %s %(x)s {0}",
    "../../etc/passwd",
    "NaN-but-text",
    "1e5x",
    "\u200bzero\u200bwidth",
    "👩‍👩‍👧 用户 ﷽",
    "#comment",
    "\\N-ish",
    "x" * 256,
]


@pytest.fixture
def hostile_users(fake: FakeSegrec) -> list[str]:
    lines = [json.dumps({"user_id": user_id}) for user_id in HOSTILE]
    Path("users.ndjson").write_text("\n".join(lines), encoding="utf-8")
    return HOSTILE


@pytest.mark.parametrize("suffix", [".csv", ".ndjson", ".parquet"])
@pytest.mark.parametrize("flags", [[], ["--recommend", "--top-k", "1"]])
def test_hostile_ids_come_back_as_they_are(hostile_users: list[str], suffix: str, flags: list[str]) -> None:
    assert main.main(["stream", "--users", "users.ndjson", "--out", f"out{suffix}", *flags]) == 0
    assert [row["user_id"] for row in read(f"out{suffix}")] == hostile_users


@pytest.mark.parametrize("suffix", [".csv", ".ndjson", ".parquet"])
def test_an_output_with_hostile_ids_is_an_input_and_has_no_changes(
    hostile_users: list[str], capsys: pytest.CaptureFixture[str], suffix: str
) -> None:
    assert main.main(["stream", "--users", "users.ndjson", "--out", f"out{suffix}"]) == 0
    assert main.main(["stream", "--users", f"out{suffix}", "--out", "again.ndjson"]) == 0
    assert [row["user_id"] for row in read("again.ndjson")] == hostile_users
    arguments = ["stream", "--users", "users.ndjson", "--out", "changes.csv", "--since", f"out{suffix}"]
    assert main.main(arguments) == 0
    assert "0 users changed segment" in capsys.readouterr().out


def test_an_arrow_stream_holds_hostile_ids(hostile_users: list[str]) -> None:
    arguments = ["stream", "--users", "users.ndjson", "--out", "-", "--format", "arrow"]
    command = [sys.executable, "-m", "segrec.cli.main", *arguments]
    result = subprocess.run(command, capture_output=True, timeout=WAIT_SECONDS, check=True)
    assert pl.read_ipc_stream(result.stdout)["user_id"].to_list() == hostile_users


def test_hostile_names_of_files_and_columns_reach_no_terminal(
    fake: FakeSegrec, capsys: pytest.CaptureFixture[str]
) -> None:
    name, column = "\x1b[31mu\n.csv", "\x1b]0;owned\x07"
    Path(name).write_text(f"{column},x\nbad-\x1b[2J,y\n", encoding="utf-8")
    assert main.main(["stream", "--users", name, "--out", "out.csv"]) == 2
    assert main.main(["stream", "--users", name, "--out", "\x1b[32mout.csv", "--user-column", column]) == 5
    output = capsys.readouterr()
    shown = output.out + output.err
    assert "\x1b" not in shown
    assert "\x07" not in shown
    assert r"\u001b[32mout.csv" in shown
