"""Times as people's tools write them: each is read as it was meant, or the log is refused with the row."""

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from tests.support.odd_logs import S, column, log, read, times
from training.errors import LogError


def test_units_row_by_row(tmp_path: Path) -> None:
    mixed = [S, S * 1000 + 1, S * 1_000_000 + 2_999, S * 10**9]
    assert times(tmp_path, *mixed) == [S * 1000, S * 1000 + 1, S * 1000 + 2, S * 1000]
    found = log(tmp_path, f"user_id,item_id,timestamp\nu,i,{S}\nu,j,{S}000\nu,k,{S}000\n")
    assert "times have several units: ms in 2 rows, s in 1 rows" in found.notes


@pytest.mark.parametrize(
    ("values", "expected"),
    [([3.5, 2.5, 1.5], [3, 2, 1]), ([3, 2, 1, 9_999_999_999], [3, 2, 1, 9_999_999_999]), ([0, -1, 2], [0, -1, 2])],
)
def test_small_numbers_are_an_order(tmp_path: Path, values: Sequence[float], expected: list[int]) -> None:
    text = "user_id,item_id,timestamp\n" + "".join(f"u,i{value},{value}\n" for value in values)
    found = log(tmp_path, text)
    assert not found.has_clock
    assert column(found, "timestamp") == expected


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (["41000.75", "41000.35", "41000.31"], [1_333_303_200_000, 1_333_268_640_000, 1_333_265_184_000]),
        (["202401311230"], [1_706_704_200_000]),
        (["20240131123059"], [1_706_704_259_000]),
        (["637134336000000000", "637134336600000000"], [1_577_836_800_000, 1_577_836_860_000]),
        (["133511706001239999"], [1_706_697_000_123]),
        (["1706697000.1239", "1706697000.124"], [1_706_697_000_123, 1_706_697_000_124]),
        (["2019-10-01 00:00:00 UTC", "2024-03-10T12:00Z"], [1_569_888_000_000, 1_710_072_000_000]),
        (["20240310T120000Z", "2024-03-10 12:00:00 GMT"], [1_710_072_000_000] * 2),
        (["2024-03-10 12:00:00.1239"], [1_710_072_000_123]),
        ([0, -1, S, S], [-1, -1, S * 1000, S * 1000]),
        ([0, 0, 0, S], [-1, -1, -1, S * 1000]),
        ([S, "2024-03-10T12:00Z", S], [S * 1000, 1_710_072_000_000, S * 1000]),
        (["1960-01-01", "2024-03-10"], [-315_619_200_000, 1_710_028_800_000]),
    ],
)
def test_clocks(tmp_path: Path, values: list[Any], expected: list[int]) -> None:
    assert times(tmp_path, *values) == expected


def test_times_of_parquet(tmp_path: Path) -> None:
    path = tmp_path / "log.parquet"
    frame = pl.DataFrame(
        {"user_id": ["u"] * 2, "item_id": ["i"] * 2, "timestamp": [datetime(2024, 3, 10, 12, 0, 0, 123_999)] * 2}
    )
    frame.write_parquet(path)
    assert column(read(path), "timestamp") == [1_710_072_000_123] * 2
    assert column(read(path, timezone="Asia/Shanghai"), "timestamp") == [1_710_072_000_123 - 8 * 3_600_000] * 2
    frame.with_columns(timestamp=pl.Series([1_706_697_000.123, None])).write_parquet(path)
    assert column(read(path), "timestamp") == [1_706_697_000_123, None]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            [20240131, S, 20240201],
            r"holds dates such as 20240131 \(row 1\) and other times such as 1700000000 \(row 2\): 2 ",
        ),
        ([202401311230, 20240131, 202401311231], r"holds dates such as 202401311230 \(row 1\).* 20240131 \(row 2\)"),
        ([20240131, 20240230, 20240201], "in 1 row .*row 2 `20240230`.* is no date"),
        (["2010/12/01 08:26", "10/12/01 08:28"], "in 1 row .*row 2 `10/12/01 08:28`"),
        (["12/1/2010 8:26"], r"row 1 `12/1/2010 8:26`.*timestamp_format = .*unreadable = \"drop\""),
        ([3, 2, "2024-01-31"], "row 3 `2024-01-31`: is not a number, as the others are"),
        ([S, "inf"], "row 2 `inf`"),
    ],
)
def test_times_that_are_refused(tmp_path: Path, values: list[Any], message: str) -> None:
    with pytest.raises(LogError, match=message):
        times(tmp_path, *values)


