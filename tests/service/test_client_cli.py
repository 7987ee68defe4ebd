"""The command `segrec` as people run it: output, exit codes, matching counts, and resuming after a kill."""

import csv
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from segrec.cli import main

from tests.support.fake_segrec import WAIT_SECONDS, FakeSegrec, StreamLost

USERS = [f"user-{n}" for n in range(2000)]
INTERRUPTIBLE = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a runner that ignores SIGINT hands that down to its children
from segrec.cli.main import main
sys.exit(main())
"""


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeSegrec]:
    monkeypatch.chdir(tmp_path)
    with FakeSegrec() as server:
        monkeypatch.setenv("SEGREC_ADDRESS", server.address)
        monkeypatch.setenv("SEGREC_MODEL_ADDRESS", server.address)
        yield server


@pytest.fixture
def users_file(tmp_path: Path) -> str:
    path = tmp_path / "users.csv"
    path.write_text("user_id\n" + "\n".join(USERS) + "\n", encoding="utf-8")
    return str(path)


def records(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_segments_are_printed_as_a_table_or_json(fake: FakeSegrec, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["segment", "ab", "cold", "torn"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["user", "segment", "label", "confidence", "distance", "release", "events", "note"]
    assert lines[1].split() == ["ab", "3", "Segment", "3", "0.8750", "0.2500", "1", "5"]
    assert lines[2].split() == ["cold", "1", "0", "no", "history"]
    assert lines[3].endswith("no confident segment, short history")
    assert main.main(["segment", "ab", "--json"]) == 0
    assert records(capsys.readouterr().out)[0]["segment_id"] == 3


def test_a_bad_user_does_not_stop_the_answers_of_the_others(
    fake: FakeSegrec, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.main(["recommend", "bad", "ab", "--top-k", "2", "--json"]) == 2
    output = capsys.readouterr()
    assert output.err == "segrec: 'bad': The user id is bad\n"
    assert [record["user_id"] for record in records(output.out)] == ["ab"]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["segment", "ab", "--release", "9"], 3, "Release 9 is not loaded"),
        (["segments", "7"], 3, "Release 1 has no segment 7"),
        (["segments", "99999999999"], 2, "out of range"),
        (["releases", "7"], 3, "There is no release 7"),
        (["recommend", "ab", "--strategy", "best"], 2, "hybrid, personal, segment or popular"),
        (["segment", "ab", "--tls-ca", "missing.pem"], 2, "Cannot read missing.pem"),
        (["record", "missing.csv"], 2, "Cannot read missing.csv"),
        (["stream", "--users", "missing.csv", "--out", "out.csv"], 2, "Cannot read missing.csv"),
    ],
)
def test_errors_are_one_sentence_and_a_code(
    fake: FakeSegrec, capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, message: str
) -> None:
    assert main.main(arguments) == code
    output = capsys.readouterr()
    assert message in output.err
    assert (output.out, output.err.count("\n")) == ("", 1)


@pytest.mark.parametrize(
    "arguments", [["segment", "ab"], ["segments"], ["stream", "--users", "users.csv", "--out", "out.csv"]]
)
def test_the_error_names_the_address_where_no_server_answers(
    fake: FakeSegrec, users_file: str, capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    fake.stop()
    assert main.main(arguments) == 4
    assert f"No server answers at {fake.address}: start one with `segrec-serve`" in capsys.readouterr().err
    assert os.listdir() == ["users.csv"]


def test_a_wrong_option_is_a_usage_error(fake: FakeSegrec) -> None:
    with pytest.raises(SystemExit) as caught:
        main.main(["segment", "ab", "--timeout", "0"])
    assert caught.value.code == 2


def test_segments_releases_history_and_erase(fake: FakeSegrec, capsys: pytest.CaptureFixture[str]) -> None:
    Path("events.csv").write_text("user_id,item_id,action,value,timestamp\nu,i,view,2.5,1700000000\n", encoding="utf-8")
    assert main.main(["record", "events.csv"]) == 0
    for arguments in (["segments"], ["segments", "1"], ["releases"], ["releases", "2"], ["history", "u"]):
        assert main.main(arguments) == 0
    text = capsys.readouterr().out
    assert "Tea ×2.5" in text
    heading = "item  title   users    lift  at least\n"
    assert f"What most of its users chose, by share of users:\n{heading}" in text
    assert "i1    Item 1  60.0%  1.2500    0.7500\n" in text
    assert (
        "What it is particular about, by the lower bound of the lift:\nitem  title   users    lift  at least\n" in text
    )
    assert "i2    Item 2  20.0%  4.0000    2.5000\n" in text
    assert main.main(["segments", "1", "--json"]) == 0
    [found] = records(capsys.readouterr().out)
    assert found["top_items"] == [
        {"item_id": "i1", "title": "Item 1", "user_share": 0.6, "lift": 1.25, "lift_low": 0.75}
    ]
    assert [item["item_id"] for item in found["particular_items"]] == ["i2"]
    assert "since release 7, of 1,200 users known to both releases:" in text
    assert "new: 1, 2\nsplit: 3 → 1, 2\n" in text
    assert "state: active" in text
    assert "forget_after_time: 2027-01-15T08:00:00Z" in text
    assert "trained_on_first_event_time: 2023-11-14T22:13:20Z\ntrained_on_user_count: 42" in text
    assert "trained_on_last_event_time" not in text, "the fake log has none"
    assert "trained_on_files: log.csv, i.csv" in text
    assert "2023-11-14T22:13:20Z  view    i     2.5000" in text
    assert main.main(["releases", "2", "--json"]) == 0
    [release] = records(capsys.readouterr().out)
    assert release["trained_on"]["event_count"] == 777
    assert main.main(["erase", "u", "--json"]) == 0
    [receipt] = records(capsys.readouterr().out)
    assert (receipt["user_id"], receipt["erased_event_count"]) == ("u", 1)
    description, until = "release 3 was trained before", "2023-11-14T22:13:20Z"
    left = {"place": "release", "description": description, "release": 3, "until": until}
    assert receipt["remainders"] == [left]
    assert main.main(["erase", "u"]) == 0
    assert f"u: 0 events erased; events from before now are refused\n- {description} (until {until})\n" in (
        capsys.readouterr().out
    )


def test_recording_lists_refused_rows_adds_up_and_can_be_repeated(
    fake: FakeSegrec, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = ["user_id,item_id,action,value,timestamp"]
    lines += [f"u{n},i,view,,2024-01-01T00:00:00Z" for n in range(1500)]
    lines += ["bad,i,view,,", "u,i,view,many,", "u,i,view,,yesterday", "u,,view,,", "u,i,view,,"]
    Path("events.csv").write_text("\n".join(lines), encoding="utf-8")
    assert main.main(["record", "events.csv"]) == 5
    output = capsys.readouterr()
    assert output.out == "read 1,505 = stored 1,501 + already there 0 + refused 4\n"
    assert [line.split(":")[0] for line in output.err.splitlines()] == [
        "Line 1503",
        "Line 1504",
        "Line 1505",
        "Line 1502",
    ]
    assert main.main(["record", "events.csv", "--json"]) == 5
    assert records(capsys.readouterr().out)[-1] == {
        "read": 1505,
        "stored": 0,
        "duplicate": 1501,
        "too_old": 0,
        "refused": 4,
        "not_sent": 0,
    }


def test_a_file_that_cannot_be_read_to_its_end_stores_nothing(
    fake: FakeSegrec, capsys: pytest.CaptureFixture[str]
) -> None:
    title = 'user_id,item_id,action,title\nu,1,view,tea\nu,2,view,"12 inch\nu,3,view,cup\nu,4,view,"7 inch\n'
    Path("events.csv").write_text(title, encoding="utf-8")
    assert main.main(["record", "events.csv"]) == 2
    assert "events.csv, line 3: a field begins with a double quote that is never closed" in capsys.readouterr().err
    assert fake.script.stored == {}


def test_options_say_how_events_are_read(fake: FakeSegrec, capsys: pytest.CaptureFixture[str]) -> None:
    text = "buyer;商品ID;price;day\n None ;17850.0;9,5;31.01.2024\nguest;1;;\n"
    Path("events.csv").write_text(text, encoding="utf-8")
    arguments = ["record", "events.csv", "--column", "user_id=buyer", "--column", "value=", "--column", "timestamp=day"]
    settings = ["--missing-words", "guest", "--timestamp-format", "%d.%m.%Y", "--timezone", "Asia/Shanghai"]
    assert main.main([*arguments, *settings]) == 5
    output = capsys.readouterr()
    assert (output.out, output.err) == (
        "read 2 = stored 1 + already there 0 + refused 1\n",
        "Line 3: user_id is missing\n",
    )
    [event] = fake.script.stored["None"]
    assert (event.item_id, event.action, event.timestamp.seconds) == ("17850", "event", 1706630400)
    assert not event.HasField("value")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--column", "price=x"], "price=x is not ROLE=NAME with a role among user_id, item_id"),
        (["--timezone", "Mars"], "'Mars' is no time zone"),
        (["--timestamp-format", "%H:%M"], "lacks the year, month or day"),
    ],
)
def test_wrong_options_of_reading_are_usage_errors(
    fake: FakeSegrec, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    with pytest.raises(SystemExit) as caught:
        main.main(["record", "events.csv", *options])
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


def test_a_stream_says_how_many_users_have_no_history(fake: FakeSegrec, capsys: pytest.CaptureFixture[str]) -> None:
    Path("users.csv").write_text("user_id;name\nab;x\ncold-1;y\ncold-2;z\n", encoding="utf-8")
    assert main.main(["stream", "--users", "users.csv", "--out", "out.csv"]) == 0
    assert "segrec: 2 of 3 users have no history (column `state`)" in capsys.readouterr().err
    assert main.main(["stream", "--users", "users.csv", "--out", "out.csv", "--json"]) == 0
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
    assert "Run the same command again without --resume" in error
    assert [row["user_id"] for row in read("out.ndjson") if row["degraded"]] == ["slow-1", "slow-2"]
    assert main.main(arguments) == 7  # a whole output is replaced by a second run
    Path("users.txt").write_text("ab\nslow-1\nbad\n", encoding="utf-8")
    assert main.main(arguments) == 5


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


def read(path: str) -> list[dict[str, Any]]:
    if path.endswith(".parquet"):
        return pl.read_parquet(path).to_dicts()
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file)) if path.endswith(".csv") else [json.loads(line) for line in file]


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
    assert read(f"out{suffix}") == read(f"whole{suffix}")
    assert sorted(os.listdir()) == sorted([f"whole{suffix}", f"out{suffix}", "users.csv"])


def test_an_interrupted_stream_says_how_to_resume(fake: FakeSegrec, users_file: str) -> None:
    arguments = ["stream", "--users", users_file, "--out", "out.csv", "--chunk-size", "50"]
    first_count = fake.script.answered_chunks
    code, text = kill_when_stalled(fake, arguments, 20, signal.SIGINT)
    written_count = json.loads(Path("out.csv.progress").read_text(encoding="utf-8"))["read_count"]
    assert code == 130
    assert f"{written_count:,} users are written; continue with:\n  segrec stream --users" in text
    assert "Traceback" not in text
    assert main.main([*arguments, "--resume"]) == 0
    assert [row["user_id"] for row in read("out.csv")] == USERS
    assert fake.script.answered_chunks - first_count < 60


def kill_when_stalled(
    fake: FakeSegrec, arguments: list[str], chunk_number: int, number: signal.Signals
) -> tuple[int, str]:
    """Runs the command until the fake is about to answer that chunk; ends it by the signal."""
    reached, release = threading.Event(), threading.Event()
    begin = fake.script.answered_chunks

    def hold(chunk: int) -> None:
        if chunk - begin >= chunk_number:
            reached.set()
            release.wait(WAIT_SECONDS)
            raise StreamLost

    fake.script.before_answer = hold
    command = [sys.executable, "-c", INTERRUPTIBLE, *arguments]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as child:
        assert reached.wait(WAIT_SECONDS)
        child.send_signal(number)
        _, text = child.communicate(timeout=WAIT_SECONDS)
    fake.script.before_answer = lambda _: None
    release.set()
    return child.returncode, text


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


def test_a_broken_pipe_is_silent(fake: FakeSegrec) -> None:
    command = f"{sys.executable} -m segrec.cli.main segments --json | true; echo ${{PIPESTATUS[0]}}"
    result = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=WAIT_SECONDS, check=True)
    assert result.stdout in ("141\n", "0\n")
    assert result.stderr == ""
