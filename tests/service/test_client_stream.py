"""The command `segrec stream` as people run it: rows, counts, exit codes, and resuming after a kill."""

import json
import os
import signal
import threading
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from segrec.cli import main

from tests.support.client_cli import USERS, kill_when_stalled, read, records
from tests.support.fake_segrec import WAIT_SECONDS, FakeSegrec, StreamLost


def test_a_stream_says_how_many_users_have_no_history(fake: FakeSegrec, capsys: pytest.CaptureFixture[str]) -> None:
    Path("users.csv").write_text("user_id;name\nab;x\ncold-1;y\ncold-2;z\n", encoding="utf-8")
    assert main.main(["stream", "--users", "users.csv", "--out", "out.csv"]) == 0
    assert "segrec: 2 of 3 users have no history (column `state`)" in capsys.readouterr().err
    assert main.main(["stream", "--users", "users.csv", "--out", "out.csv", "--json", "--force"]) == 0
    assert records(capsys.readouterr().out)[0]["no_history"] == 2


@pytest.mark.parametrize("suffix", [".csv", ".ndjson", ".parquet"])
def test_a_stream_writes_every_user_once_in_order(
    fake: FakeSegrec, capsys: pytest.CaptureFixture[str], suffix: str
) -> None:
    users = [*USERS, "bad", "", "slow", "cold", 'quoted "one", 二']
    pl.DataFrame({"user_id": users}).write_parquet("users.parquet")
    arguments = ["stream", "--users", "users.parquet", "--out", f"out{suffix}", "--json"]
    assert main.main(arguments) == 5
    assert [row["user_id"] for row in read(f"out{suffix}")] == users
    summary = records(capsys.readouterr().out)[0]
    assert [summary[name] for name in ("read", "answered", "failed", "degraded")] == [2005, 2003, 2, 1]
    assert summary["server_received"] == 2006  # the degraded row was asked twice
    assert sorted(os.listdir()) == sorted([f"out{suffix}", "users.parquet"])


@pytest.mark.parametrize("flags", [[], ["--json"], ["--recommend"]])
def test_degraded_users_are_counted_and_have_their_own_exit_code(
    fake: FakeSegrec, capsys: pytest.CaptureFixture[str], flags: list[str]
) -> None:
    Path("users.txt").write_text("ab\nslow-1\ncold\nslow-2\n", encoding="utf-8")
    arguments = ["stream", "--users", "users.txt", "--out", "out.ndjson", *flags]
    assert main.main(arguments) == 7
    error = capsys.readouterr().err
    assert "segrec: 2 of 4 users have a degraded answer" in error
    assert "To ask for these users again: --failed FILE, then --users FILE" in error
    assert [row["user_id"] for row in read("out.ndjson") if row["degraded"]] == ["slow-1", "slow-2"]
    Path("users.txt").write_text("ab\nslow-1\nbad\n", encoding="utf-8")
    assert main.main([*arguments, "--force"]) == 5


@pytest.mark.parametrize("suffix", [".csv", ".ndjson", ".parquet"])
def test_a_stream_recommends(fake: FakeSegrec, users_file: str, suffix: str) -> None:
    out = f"out{suffix}"
    arguments = ["stream", "--users", users_file, "--out", out, "--recommend", "--top-k", "2", "--exclude-item", "i1"]
    assert main.main(arguments) == 0
    rows = read(out)
    if suffix == ".ndjson":
        assert [[item["item_id"] for item in row["items"]] for row in rows] == [["i2", "i3"]] * 2000
    else:
        assert [(row["user_id"], str(row["rank"]), row["item_id"]) for row in rows] == [
            (user_id, rank, item_id) for user_id in USERS for rank, item_id in (("1", "i2"), ("2", "i3"))
        ]


@pytest.mark.parametrize("suffix", [".csv", ".ndjson", ".parquet"])
@pytest.mark.parametrize("recommend", [False, True])
def test_a_stream_writes_the_confidence_of_each_segment(fake: FakeSegrec, suffix: str, recommend: bool) -> None:
    Path("users.csv").write_text("user_id\nab\ntorn\ncold\n", encoding="utf-8")
    arguments = ["stream", "--users", "users.csv", "--out", f"out{suffix}"]
    assert main.main(arguments + ["--recommend", "--top-k", "1"] * recommend) == 0
    rows = read(f"out{suffix}")
    assert [row["state"] for row in rows] == ["assigned", "no_confident_segment", "no_history"]
    assert [float(row["confidence"] or 0) for row in rows] == [0.875, 0.25, 0.0]
    if suffix != ".csv":
        assert [type(row["confidence"]) for row in rows] == [float, float, type(None)]
    assert [str(row["short_history"]).lower() for row in rows] == ["false", "true", "false"]


