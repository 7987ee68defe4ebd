"""Logs as people's tools write them: every row is read as it was meant, or the log is refused with the row."""

from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from tests.support.gz import gz
from tests.support.odd_logs import HEADER, S, column, log, ndjson, read
from training.data.reading.log_files import LogFiles
from training.errors import LogError

# Rows and quotes


@pytest.mark.parametrize("rows", [7, 30_000])
def test_a_quote_inside_a_field_is_a_character(tmp_path: Path, rows: int) -> None:
    titles = ["plain"] * rows
    titles[1], titles[rows - 2] = '12" vinyl', '7" single'
    text = HEADER + "".join(f"u{row % 3},i{row},view,{S + row},{title}\n" for row, title in enumerate(titles))
    found = log(tmp_path, text)
    assert found.row_count == len(found.events) == rows
    assert column(found, "item_id") == [f"i{row}" for row in range(rows)]


@pytest.mark.parametrize("title", ['12" vinyl', 'a "b" c', r"5\" disc", '"closed" and more', '""'])
def test_one_stray_quote(tmp_path: Path, title: str) -> None:
    found = log(tmp_path, f"{HEADER}u1,i1,view,{S},{title}\nu2,i2,view,{S},x\n")
    assert column(found, "user_id") == ["u1", "u2"]


def test_inch_marks_in_ids(tmp_path: Path) -> None:
    found = log(tmp_path, 'user_id\titem_id\nu1\t12" vinyl\nu2\t7"\n', "log.tsv")
    assert column(found, "item_id") == ['12" vinyl', '7"']


def test_an_unclosed_quote_is_refused_with_its_line(tmp_path: Path) -> None:
    text = f'{HEADER}u,i,view,{S},x\nu,i,view,{S},"open\nu,i,view,{S},x\nu,i,view,{S},"open\nu,i,view,{S},x\n'
    with pytest.raises(LogError, match=r"log\.csv, line 3: a field begins with a double quote that is never closed"):
        log(tmp_path, text)


def test_quoted_line_breaks_and_doubled_quotes(tmp_path: Path) -> None:
    rows = "".join(f'u{row},i{row},view,{S + row},"a ""b""\nc, d"\n' for row in range(5_000))
    found = log(tmp_path, HEADER + rows)
    assert found.row_count == 5_000
    assert column(found, "item_id") == [f"i{row}" for row in range(5_000)]


def test_an_unquoted_delimiter_before_the_columns_that_are_read_is_refused(tmp_path: Path) -> None:
    """The columns behind it would be another's; a long row is refused whichever columns are read."""
    text = f"title,user_id,item_id,timestamp\nfine,u,i,{S}\na, b,u,i,{S}\nshort\n"
    with pytest.raises(LogError, match=r"line 3: the row has 5 fields, but there are 4 columns; put fields .* quotes"):
        log(tmp_path, text)


def test_short_and_blank_rows(tmp_path: Path) -> None:
    found = log(tmp_path, f"user_id,item_id,timestamp\nu1,i1,{S}\n\nu2,i2\nu3,i3,{S}\n\n")
    assert column(found, "user_id") == ["u1", "u2", "u3"]
    assert column(found, "timestamp") == [S * 1000, None, S * 1000]
    assert found.row_count == 3


@pytest.mark.parametrize(
    ("content", "name"),
    [
        (b"user_id,item_id\ru1,i1\ru2,i2\r", "log.csv"),
        (b"\xef\xbb\xbfsep=;\r\nuser_id;item_id\r\nu1;i1\r\nu2;i2\r\n", "log.csv"),
        ("user_id\titem_id\r\nu1\ti1\r\nu2\ti2\r\n".encode("utf-16"), "log.csv"),
        (b'"user_id"|"item_id"\nu1|i1\nu2|i2\n', "log.txt"),
        (b"user_id;item_id\nu1;i1\nu2;i2\n", "log.dat"),
        (gz(b"user_id,item_id\nu1,i1\n") + gz(b"u2,i2\n"), "log.csv.gz"),
        (gz("\ufeffuser_id,item_id\nu1,i1\nu2,i2".encode("utf-16")), "log.csv.gz"),
        (b'\xef\xbb\xbf{"user_id":"u1","item_id":"i1"}\r\n{"user_id":"u2","item_id":"i2"}\r\n', "log.ndjson"),
        (b'{"user_id":"u1","item_id":"i1"}\n\n{"item_id":"i2","user_id":"u2"}\n', "log.json"),
        (gz(b'{"user_id":"u1","item_id":"i1"}\n{"user_id":"u2","item_id":"i2"}\n'), "log.jsonl.gz"),
    ],
)
def test_texts_of_every_kind(tmp_path: Path, content: bytes, name: str) -> None:
    found = log(tmp_path, content, name)
    assert column(found, "user_id") == ["u1", "u2"]
    assert column(found, "item_id") == ["i1", "i2"]
    assert found.row_count == 2


