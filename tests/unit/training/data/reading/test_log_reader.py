"""Reading logs: formats, encodings, times, and what is wrong with a file."""

import gzip
from datetime import UTC, date, datetime, timedelta, timezone
from pathlib import Path

import polars as pl
import pytest

from tests.support.logs import planted_log
from training.config import Columns
from training.data.reading.log_files import LogFiles
from training.data.reading.log_reader import RawLog, read_raw_log
from training.errors import LogError

CHINESE = "用户ID,商品ID,行为类型,行为值\n小明,手机,浏览,\n小明,手机,购买,1999.5\n小红,书 ,搜索,1\n"


def read(path: Path, columns: Columns | None = None) -> RawLog:
    return read_raw_log(path, columns or Columns(), path.parent / "scratch")


def written(tmp_path: Path, text: str, name: str = "log.csv") -> Path:
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return path


def times_of(tmp_path: Path, *times: object) -> tuple[list[int | None], bool]:
    """Milliseconds that a log with these times has, and whether they are a clock."""
    path = tmp_path / "log.parquet"
    pl.DataFrame({"user_id": ["u"] * len(times), "item_id": ["i"] * len(times), "time": times}).write_parquet(path)
    log = read(path)
    return log.events["timestamp"].to_list(), log.has_clock


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "gb18030", "utf-16"])
def test_the_chinese_log_in_any_encoding(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "log.csv"
    path.write_bytes(CHINESE.encode(encoding))
    log = read(path)
    assert log.events["user_id"].to_list() == ["小明", "小明", "小红"]
    assert log.events["item_id"].to_list() == ["手机", "手机", "书"]
    assert log.events["action"].to_list() == ["浏览", "购买", "搜索"]
    assert log.events["value"].to_list() == [None, 1999.5, 1.0]
    assert log.events["timestamp"].to_list() == [0, 1, 2]
    assert (log.has_clock, log.ordered_by_row) == (False, True)


def test_another_encoding_is_an_error_with_a_remedy(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_bytes("user_id,item_id\nJosé,café au lait\nÉva,thé\n".encode("latin-1"))
    with pytest.raises(LogError, match=r"neither UTF-8 nor GB18030.*iconv"):
        read(path)


@pytest.mark.parametrize("suffix", ["csv", "tsv", "csv.gz", "parquet", "jsonl", "ndjson", "ndjson.gz", "CSV"])
def test_every_format_gives_the_same_events(tmp_path: Path, suffix: str) -> None:
    events, _ = planted_log(users=6, events_per_user=5)
    plain = tmp_path / f"log.{suffix.removesuffix('.gz')}"
    if suffix.lower().startswith("csv"):
        events.write_csv(plain)
    elif suffix == "tsv":
        events.write_csv(plain, separator="\t")
    elif suffix == "parquet":
        events.write_parquet(plain)
    else:
        events.write_ndjson(plain)
    path = tmp_path / f"log.{suffix}"
    if suffix.endswith(".gz"):
        path.write_bytes(gzip.compress(plain.read_bytes()))
    log = read(path)
    ids = pl.col("user_id", "item_id", "action").cast(pl.String)
    assert log.events.drop("row").with_columns(ids).equals(events)
    assert log.row_count == len(events)
    assert log.has_clock


def test_a_semicolon_does_for_a_comma(tmp_path: Path) -> None:
    assert read(written(tmp_path, "user;item\na;x\nb;y\n")).events["item_id"].to_list() == ["x", "y"]


def test_whole_floats_are_ids_without_a_point(tmp_path: Path) -> None:
    path = tmp_path / "log.parquet"
    pl.DataFrame({"user_id": [1.0, None, 2.5], "item_id": [7, 8, 9]}).write_parquet(path)
    events = read(path).events
    assert events["user_id"].to_list() == ["1", None, "2.5"]
    assert events["item_id"].to_list() == ["7", "8", "9"]


def test_ids_are_trimmed_and_empty_ones_missing(tmp_path: Path) -> None:
    events = read(written(tmp_path, 'user,item\n" a ",x\na,"  "\n"",x \n')).events
    assert events["user_id"].to_list() == ["a", "a", None]
    assert events["item_id"].to_list() == ["x", None, "x"]


NOON = datetime(2024, 1, 31, 12, tzinfo=UTC)
NOON_S = int(NOON.timestamp())


@pytest.mark.parametrize(
    "time",
    [
        NOON_S,
        NOON_S * 1_000,
        NOON_S * 1_000_000,
        NOON_S * 1_000_000_000,
        float(NOON_S),
        str(NOON_S),
        f"{NOON_S}.0",
        "2024-01-31 12:00:00",
        "2024-01-31T12:00:00.000",
        "2024-01-31T12:00:00Z",
        "2024-01-31T20:00:00+08:00",
        "2024-01-31 12:00",
        "2024/1/31 12:00",
        "2024-01-31 12",
        " 2024-01-31 12:00:00 ",
        "2024年01月31日 12:00:00",
        datetime(2024, 1, 31, 12),
        NOON.astimezone(timezone(timedelta(hours=0))),
    ],
)
def test_times_of_every_form(tmp_path: Path, time: object) -> None:
    assert times_of(tmp_path, time, time) == ([NOON_S * 1000] * 2, True)


@pytest.mark.parametrize("day", [date(2024, 1, 31), "2024-01-31", "2024/01/31", 20240131, "20240131"])
def test_days(tmp_path: Path, day: object) -> None:
    assert times_of(tmp_path, day) == ([(NOON_S - 43_200) * 1000], True)


def test_fractions_of_a_second(tmp_path: Path) -> None:
    assert times_of(tmp_path, NOON_S + 0.123, NOON_S + 0.5)[0] == [NOON_S * 1000 + 123, NOON_S * 1000 + 500]


def test_zones_may_be_mixed(tmp_path: Path) -> None:
    times, _ = times_of(tmp_path, "2024-01-31 12:00:00", "2024-01-31T12:00:00Z", "2024-01-31T13:00:00+01:00")
    assert times == [NOON_S * 1000] * 3


def test_a_form_that_comes_late_is_read_too(tmp_path: Path) -> None:
    rows = ["u,i,2024-01-31 12:00:00"] * 10_001 + ["u,i,2024/01/31 12:00", "u,i,NULL"]
    events = read(written(tmp_path, "user,item,time\n" + "\n".join(rows) + "\n")).events
    assert events["timestamp"].tail(3).to_list() == [NOON_S * 1000, NOON_S * 1000, None]


def test_small_integers_are_an_order_and_no_clock(tmp_path: Path) -> None:
    assert times_of(tmp_path, 3, 0, 99_999_999) == ([3, 0, 99_999_999], False)


def test_texts_such_as_na_are_missing_values(tmp_path: Path) -> None:
    text = "user,item,value,time\na,x,NaN,2024-01-31 12:00:00\na,x,null,\na,x,N/A,None\na,x, 3 ,2024-01-31\n"
    events = read(written(tmp_path, text)).events
    assert events["value"].to_list() == [None, None, None, 3.0]
    assert events["timestamp"].null_count() == 2


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("log.csv", "", r"log\.csv is empty"),
        ("log.csv", "user_id,item_id\n", "has no rows"),
        ("log.csv", "who,item_id\na,b\n", r"lacks a column for the user_id; its columns are `who`, `item_id`"),
        ("log.csv", "user_id,value\na,1\n", "lacks a column for the item_id"),
        ("log.xlsx", "x", r"unknown suffix; save the table as one of \.csv"),
        ("log.parquet", "not parquet", r"is no Parquet file; name it after its format, such as log\.csv"),
        ("log.parquet", "PAR1 and no more", "cannot be read as Parquet"),
        ("log.csv.gz", "not gzip", "its columns are `not gzip`"),
        ("log.jsonl", "{broken", r"log\.jsonl, line 1 is not JSON"),
        ("log.csv", "user,item\na,b\na,b,c,d\n", r"log\.csv, line 3: the row has 4 fields, but there are 2 columns"),
        (
            "log.csv",
            "user,item,time\na,x,2024-01-31\na,x,yesterday\na,x,2024-13-01\n",
            r"column `time` \(timestamp\) of .*log\.csv is unreadable in 2 rows .*row 2 `yesterday`, row 3 `2024-13",
        ),
        ("log.csv", "user,item,time\na,x,1700000000\na,x,soon\na,x,1700000000\n", "in 1 row .*the first: row 2 `soon`"),
        ("log.csv", "user,item,time\na,x,yesterday\n", "row 1 `yesterday`"),
        ("log.csv", "user,item,价格\na,x,1\na,x,1.2.3\n", r"`价格` \(value\).*row 2 `1\.2\.3`"),
        ("log.csv", "user,item,action\n" + "".join(f"a,x,act{n}\n" for n in range(300)), "300 different texts"),
    ],
)
def test_faults_name_what_is_wrong(tmp_path: Path, name: str, text: str, message: str) -> None:
    with pytest.raises(LogError, match=message):
        read(written(tmp_path, text, name))


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(LogError, match=r"There is no file .*none\.csv"):
        read(tmp_path / "none.csv")


