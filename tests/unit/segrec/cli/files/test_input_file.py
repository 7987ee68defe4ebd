"""Reading users and events from files, the errors of the client, and text tables."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import grpc
import polars as pl
import pytest
from google.rpc.status_pb2 import Status
from segrec.cli.files.input_file import InputFile, InputRow
from segrec.cli.files.reading_options import Rules
from segrec.cli.record import OPTIONAL, REQUIRED, event_of
from segrec.cli.records import table
from segrec.errors import InvalidArgument, NotFound, PermissionDenied, SegrecError, error_of_status, status_of
from segrec.reading.times import zone_of
from segrec.reading.words import missing_words

from tests.support.gz import gz

DEFAULT = Rules()


def users_of(path: Path, rules: Rules | None = None) -> list[str]:
    with InputFile(str(path), rules) as file:
        return [user.user_id for user in file.users()]


def rows_of(path: Path, rules: Rules | None = None) -> list[InputRow]:
    with InputFile(str(path), rules) as file:
        return list(file.rows(REQUIRED, OPTIONAL))


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("u.csv", b'\xef\xbb\xbfname,user_id\r\nx,a\r\n\r\ny,"b,""1"\r\nz\r\n', ["a", 'b,"1', ""]),
        ("u.csv", b"user_id;name\nuser1;x\nuser2;x\n", ["user1", "user2"]),
        ("u.tsv", b"name\tUser ID\nx\tuser1\n", ["user1"]),
        ("u.csv", "用户ID|名称\n甲|x\n".encode("gb18030"), ["甲"]),
        ("u.csv", "userId\nuser1\n".encode("utf-16"), ["user1"]),
        ("u.txt", b"userId\nuser1\n", ["user1"]),
        ("u.txt", b'"User_ID"\n"user1"\n', ["user1"]),
        ("u.csv.gz", gz(b"user_id,name\n17850.0,x\n"), ["17850"]),
        ("u.csv", b"sep=;\nuser_id;name\nuser1;x\n", ["user1"]),
        ("u.csv", b"a\nb\n", ["a", "b"]),
        ("u.csv", b'"a"\r"b""1"\r', ["a", 'b"1']),
        ("u.csv", b"", []),
        ("u.txt", b"a,1\n\n b \r\nc", ["a,1", "b", "c"]),
        ("u.txt", b'"a,1"\n"b""1"\n"\n', ["a,1", 'b"1', '"']),
        ("u.txt", b"a\nNULL\n\\N\n17850.0\n", ["a", "", "", "17850"]),
        ("u.txt", b"", []),
        ("u", b"a\n", ["a"]),
        ("u.ndjson", b'{"user_id": "a"}\n"b"\n\n{"user_id": 7}\n{"id": 1}\n', ["a", "b", "7", ""]),
        (
            "u.ndjson",
            b'\xef\xbb\xbf{"x": 1}\n{"userId": 42.0}\n{"userId": true}\n{"userId": null}\n',
            ["", "42", "", ""],
        ),
        ("u.jsonl.gz", gz(b'"a"\n'), ["a"]),
    ],
)
def test_users_are_read_from_any_kind_of_file(tmp_path: Path, name: str, content: bytes, expected: list[str]) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    assert users_of(path) == expected


def test_users_are_read_from_parquet(tmp_path: Path) -> None:
    path = tmp_path / "u[1].parquet"
    pl.DataFrame({"userId": [1.0, 2.0, None], "other": [1, 1, 1]}).write_parquet(path)
    pl.DataFrame({"userId": ["another"]}).write_parquet(tmp_path / "u1.parquet")
    assert users_of(path) == ["1", "2", ""]


def test_options_say_the_column_and_which_words_are_real(tmp_path: Path) -> None:
    path = tmp_path / "u.csv"
    path.write_text("key,name\nNone,x\nguest,y\n", encoding="utf-8")
    rules = Rules(columns={"user_id": "key"}, words=missing_words(["guest"]))
    assert users_of(path, rules) == ["None", ""]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "u.csv",
            b"name,id\nx,a\n",
            "lacks a column for the user_id; its columns are `name`, `id`. Name it: `--column",
        ),
        ("u.csv", b"name;id\nx;a\n", "its columns are `name`, `id`"),
        ("u.txt", b"name\tid\nx\ta\n", "its columns are `name`, `id`"),
        ("u.csv", b"user,customer\nx,a\n", "several columns that could be the user_id: `user` and `customer`"),
        ("u.csv", b"a\nb,c\n", "line 2: the row has 2 fields"),
        ("u.csv", b'user_id,name\na,x\nb,"x\nc,y\n', "line 3: a field begins with a double quote"),
        ("u.txt", b'["a", "b"]', "looks like JSON: .* name it .ndjson"),
        ("u.csv", b"user_id\ncaf\xe9\n", "line 2: the text is neither UTF-8 nor GB18030"),
        ("u.ndjson", b'{"user_id": "a"}\n{"user_id"\n', "line 2 is not JSON"),
        ("u.ndjson", b'{"id": "a"}\n', "lacks a column for the user_id; its columns are `id`"),
        ("u.ndjson", b'["a", "b"]\n', "line 1: this is a JSON array"),
        ("u.parquet", b"PAR1", "is not readable as Parquet"),
        ("u.parquet", b"PAR1" * 9, "is not readable as Parquet"),
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


@pytest.mark.parametrize("name", ["u.parquet", "u.csv", "u.ndjson"])
def test_a_directory_and_a_missing_file_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(InvalidArgument, match=name):
        users_of(tmp_path / name)
    (tmp_path / name).mkdir()
    with pytest.raises(InvalidArgument, match=f"{name} is a directory: give one file"):
        users_of(tmp_path / name)


def test_parquet_without_the_column_lists_its_columns(tmp_path: Path) -> None:
    path = tmp_path / "u.parquet"
    pl.DataFrame({"id": ["a"]}).write_parquet(path)
    with pytest.raises(InvalidArgument, match="lacks a column for the user_id; its columns are `id`"):
        users_of(path)


def test_events_are_read_from_any_kind_of_file(tmp_path: Path) -> None:
    rows = [{"userId": "u", "商品ID": "i", "action": "buy", "price": 2.5, "time": "2024-01-01 00:00:00"}]
    pl.DataFrame(rows).write_csv(tmp_path / "e.csv")
    pl.DataFrame(rows).with_columns(pl.col("time").str.to_datetime()).write_parquet(tmp_path / "e.parquet")
    (tmp_path / "e.ndjson").write_text(json.dumps(rows[0]), encoding="utf-8")
    for name in ("e.csv", "e.parquet", "e.ndjson"):
        [row] = rows_of(tmp_path / name)
        event = event_of(row.values, "", DEFAULT)
        assert (event.user_id, event.event.item_id, event.event.action) == ("u", "i", "buy")
        assert (event.event.value, event.event.timestamp.seconds) == (2.5, 1704067200)


def test_rows_say_where_they_are(tmp_path: Path) -> None:
    (tmp_path / "e.csv").write_text('user_id,item_id,action\n\nu,"i\n1",a\nv,i,a\n', encoding="utf-8")
    assert [(row.number, row.place) for row in rows_of(tmp_path / "e.csv")] == [(1, "Line 3"), (2, "Line 5")]
    pl.DataFrame({"user_id": ["u", "v"], "item_id": [1, 2]}).write_parquet(tmp_path / "e.parquet")
    assert [row.place for row in rows_of(tmp_path / "e.parquet")] == ["Row 1", "Row 2"]


def test_a_bad_last_line_is_refused_before_the_first_row_is_given(tmp_path: Path) -> None:
    for name, content in (("e.csv", "user_id,item_id\nu,i\nu,i,i\n"), ("e.ndjson", '{"user_id":1,"item_id":1}\n{')):
        (tmp_path / name).write_text(content, encoding="utf-8")
        with InputFile(str(tmp_path / name)) as file, pytest.raises(InvalidArgument, match="line"):
            next(file.rows(REQUIRED, OPTIONAL))


def test_keys_of_late_lines_count(tmp_path: Path) -> None:
    path = tmp_path / "e.ndjson"
    late = [{"user_id": "u", "item_id": "i"}] * 10_500 + [{"user_id": "u", "item_id": "i", "value": 5}]
    path.write_text("\n".join(map(json.dumps, late)), encoding="utf-8")
    assert rows_of(path)[-1].values["value"] == 5


@pytest.mark.parametrize(
    ("header", "rows", "asks"),
    [
        ("t_dat", ["2018-09-21"], True),
        ("seen", ["2018-09-21 10:00:00", "", "2018-09-22"], True),
        ("logged", ["1700000000", "1700000001"], True),
        ("flag", ["1700000000", "1700000000"], False),
        ("phone", ["13800138000", "13800138001"], False),
        ("update_count", ["7", "8"], False),
        ("note", ["NULL", "see 2018-09-21"], False),
    ],
)
def test_a_column_of_times_by_another_name_is_asked_about(
    tmp_path: Path, header: str, rows: list[str], asks: bool
) -> None:
    path = tmp_path / "e.csv"
    path.write_text("\n".join([f"user_id,item_id,{header}", *(f"u,i,{row}" for row in rows)]), encoding="utf-8")
    if asks:
        with pytest.raises(InvalidArgument, match=f"`{header}` holds times: give `--column timestamp={header}`"):
            rows_of(path)
    else:
        rows_of(path)
    assert "timestamp" not in rows_of(path, Rules(columns={"timestamp": False}))[0].values
    assert rows_of(path, Rules(columns={"timestamp": header}))[0].values["timestamp"] == rows[0]


@pytest.mark.parametrize(
    ("time", "milliseconds"),
    [
        ("1700000000", 1700000000000),
        ("1700000000.25", 1700000000250),
        ("1700000000123", 1700000000123),
        (1700000000, 1700000000000),
        ("2023-11-14T22:13:20Z", 1700000000000),
        ("2023-11-14T22:13:20.123900Z", 1700000000123),
        ("20240131", 1706659200000),
        (datetime(2023, 11, 14, 22, 13, 20, 123900, tzinfo=UTC), 1700000000123),
    ],
)
def test_times_are_read_by_the_common_rule(time: object, milliseconds: int) -> None:
    event = event_of({"user_id": "u", "item_id": "i", "action": "a", "timestamp": time}, "", DEFAULT)
    assert event.event.timestamp.ToMilliseconds() == milliseconds
    assert event.event.event_id == ""


def test_options_say_how_times_are_written() -> None:
    rules = Rules(timestamp_format="%d.%m.%Y %H:%M", zone=zone_of("Asia/Shanghai"))
    row = {"user_id": "u", "item_id": "i", "action": "a", "timestamp": "15.11.2023 06:13"}
    assert event_of(row, "", rules).event.timestamp.ToMilliseconds() == 1699999980000


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"user_id": ""}, "user_id is missing"),
        ({"item_id": None}, "item_id is missing"),
        ({"item_id": "NULL"}, "item_id is missing"),
        ({"action": "nan"}, "action is missing"),
        ({"user_id": True}, "user_id is true, not an id"),
        ({"user_id": {"a": 1}}, "user_id is an object, not an id"),
        ({"item_id": ["x"]}, "item_id is a list, not an id"),
        ({"action": "\udce9"}, "action is not valid UTF-8"),
        ({"value": "many"}, "value 'many' is not a number"),
        ({"timestamp": "yesterday"}, "timestamp 'yesterday' is no time"),
        ({"timestamp": 3}, "timestamp '3' is too small a number for a time"),
        ({"timestamp": 1e30}, "timestamp '1e\\+30' lies after the year 2200"),
    ],
)
def test_a_bad_row_says_what_is_wrong(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        event_of({"user_id": "u", "item_id": "i", "action": "a"} | change, "", DEFAULT)


def test_ids_and_actions_are_trimmed_and_a_log_without_actions_has_events() -> None:
    event = event_of({"user_id": " re1 ", "item_id": 17850.0, "action": " view "}, "", DEFAULT)
    assert (event.user_id, event.event.item_id, event.event.action) == ("re1", "17850", "view")
    assert event_of({"user_id": "u", "item_id": "i"}, "", DEFAULT).event.action == "event"


def test_the_id_of_an_event_without_time_depends_on_its_row_alone() -> None:
    row = {"user_id": "u", "item_id": "i", "action": "a", "timestamp": "NULL"}
    ids = [event_of(row, place, DEFAULT).event.event_id for place in ("f\0" + "1", "f\0" + "2", "f\0" + "1")]
    assert ids[0] == ids[2] != ids[1]


def test_a_status_becomes_the_error_of_its_code() -> None:
    error = error_of_status(status_of(NotFound("No such thing", reason="NO_SUCH", field="release", retry_seconds=1.5)))
    assert isinstance(error, NotFound)
    assert (str(error), error.reason, error.field) == ("No such thing", "NO_SUCH", "release")
    assert error.retry_seconds == 1.5
    assert isinstance(error_of_status(Status(code=16)), PermissionDenied)
    unknown = error_of_status(Status(code=99))
    assert (type(unknown), unknown.code) == (SegrecError, grpc.StatusCode.UNKNOWN)


def test_tables_align_wide_characters_and_numbers() -> None:
    lines = table(("name", "count"), [("茶叶", 1234), ("a\tb", None)])
    assert lines == ["name  count", "茶叶  1,234", r"a\tb"]
    assert table(("name", "count"), []) == ["name  count"]