@pytest.mark.parametrize(
    ("content", "name", "message"),
    [
        (b"user_id,item_id\n" + b"u,i\n" * 300_000 + "u,1£\n".encode("cp1252"), "log.csv", r"line 300,002: .*iconv"),
        (gz(b"user_id,item_id\nu,i\n" * 99)[:-4], "log.csv.gz", r"log\.csv\.gz.*cut off or damaged"),
        (b"PAR1....", "log.csv", r"is a Parquet file: name it \.parquet"),
        (b'{"user_id":"u","item_id":"i"}\n{"user_id":"u"\n{}\n', "log.ndjson", r"log\.ndjson, line 2 is not JSON"),
        (
            b'{"user_id":1,"item_id":2}\n{"user_id":1,"item_id":2} {}\n',
            "log.ndjson",
            "line 2 holds more than one value",
        ),
        (b'[{"user_id":1,"item_id":2}]\n', "log.json", r"line 1: this is a JSON array.*jq"),
        (b'{"user_id":1,"item_id":2}\nnull\n', "log.ndjson", "line 2 is not an object"),
        (b"user_id,item_id,item_id\nu,i,j\n", "log.csv", "more than one column `item_id`"),
        (b"943,21,2024-01-31,x\n944,22,2024-01-31,y\n", "log.csv", r"header = false, and give positions"),
    ],
)
def test_files_that_are_refused(tmp_path: Path, content: bytes, name: str, message: str) -> None:
    with pytest.raises(LogError, match=message):
        log(tmp_path, content, name)


def test_the_reader_must_give_every_row_that_the_bytes_have(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.data.reading.tables.count_rows", lambda *_: (4, False))
    with pytest.raises(LogError, match=r"holds 3 rows, but 2 were read: a fault of the reader"):
        log(tmp_path, "user_id,item_id\na,b\nc,d\n")


# NDJSON


def test_keys_that_come_late(tmp_path: Path) -> None:
    rows = [{"user_id": row % 60, "item_id": f"i{row}", "timestamp": S + row} for row in range(12_000)]
    found = log(
        tmp_path,
        ndjson(
            *(row | {"value": 9.99} if row["user_id"] == 59 else row for row in rows[:-1]), rows[-1] | {"action": "buy"}
        ),
        "log.ndjson",
    )
    assert column(found, "value").count(9.99) == 200 - 1
    assert column(found, "action")[-2:] == [None, "buy"]


def test_types_that_change(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"user_id": row, "item_id": 1.5, "value": None, "timestamp": S} for row in range(11_000)
    ]
    rows[-2:] = [
        {"user_id": "a", "item_id": 17850.0, "value": 5, "timestamp": str(S)},
        {"user_id": 42.0, "item_id": 2**53 + 1, "value": "5.75", "timestamp": "2024-01-31T10:00Z"},
    ]
    found = log(tmp_path, ndjson(*rows), "log.ndjson")
    assert column(found, "user_id")[-3:] == ["10997", "a", "42"]
    assert column(found, "item_id")[-3:] == ["1.5", "17850", str(2**53 + 1)]
    assert column(found, "value")[-3:] == [None, 5.0, 5.75]
    assert column(found, "timestamp")[-3:] == [S * 1000, S * 1000, 1_706_695_200_000]


@pytest.mark.parametrize(
    ("value", "why"),
    [(True, "is true, not an id"), ({"a": 1}, "is an object, not an id"), (["x"], "is a list, not an id")],
)
def test_ids_that_are_none_among_others(tmp_path: Path, value: Any, why: str) -> None:
    rows: list[dict[str, Any]] = [
        {"user_id": 42.0, "item_id": "i"},
        {"user_id": "true", "item_id": "i"},
        {"user_id": value, "item_id": "i"},
    ]
    with pytest.raises(LogError, match=rf"log\.ndjson, line 3: the column `user_id` \(user_id\) {why}"):
        log(tmp_path, ndjson(*rows), "log.ndjson")
    assert column(log(tmp_path, ndjson(*rows[:2]), "log.ndjson"), "user_id") == ["42", "true"]