def test_a_value_column_of_lists(tmp_path: Path) -> None:
    path = tmp_path / "log.parquet"
    pl.DataFrame({"user_id": ["a"], "item_id": ["x"], "value": [[1.0]]}).write_parquet(path)
    with pytest.raises(LogError, match=r"`value` \(value\).*not numbers"):
        read(path)


def test_ids_of_files_of_several_types_are_never_rounded(tmp_path: Path) -> None:
    texts, floats, lines = (tmp_path / name for name in ("a.csv", "b.parquet", "c.ndjson"))
    texts.write_text("user_id,item_id\nu1,i1\n")
    pl.DataFrame({"user_id": [1.0, 2.0**53], "item_id": ["i2", "i3"]}).write_parquet(floats)
    with pytest.raises(
        LogError, match=r"`user_id` \(user_id\) of .*b\.parquet is unreadable, the first in row 2: a fl"
    ):
        read_raw_log(LogFiles.of([texts, floats]), Columns(), tmp_path)
    lines.write_text('{"user_id": "9007199254740993", "item_id": 9007199254740993}\n')
    both = LogFiles.of([texts, lines])
    assert (
        read_raw_log(both, Columns(), tmp_path).events.select("user_id", "item_id").row(1) == ("9007199254740993",) * 2
    )
    lines.write_text('{"user_id": "u2", "item_id": "i4"}\n{"user_id": 9007199254740993.0, "item_id": "i4"}\n')
    with pytest.raises(
        LogError, match=r"c\.ndjson, line 2: the column `user_id` \(user_id\) is the float 9\.0072e\+15"
    ):
        read_raw_log(both, Columns(), tmp_path)


def test_long_numbers_that_are_all_texts_are_not_read_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "log.ndjson"
    path.write_text('{"user_id": "9007199254740993", "item_id": null}\n{"user_id":"true","item_id":"1e20"}\n')
    monkeypatch.setattr("training.data.reading.log_reader.strict_part", lambda *_: pytest.fail("read twice"))
    events = read_raw_log(path, Columns(), tmp_path).events
    assert events.select("user_id", "item_id").rows() == [("9007199254740993", None), ("true", "1e20")]
