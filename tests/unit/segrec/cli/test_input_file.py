"""Reading users and events from files, the errors of the client, and text tables."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import grpc
import polars as pl
import pytest
from segrec.cli.input_file import InputFile
from segrec.cli.record import event_of
from segrec.cli.records import table
from segrec.errors import InvalidArgument, NotFound, PermissionDenied, SegrecError, error_of_status
from segrec.v1.common_pb2 import RowStatus


def users_of(path: Path) -> list[str]:
    with InputFile(str(path)) as file:
        return list(file.users())


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("u.csv", b'\xef\xbb\xbfname,user_id\r\nx,a\r\n\r\ny,"b,""1"\r\nz\r\n', ["a", 'b,"1', ""]),
        ("u.csv", b"a\nb\n", ["a", "b"]),
        ("u.txt", b"a,1\n\n b\r\nc", ["a,1", " b", "c"]),
        ("u.txt", b"caf\xe9\n\xe8\x8c\xb6\n", ["caf\udce9", "茶"]),
        ("u.txt", b"", []),
        ("u.ndjson", b'{"user_id": "a"}\n"b"\n\n{"user_id": 7}\n{"id": 1}\n', ["a", "b", "7", ""]),
    ],
)
def test_users_are_read_from_any_kind_of_file(tmp_path: Path, name: str, content: bytes, expected: list[str]) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    assert users_of(path) == expected


def test_users_are_read_from_parquet(tmp_path: Path) -> None:
    path = tmp_path / "u.parquet"
    pl.DataFrame({"user_id": [1, 2, None], "other": [1, 1, 1]}).write_parquet(path)
    assert users_of(path) == ["1", "2", ""]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("u.csv", b"name,id\nx,a\n", "has no column user_id; its columns are name, id"),
        ("u.ndjson", b'{"user_id": "a"}\n{"user_id"\n', "line 2, is not JSON"),
        ("u.parquet", b"PAR1", "is not readable as Parquet"),
    ],
)
def test_the_error_names_the_unreadable_file_and_the_place(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(InvalidArgument, match=message) as caught:
        users_of(path)
    assert str(path) in str(caught.value)


def test_parquet_without_the_column_lists_its_columns(tmp_path: Path) -> None:
    path = tmp_path / "u.parquet"
    pl.DataFrame({"id": ["a"]}).write_parquet(path)
    with pytest.raises(InvalidArgument, match="lacks the column user_id; its columns are id"):
        users_of(path)


def test_events_are_read_from_any_kind_of_file(tmp_path: Path) -> None:
    rows = [{"user_id": "u", "item_id": "i", "action": "buy", "value": 2.5, "timestamp": "2024-01-01 00:00:00"}]
    pl.DataFrame(rows).write_csv(tmp_path / "e.csv")
    pl.DataFrame(rows).with_columns(pl.col("timestamp").str.to_datetime()).write_parquet(tmp_path / "e.parquet")
    (tmp_path / "e.ndjson").write_text(json.dumps(rows[0]), encoding="utf-8")
    for name in ("e.csv", "e.parquet", "e.ndjson"):
        with InputFile(str(tmp_path / name)) as file:
            events = [event_of(row, "") for row in file.rows(("user_id", "item_id", "action"), ("value", "timestamp"))]
        assert [(event.event.value, event.event.timestamp.seconds) for event in events] == [(2.5, 1704067200)]


@pytest.mark.parametrize(
    ("time", "milliseconds"),
    [
        ("1700000000", 1700000000000),
        ("1700000000.25", 1700000000250),
        ("1700000000123", 1700000000123),
        (1700000000, 1700000000000),
        ("2023-11-14T22:13:20Z", 1700000000000),
        ("2023-11-14T23:13:20.5+01:00", 1700000000500),
        ("2023-11-14 22:13:20", 1700000000000),
        (datetime(2023, 11, 14, 22, 13, 20, tzinfo=UTC), 1700000000000),
    ],
)
def test_times_are_iso_or_seconds_or_milliseconds(time: object, milliseconds: int) -> None:
    event = event_of({"user_id": "u", "item_id": "i", "action": "a", "timestamp": time}, "")
    assert event.event.timestamp.ToMilliseconds() == milliseconds
    assert event.event.event_id == ""


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"user_id": ""}, "user_id is missing"),
        ({"item_id": None}, "item_id is missing"),
        ({"action": "\udce9"}, "action is not valid UTF-8"),
        ({"value": "many"}, "value 'many' is not a number"),
        ({"timestamp": "yesterday"}, "timestamp 'yesterday' is neither"),
        ({"timestamp": "nan"}, "timestamp 'nan' is neither"),
        ({"timestamp": 1e30}, "timestamp '1e\\+30' is neither"),
    ],
)
def test_a_bad_row_says_what_is_wrong(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        event_of({"user_id": "u", "item_id": "i", "action": "a"} | change, "")


def test_the_id_of_an_event_without_time_depends_on_its_row_alone() -> None:
    row = {"user_id": "u", "item_id": "i", "action": "a"}
    ids = [event_of(row, place).event.event_id for place in ("f\0" + "1", "f\0" + "2", "f\0" + "1")]
    assert ids[0] == ids[2] != ids[1]


def test_a_status_becomes_the_error_of_its_code() -> None:
    error = error_of_status(RowStatus(code=5, reason="NO_SUCH", message="No such thing", field="release"))
    assert isinstance(error, NotFound)
    assert (str(error), error.reason, error.field) == ("No such thing", "NO_SUCH", "release")
    assert isinstance(error_of_status(RowStatus(code=16)), PermissionDenied)
    unknown = error_of_status(RowStatus(code=99))
    assert (type(unknown), unknown.code) == (SegrecError, grpc.StatusCode.UNKNOWN)


def test_tables_align_wide_characters_and_numbers() -> None:
    text = table(("name", "count"), [("茶叶", 1234), ("a\tb", None)])
    assert text.splitlines() == ["name  count", "茶叶  1,234", "a\N{REPLACEMENT CHARACTER}b"]
    assert table(("name", "count"), []) == "name  count"