def test_true_and_false_are_values_but_no_times(tmp_path: Path) -> None:
    rows = [{"user_id": "u", "item_id": "i", "value": value, "timestamp": S} for value in (5.5, True, False, None)]
    assert column(log(tmp_path, ndjson(*rows), "log.ndjson"), "value") == [5.5, 1.0, 0.0, None]
    with pytest.raises(LogError, match=r"row 5 `true`"):
        log(tmp_path, ndjson(*rows, rows[0] | {"timestamp": True}), "log.ndjson")


def test_a_date_and_a_time_of_ndjson_in_partitions(tmp_path: Path) -> None:
    (tmp_path / "log" / "dt=2024-01-31").mkdir(parents=True)
    rows: list[dict[str, Any]] = [{"user_id": "true", "item_id": 1, "at": "20:00:30"}, {"user_id": 2, "item_id": 2}]
    (tmp_path / "log" / "dt=2024-01-31" / "part.ndjson").write_text(ndjson(*rows))
    assert column(read(tmp_path / "log", timestamp=["dt", "at"]), "timestamp") == [1_706_731_230_000, None]


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([True], "`user_id` .*true and false"),
        ([[1]], "`user_id` .*lists"),
        ([{"a": 1}], "`user_id` .*objects"),
        ([date(2024, 1, 1)], "`user_id` .*times"),
        ([b"\xff\xfe\x00\x01"], r"`user_id` \(user_id\) .*unreadable in 1 row .*save the column as text"),
        ([1.0, 1e20], r"`user_id` \(user_id\) .*row 2 `1e.?20`.*save the column as text or as integers"),
    ],
)
def test_columns_without_ids(tmp_path: Path, ids: list[Any], message: str) -> None:
    path = tmp_path / "log.parquet"
    pl.DataFrame({"user_id": ids, "item_id": ["i"] * len(ids)}).write_parquet(path)
    with pytest.raises(LogError, match=message):
        read(path)


# Paths


@pytest.mark.parametrize("name", ["events[1]", "what?", "log*", "[red]log[", "日志[1]", "100%20#"])
@pytest.mark.parametrize("suffix", ["csv", "ndjson", "parquet", "csv.gz"])
def test_a_path_is_a_path(tmp_path: Path, name: str, suffix: str) -> None:
    for stem, user in ((name, "good"), ("events1", "wrong"), ("whatx", "wrong"), ("logs", "wrong"), ("log", "wrong")):
        frame, path = pl.DataFrame({"user_id": [user], "item_id": ["i"]}), tmp_path / f"{stem}.{suffix}"
        if suffix == "parquet":
            frame.write_parquet(path)
        else:
            text = frame.write_csv() if suffix.startswith("csv") else frame.write_ndjson()
            path.write_bytes(gz(text.encode()) if suffix.endswith("gz") else text.encode())
    assert column(read(tmp_path / f"{name}.{suffix}"), "user_id") == ["good"]


def test_a_pattern_a_directory_and_a_list(tmp_path: Path) -> None:
    parts = tmp_path / "parts"
    parts.mkdir()
    for number in (2, 0, 1):
        pl.DataFrame({"user_id": [f"u{number}"] * 2, "item_id": ["a", "b"]}).write_parquet(
            parts / f"part-{number}.parquet"
        )
    (parts / "_SUCCESS").touch()
    (parts / ".part-0.parquet.crc").write_bytes(b"x")
    expected = ["u0", "u0", "u1", "u1", "u2", "u2"]
    assert column(read(parts), "user_id") == expected
    found = read(parts / "part-*.parquet")
    assert column(found, "user_id") == expected
    assert [(part.file, part.rows) for part in found.parts] == [(str(parts / f"part-{n}.parquet"), 2) for n in range(3)]
    both = LogFiles.of([parts / "part-2.parquet", parts / "part-0.parquet"])
    assert column(read(both), "user_id") == ["u2", "u2", "u0", "u0"]
    assert str(both) == f"{parts / 'part-2.parquet'} and 1 more file"
    with pytest.raises(LogError, match=r"There is no file .*part-9\*, and none of this pattern"):
        read(parts / "part-9*")
    (tmp_path / "empty").mkdir()
    with pytest.raises(LogError, match="has no files"):
        read(tmp_path / "empty")


def test_partitions_are_columns(tmp_path: Path) -> None:
    for day in ("2024-01-31", "2024-02-01"):
        directory = tmp_path / "log" / f"dt={day}" / "user_id=99"
        directory.mkdir(parents=True)
        pl.DataFrame({"user_id": [7], "item_id": [1]}).write_parquet(directory / "part-0.snappy.parquet")
    found = read(tmp_path / "log", timestamp="dt")
    assert column(found, "user_id") == ["7", "7"]
    assert column(found, "timestamp") == [1_706_659_200_000, 1_706_745_600_000]


