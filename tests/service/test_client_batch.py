"""What batch users need of `segrec stream`: failed users to ask again, changes, pipes, bounds, no silent overwrite."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import polars as pl
import pyarrow
import pytest
from segrec.cli import main

from tests.support.client_cli import USERS, kill_when_stalled, read, records
from tests.support.fake_segrec import WAIT_SECONDS, FakeSegrec

STREAM = ["stream", "--users", "users.csv", "--out"]


@pytest.mark.parametrize("suffix", [".csv", ".ndjson"])
@pytest.mark.parametrize("flags", [[], ["--recommend"]])
def test_failed_and_degraded_users_are_a_file_to_ask_again(
    fake: FakeSegrec, capsys: pytest.CaptureFixture[str], suffix: str, flags: list[str]
) -> None:
    rows = "\n".join(["user_id,name", "ab,x", "", "bad-1,x", ",x", 'slow "1",x', "cd,x"])
    Path("users.csv").write_text(rows.replace('"1"', "'1'"), encoding="utf-8")
    arguments = [*STREAM, "out.csv", "--failed", f"failed{suffix}", *flags]
    assert main.main(arguments) == 5
    error = capsys.readouterr().err
    assert "Line 4: The user id is bad\nLine 5: The user id is bad\n" in error
    assert f"To ask for these users again: --users failed{suffix}" in error
    failed = [(row["user_id"], int(row["input_row"]), row["code"], row["reason"]) for row in read(f"failed{suffix}")]
    assert failed == [
        ("bad-1", 2, "INVALID_ARGUMENT", "ID_EMPTY"),
        ("", 3, "INVALID_ARGUMENT", "ID_EMPTY"),
        ("slow '1'", 4, "OK", "STALE_EMBEDDING"),
    ]
    assert main.main(["stream", "--users", f"failed{suffix}", "--out", "again.csv"]) == 5
    assert [row["user_id"] for row in read("again.csv")] == ["bad-1", "", "slow '1'"]


def test_the_first_failed_users_are_named_and_the_rest_is_left_to_the_file(
    fake: FakeSegrec, capsys: pytest.CaptureFixture[str]
) -> None:
    pl.DataFrame({"user_id": ["ab", *(f"bad-{n}" for n in range(30))]}).write_parquet("users.parquet")
    assert main.main(["stream", "--users", "users.parquet", "--out", "out.csv"]) == 5
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("Row 2: ")
    assert (lines[19].split(":")[0], lines[20].split(";")[0]) == ("Row 21", "More users fail")
    assert len(lines) == 21


def test_a_resumed_run_writes_each_failed_user_once(fake: FakeSegrec) -> None:
    users = [f"bad-{n}" if n % 40 == 0 else f"user-{n}" for n in range(2000)]
    Path("users.csv").write_text("user_id\n" + "\n".join(users), encoding="utf-8")
    arguments = [*STREAM, "out.csv", "--failed", "failed.csv", "--chunk-size", "50"]
    kill_when_stalled(fake, arguments, 20, signal.SIGKILL)
    with open("failed.csv.part", "ab") as part:
        part.write(b"half a row")
    assert main.main([*arguments[:-4], "--resume"]) == 2  # without --failed it is another run
    assert main.main([*arguments, "--resume"]) == 5
    assert [row["user_id"] for row in read("failed.csv")] == [user for user in users if user.startswith("bad")]
    assert sorted(os.listdir()) == ["failed.csv", "out.csv", "users.csv"]


@pytest.mark.parametrize("existing", ["out.csv", "failed.csv"])
def test_nothing_is_overwritten_without_force(
    fake: FakeSegrec, users_file: str, capsys: pytest.CaptureFixture[str], existing: str
) -> None:
    Path(existing).write_text("precious", encoding="utf-8")
    arguments = [*STREAM, "out.csv", "--failed", "failed.csv"]
    assert main.main(arguments) == 2
    assert f"{existing} is there already: add --force to replace it" in capsys.readouterr().err
    assert Path(existing).read_text(encoding="utf-8") == "precious"
    assert main.main([*arguments, "--force"]) == 0
    assert len(read("out.csv")) == 2000


@pytest.mark.parametrize(
    ("bound", "code"), [("0", 7), ("1", 7), ("2", 0), ("0.4", 7), ("0.5", 0), ("49%", 7), ("50%", 0)]
)
def test_some_users_may_be_degraded(fake: FakeSegrec, bound: str, code: int) -> None:
    Path("users.csv").write_text("user_id\nab\nslow-1\ncold\nslow-2\n", encoding="utf-8")
    assert main.main([*STREAM, "out.csv", "--max-degraded", bound]) == code


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--max-degraded", "2.5"], "neither a number of users nor a share"),
        (["--max-degraded", "many"], "neither a number of users nor a share"),
        (["--max-rate", "0"], "not a number of users a second above 0"),
    ],
)
def test_wrong_bounds_are_usage_errors(
    fake: FakeSegrec, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    with pytest.raises(SystemExit) as caught:
        main.main([*STREAM, "out.csv", *options])
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


def test_a_stream_keeps_to_its_rate(fake: FakeSegrec) -> None:
    Path("users.csv").write_text("user_id\n" + "\n".join(USERS[:50]), encoding="utf-8")
    begin = time.monotonic()
    assert main.main([*STREAM, "out.csv", "--max-rate", "100"]) == 0
    assert time.monotonic() - begin >= 0.49
    assert [row["user_id"] for row in read("out.csv")] == USERS[:50]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--users", "s3://bucket/users.csv", "--out", "out.csv"], "s3://bucket/users.csv is an address"),
        (["--users", "users.csv", "--out", "gs://bucket/out.csv"], "gs://bucket/out.csv is an address"),
        (["--users", "users.csv", "--out", "-"], "--format (csv, ndjson or arrow) belongs to `--out -`"),
        (["--users", "users.csv", "--out", "o.csv", "--format", "csv"], "--format (csv, ndjson or arrow) belongs"),
        (["--users", "users.csv", "--out", "-", "--format", "csv", "--resume"], "--resume needs a file"),
        (["--users", "users.csv", "--out", "o.csv", "--failed", "f.parquet"], "ends with .csv or .ndjson"),
        (["--users", "users.csv", "--out", "o.csv", "--failed", "s3://b/f.csv"], "s3://b/f.csv is an address"),
        (["--users", "users.csv", "--out", "o.csv", "--since", "users.csv"], "lacks the column segment_id"),
        (["--users", "users.csv", "--out", "o.csv", "--since", "x.csv", "--recommend"], "leave out --recommend"),
    ],
)
def test_what_cannot_be_done_is_one_sentence(
    fake: FakeSegrec, users_file: str, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert main.main(["stream", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert os.listdir() == ["users.csv"]


def piped(*arguments: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "segrec.cli.main", "stream", *arguments]
    return subprocess.run(command, input=stdin, capture_output=True, timeout=WAIT_SECONDS, check=False)


def test_standard_output_is_an_arrow_stream(fake: FakeSegrec, users_file: str) -> None:
    arguments = ["--users", users_file, "--out", "-", "--format", "arrow", "--chunk-size", "100"]
    result = piped(*arguments)
    assert result.returncode == 0, result.stderr
    reader = pyarrow.ipc.open_stream(result.stdout)
    batches = list(reader)
    assert len(batches) == 20
    assert (reader.schema.field("segment_id").type, reader.schema.field("degraded").type) == ("int64", "bool")
    frame = pl.read_ipc_stream(result.stdout)
    assert frame["user_id"].to_list() == USERS
    assert frame["input_row"].to_list() == list(range(1, 2001))
    assert frame["release"].unique().to_list() == [1]
    assert b"standard output: read 2,000 = answered 2,000 + failed 0" in result.stderr


def test_standard_output_has_the_items_and_the_failed_file(fake: FakeSegrec) -> None:
    options = ["--recommend", "--top-k", "2", "--failed", "failed.csv", "--json"]
    result = piped("--users", "-", "--out", "-", "--format", "arrow", *options, stdin=b"ab\nbad\ncd\n")
    assert result.returncode == 5, result.stderr
    frame = pl.read_ipc_stream(result.stdout)
    assert frame["item_id"].to_list() == ["i1", "i2", None, "i1", "i2"]
    assert [row["user_id"] for row in read("failed.csv")] == ["bad"]
    [summary] = records(result.stderr.decode().split("\n", 1)[1])
    assert (summary["out"], summary["failed_out"]) == ("standard output", "failed.csv")


@pytest.mark.parametrize("form", ["csv", "ndjson"])
def test_standard_output_is_lines(fake: FakeSegrec, users_file: str, form: str) -> None:
    result = piped("--users", users_file, "--out", "-", "--format", form)
    assert result.returncode == 0, result.stderr
    frame = pl.read_csv(result.stdout) if form == "csv" else pl.read_ndjson(result.stdout)
    assert frame["user_id"].to_list() == USERS


def test_a_reader_that_leaves_ends_the_stream_in_silence(fake: FakeSegrec, users_file: str) -> None:
    stream = f"{sys.executable} -m segrec.cli.main stream --users {users_file} --out - --format csv --chunk-size 10"
    command = ["bash", "-c", f"{stream} | head -n 1; echo ${{PIPESTATUS[0]}}"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=WAIT_SECONDS, check=True)
    assert result.stdout.splitlines()[1] in ("141", "0")
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("suffix", [".csv", ".ndjson", ".parquet"])
def test_only_changes_since_an_earlier_file(fake: FakeSegrec, capsys: pytest.CaptureFixture[str], suffix: str) -> None:
    """The fake's segment of a user is `1 + len(id) % 3`: the earlier file is given other ones by hand."""
    users = ["moved", "same", "new-1", "cold-then", "cold", "slow", "bad"]
    Path("users.csv").write_text("user_id\n" + "\n".join(users), encoding="utf-8")
    assert main.main([*STREAM, "whole.ndjson"]) == 5
    earlier = {row["user_id"]: row for row in read("whole.ndjson")}
    earlier["moved"]["segment_id"], earlier["cold-then"]["segment_id"] = 7, 5
    del earlier["new-1"]
    frame = pl.from_dicts(list(earlier.values()), infer_schema_length=None)
    if suffix == ".parquet":
        frame.write_parquet("earlier.parquet")
    else:
        (frame.write_csv if suffix == ".csv" else frame.write_ndjson)(f"earlier{suffix}")
    capsys.readouterr()
    arguments = [*STREAM, f"changes{suffix}", "--since", f"earlier{suffix}", "--failed", "failed.csv"]
    assert main.main(arguments) == 5
    assert f"3 users changed segment since earlier{suffix}; only these are written" in capsys.readouterr().out
    names = ("user_id", "previous_segment_id", "segment_id")
    rows = [tuple(str(row[name] or "") for name in names) for row in read(f"changes{suffix}")]
    assert rows == [("moved", "7", "3"), ("new-1", "", "3"), ("cold-then", "5", "")]
    assert [row["user_id"] for row in read("failed.csv")] == ["slow", "bad"]
    assert main.main([*STREAM, "next.csv", "--since", f"changes{suffix}"]) == 2
    assert "holds changes only" in capsys.readouterr().err