@pytest.mark.parametrize(
    ("text", "settings", "expected"),
    [
        ("12/1/2010 8:26", {"timestamp_format": "%m/%d/%Y %H:%M"}, 1_291_191_960_000),
        ("12/1/2010 8:26 PM", {"timestamp_format": "%m/%d/%Y %I:%M %p"}, 1_291_235_160_000),
        ("03.04.2012", {"timestamp_format": "%d.%m.%Y"}, 1_333_411_200_000),
        ("03.04.12", {"timestamp_format": "%d.%m.%y"}, 1_333_411_200_000),
        ('"2012-04-03 00:00:01,5"', {"timestamp_format": "%Y-%m-%d %H:%M:%S,%f"}, 1_333_411_201_500),
        ("10/Oct/2000:13:55:36 -0700", {"timestamp_format": "%d/%b/%Y:%H:%M:%S %z"}, 971_211_336_000),
        ("2024013112", {"timestamp_format": "%Y%m%d%H"}, 1_706_702_400_000),
        ("2024-01-31 20:00", {"timezone": "Asia/Shanghai"}, 1_706_702_400_000),
        ("2024-01-31T20:00+08:00", {"timezone": "Europe/Berlin"}, 1_706_702_400_000),
        ("20240131", {"timezone": "Asia/Shanghai"}, 1_706_659_200_000 - 8 * 3_600_000),
        ("2024-10-27 02:30:00", {"timezone": "Europe/Berlin"}, 1_729_989_000_000),
    ],
)
def test_formats_and_zones(tmp_path: Path, text: str, settings: dict[str, str], expected: int) -> None:
    assert times(tmp_path, text, text, **settings) == [expected] * 2


def test_an_hour_that_a_zone_skips_is_unreadable(tmp_path: Path) -> None:
    with pytest.raises(LogError, match=r"row 2 `2024-03-31 02:30:00`.*does not exist in the time zone Europe/Berlin"):
        times(tmp_path, "2024-01-01 00:00:00", "2024-03-31 02:30:00", timezone="Europe/Berlin")


def test_the_zone_of_times_without_one_is_said(tmp_path: Path) -> None:
    text = "user_id,item_id,timestamp\nu,i,2024-01-31 20:00\n"
    note = "times without a zone count as UTC; [columns] timezone names another zone"
    assert note in log(tmp_path, text).notes
    assert note not in log(tmp_path, text, timezone="UTC").notes
    assert note not in log(tmp_path, text.replace("20:00", "20:00Z")).notes
    for moment in ("20240131", "41000.5"):
        assert note in log(tmp_path, text.replace("2024-01-31 20:00", moment)).notes
    for time, is_naive in (
        ("2024-01-31", True),
        ("2024-01-31 20:00", True),
        ("2024-01-31 20:00 +08", False),
        (S, False),
    ):
        assert (
            note in log(tmp_path, f"{text}u,i,{S}\nu,i,{S}\n".replace("2024-01-31 20:00", f"{time}")).notes
        ) == is_naive


def test_unreadable_rows_can_be_left_out(tmp_path: Path) -> None:
    rows = [f"u{row},i,2024-01-31 00:00:00,1.5" for row in range(2_000)]
    rows[6], rows[9] = "u6,i,0000-00-00 00:00:00,1.5", 'u9,i,2024-01-31 00:00:00,"1,5"'
    text = "user_id,item_id,timestamp,price\n" + "\n".join(rows)
    found = log(tmp_path, text, unreadable="drop")
    assert [(step.name, step.rows_in, step.rows_dropped, step.first_rows) for step in found.steps] == [
        ("unreadable timestamp", 2_000, 1, (7,)),
        ("unreadable value", 1_999, 1, (10,)),
    ]
    assert found.row_count == 2_000
    assert len(found.events) == 1_998
    with pytest.raises(LogError, match=r"`timestamp` .*row 7 `0000-00-00 00:00:00`"):
        log(tmp_path, text)
    with pytest.raises(LogError, match=r"`price` \(value\) .*row 10 `1,5`.*value = false"):
        log(tmp_path, text.replace("0000-00-00", "2024-01-31"))
    assert column(log(tmp_path, text.replace("0000-00-00", "2024-01-31"), value=False), "value") == [None] * 2_000


def test_a_date_and_a_time_of_day(tmp_path: Path) -> None:
    text = "user_id,item_id,day,clock\nu,i,2024-01-31,20:00:30\nu,i,NULL,20:00\nu,i,2024-01-31,\n"
    assert column(log(tmp_path, text, timestamp=["day", "clock"]), "timestamp") == [1_706_731_230_000, None, None]
    with pytest.raises(LogError, match="no column `hour`"):
        log(tmp_path, text, timestamp=["day", "hour"])


@pytest.mark.parametrize("value", ["2018-09-21", str(S), "2018-09-21 10:00:00", "20180921"])
def test_a_column_of_times_by_another_name_is_asked_about(tmp_path: Path, value: str) -> None:
    text = f"t_dat,customer_id,article_id\n{value},a,1\n{value.replace('21', '20').replace('17', '16', 1)},a,2\n"
    with pytest.raises(
        LogError, match=rf'`t_dat` reads as times, such as `{value}`: set \[columns\] timestamp = "t_dat"'
    ):
        log(tmp_path, text)
    assert log(tmp_path, text, timestamp="t_dat").has_clock
    assert log(tmp_path, text, timestamp=False).ordered_by_row


@pytest.mark.parametrize(
    "values", [("1", "2"), ("red", "2018-09-21"), ("4006381333931", "9780306406157"), ("3.5", "1.0")]
)
def test_other_columns_are_not_asked_about(tmp_path: Path, values: tuple[str, str]) -> None:
    assert log(tmp_path, "user_id,item_id,extra\n" + "".join(f"u,i,{value}\n" for value in values)).ordered_by_row