def test_files_of_one_log_may_differ_in_form_but_not_in_roles(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(f"userId;itemId;ts\n17.0;x;{S}\n")
    pl.DataFrame({"ts": [S + 1], "itemId": ["y"], "userId": [17]}).write_parquet(tmp_path / "b.parquet")
    (tmp_path / "c.ndjson").write_text(ndjson({"userId": 17, "itemId": "z", "ts": "2024-01-31T10:00:00Z"}))
    found = read(LogFiles.of([tmp_path / "a.csv", tmp_path / "b.parquet", tmp_path / "c.ndjson"]))
    assert column(found, "user_id") == ["17"] * 3
    assert column(found, "timestamp") == [S * 1000, S * 1000 + 1000, 1_706_695_200_000]
    (tmp_path / "d.csv").write_text("userId,itemId\n17,x\n")
    with pytest.raises(LogError, match=r"a\.csv has a column for the timestamp, `ts`, and .*d\.csv has none"):
        read(LogFiles.of([tmp_path / "a.csv", tmp_path / "d.csv"]))


def test_a_bad_row_is_named_with_its_file(tmp_path: Path) -> None:
    for name, time in (("a", S), ("b", "soon")):
        (tmp_path / f"{name}.csv").write_text(f"user_id,item_id,timestamp\nu,i,{S}\nu,i,{time}\n")
    with pytest.raises(LogError, match=r"row 2 of .*b\.csv `soon`"):
        read(tmp_path / "[ab].csv")


# Ids


def test_words_for_nothing_are_missing(tmp_path: Path) -> None:
    words = ["NULL", "nan", r"\N", "None", "<NA>", "-", " n/a ", "#N/A", "undefined", ""]
    text = HEADER + "".join(f"{word},{word},{word},{S},x\n" for word in words) + f"u,i,view,{S},x\n"
    found = log(tmp_path, text)
    for name in ("user_id", "item_id", "action"):
        assert column(found, name) == [None] * len(words) + [{"user_id": "u", "item_id": "i", "action": "view"}[name]]
    assert any(note.startswith("as user_id, ") and "`NULL` (1), `None` (1)" in note for note in found.notes)
    kept = log(tmp_path, text, missing_words=["nan"])
    assert column(kept, "user_id")[:4] == ["NULL", None, r"\N", "None"]
    assert column(kept, "user_id")[-2] is None
    assert column(log(tmp_path, text, missing_words=[]), "user_id")[1] == "nan"


def test_one_id_has_one_spelling(tmp_path: Path) -> None:
    ids = ["17850.0", " 17850 ", "17850.00", "007.0", "007", "1.23457E+11", "0.0", "1.50"]
    text = "user_id,item_id\n" + "".join(f"{user},x\n" for user in ids)
    assert column(log(tmp_path, text), "user_id") == ["17850"] * 3 + ["007.0", "007", "1.23457E+11", "0", "1.50"]
    path = tmp_path / "log.parquet"
    pl.DataFrame({"user_id": [Decimal("17850.00")], "item_id": [17850.0]}).write_parquet(path)
    assert (column(read(path), "user_id"), column(read(path), "item_id")) == (["17850"], ["17850"])


def test_a_log_without_a_header(tmp_path: Path) -> None:
    text = f"943,21,7,view,{S}\n944,22,7,buy,{S}\n"
    found = log(tmp_path, text, header=False, user_id=1, item_id=2, action=4, timestamp=5)
    assert column(found, "user_id") == ["943", "944"]
    assert column(found, "action") == ["view", "buy"]
    assert found.row_count == 2
    assert column(log(tmp_path, f'"9""43",{text[3:]}', header=False, user_id=1, item_id=2), "user_id") == [
        '9"43',
        "944",
    ]
    with pytest.raises(LogError, match="no column `9`"):
        log(tmp_path, text, header=False, user_id=1, item_id=9)
    with pytest.raises(LogError, match="is NDJSON, which names its columns"):
        log(tmp_path, "{}\n", "log.ndjson", header=False, user_id=1, item_id=2)


def test_roles_can_be_switched_off(tmp_path: Path) -> None:
    found = log(tmp_path, f"{HEADER}u,i,view,{S},x\n", action=False, timestamp=False)
    assert column(found, "action") == ["event"]
    assert found.ordered_by_row
