"""The command `segrec` as people run it: output, exit codes, matching counts, and resuming after a kill."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from segrec.cli import main

from tests.support.client_cli import records
from tests.support.fake_segrec import WAIT_SECONDS, FakeSegrec


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


@pytest.mark.parametrize("command", ["segment", "recommend"])
def test_a_degraded_answer_has_its_own_exit_code(
    fake: FakeSegrec, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    assert main.main([command, "ab"]) == 0
    assert main.main([command, "ab", "slow-1"]) == 7
    assert "degraded: " in capsys.readouterr().out
    assert main.main([command, "slow-1", "bad"]) == 2


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
    "arguments", [["segment", "ab"], ["segments"], ["health"], ["stream", "--users", "users.csv", "--out", "out.csv"]]
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
    left = {"place": "release", "description": description, "release": 3, "expire_time": until}
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


def test_a_broken_pipe_is_silent(fake: FakeSegrec) -> None:
    command = f"{sys.executable} -m segrec.cli.main segments --json | true; echo ${{PIPESTATUS[0]}}"
    result = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=WAIT_SECONDS, check=True)
    assert result.stdout in ("141\n", "0\n")
    assert result.stderr == ""