def test_counts_that_do_not_match_have_their_own_exit_code(
    fake: FakeSegrec, users_file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    fake.script.summary_error = 1
    assert main.main(["stream", "--users", users_file, "--out", "out.csv"]) == 6
    assert "The server counted 2001 users" in capsys.readouterr().err
    assert not Path("out.csv").exists()


@pytest.mark.parametrize("suffix", [".csv", ".ndjson", ".parquet"])
def test_a_killed_stream_resumes_where_it_stopped(fake: FakeSegrec, users_file: str, suffix: str) -> None:
    assert main.main(["stream", "--users", users_file, "--out", f"whole{suffix}", "--chunk-size", "50"]) == 0
    arguments = ["stream", "--users", users_file, "--out", f"out{suffix}", "--chunk-size", "50"]
    kill_when_stalled(fake, arguments, 20, signal.SIGKILL)
    with open(f"out{suffix}.part", "ab") as part:
        part.write(b"half a row of us")
    assert main.main(arguments) == 2
    assert main.main([*arguments, "--resume"]) == 0
    assert without_time(f"out{suffix}") == without_time(f"whole{suffix}")
    assert sorted(os.listdir()) == sorted([f"whole{suffix}", f"out{suffix}", "users.csv"])


def without_time(path: str) -> list[dict[str, Any]]:
    return [row | {"run_time": None} for row in read(path)]


def test_an_interrupted_stream_says_how_to_resume(fake: FakeSegrec, users_file: str) -> None:
    arguments = ["stream", "--users", users_file, "--out", "out.csv", "--chunk-size", "50"]
    first_count = fake.script.answered_chunks
    code, text = kill_when_stalled(fake, arguments, 20, signal.SIGINT)
    written_count = json.loads(Path("out.csv.progress").read_text(encoding="utf-8"))["counts"]["read"]
    assert code == 130
    assert f"{written_count:,} users are written; continue with:\n  segrec stream --users" in text
    assert "Traceback" not in text
    assert main.main([*arguments, "--resume"]) == 0
    assert [row["user_id"] for row in read("out.csv")] == USERS
    assert fake.script.answered_chunks - first_count < 60


@pytest.mark.parametrize("change", ["users", "question", "progress", "shorter"])
def test_resuming_with_other_users_or_options_or_files_is_refused(
    fake: FakeSegrec, users_file: str, capsys: pytest.CaptureFixture[str], change: str
) -> None:
    arguments = ["stream", "--users", users_file, "--out", "out.csv", "--chunk-size", "50"]
    kill_when_stalled(fake, arguments, 20, signal.SIGINT)
    if change == "users":
        Path(users_file).write_text("user_id\n" + "\n".join(reversed(USERS)), encoding="utf-8")
    elif change == "progress":
        Path("out.csv.progress").write_text("{", encoding="utf-8")
    elif change == "shorter":
        Path("out.csv.part").write_text("", encoding="utf-8")
    else:
        arguments += ["--release", "2"]
    assert main.main([*arguments, "--resume"]) == 2
    assert "Cannot resume" in capsys.readouterr().err


def test_resuming_a_complete_output_is_refused(fake: FakeSegrec, users_file: str) -> None:
    arguments = ["stream", "--users", users_file, "--out", "out.csv"]
    assert main.main(arguments) == 0
    assert main.main([*arguments, "--resume"]) == 2
    assert len(read("out.csv")) == 2000


def test_a_stream_survives_a_short_loss_of_the_server(fake: FakeSegrec, users_file: str) -> None:
    losses = iter([True])

    def lose_once(number: int) -> None:
        if number == 5 and next(losses, False):
            raise StreamLost

    fake.script.before_answer = lose_once
    assert main.main(["stream", "--users", users_file, "--out", "out.csv", "--chunk-size", "100"]) == 0
    assert [row["user_id"] for row in read("out.csv")] == USERS


def test_a_stalled_server_ends_the_stream_in_time(
    fake: FakeSegrec, users_file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    release = threading.Event()

    def hold(_: int) -> None:
        release.wait(WAIT_SECONDS)

    fake.script.before_answer = hold
    assert main.main(["stream", "--users", users_file, "--out", "out.csv", "--timeout", "0.3"]) == 4
    release.set()
    assert "has sent no answer for 0.3 s" in capsys.readouterr().err