def test_the_last_line_names_the_releases(
    fake: FakeSegrec, users_file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.main([*STREAM, "out.csv"]) == 0
    assert "answered by release 1 (2,000)" in capsys.readouterr().out
    assert main.main([*STREAM, "out.csv", "--json", "--force"]) == 0
    [summary] = records(capsys.readouterr().out)
    assert summary["releases"] == {"1": 2000}
    assert {row["run_time"] for row in read("out.csv")} == {summary["run_time"]}


@pytest.mark.parametrize(("name", "options"), [("customer", ["--user-column", "customer"]), ("customerId", [])])
def test_the_column_of_ids_is_named_or_recognised(fake: FakeSegrec, name: str, options: list[str]) -> None:
    pl.DataFrame({"n": ["x", "y"], name: ["ab", "cd"]}).write_parquet("users.parquet")
    assert main.main(["stream", "--users", "users.parquet", "--out", "out.ndjson", *options]) == 0
    assert [row["user_id"] for row in read("out.ndjson")] == ["ab", "cd"]


def test_progress_of_a_killed_run_counts_what_is_written(fake: FakeSegrec, users_file: str) -> None:
    kill_when_stalled(fake, [*STREAM, "out.csv", "--chunk-size", "50"], 20, signal.SIGINT)
    progress = json.loads(Path("out.csv.progress").read_text(encoding="utf-8"))
    assert progress["counts"]["releases"] == {"1": progress["counts"]["read"]}
