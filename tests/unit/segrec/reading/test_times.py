"""One rule for times."""

from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal

import pytest
from segrec.reading.refusals import Unreadable
from segrec.reading.times import check_format, is_compact, milliseconds_of, zone_of

JAN_31 = 1_706_697_000_123  # 2024-01-31T10:30:00.123Z
MINUTE = 1_706_697_000_000
DAY = 1_706_659_200_000


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        # units by value, as text and as number; cut off, not rounded
        ("1706697000", MINUTE),
        (1706697000, MINUTE),
        (1706697000.0, MINUTE),
        ("1706697000.1239", JAN_31),
        (1706697000.123, JAN_31),
        (Decimal("1706697000.1239"), JAN_31),
        ("1.706697E+9", MINUTE),
        ("1706697000123", JAN_31),
        (1706697000123.9, JAN_31),
        ("1706697000123999", JAN_31),
        ("1706697000123999999", JAN_31),
        (1706697000123000000, JAN_31),
        ("638422938001239999", JAN_31),
        ("133511706001239999", JAN_31),
        ("100000000", 100_000_000_000),
        ("0100000000", 100_000_000_000),
        # compact dates
        ("20240131", DAY),
        (20240131, DAY),
        (20240131.0, DAY),
        ("202401311030", MINUTE),
        ("20240131103000", MINUTE),
        ("197912312460", 197_912_312_460),  # no such minute: milliseconds of 1976
        # ISO 8601
        ("2024-01-31", DAY),
        ("2024-1-31 10:30", MINUTE),
        ("2024-01-31T10:30", MINUTE),
        ("2024-01-31T10:30Z", MINUTE),
        ("2024-01-31 10:30:00 UTC", MINUTE),
        ("2024-01-31 10:30:00 gmt", MINUTE),
        ("2024-01-31T10:30:00.123999Z", JAN_31),
        ("2024-01-31t10:30:00,123999999z", JAN_31),
        ("2024-01-31 10:30:00.12", JAN_31 - 3),
        ("2024-01-31T18:30:00+08:00", MINUTE),
        ("2024-01-31 18:30:00 +0800", MINUTE),
        ("2024-01-31 05:30:00-05", MINUTE),
        ("2024-01-31 16:00+05:30", MINUTE),
        ("20240131T103000Z", MINUTE),
        ("20240131T103000.123Z", JAN_31),
        ("20240131T1030", MINUTE),
        ("20240131T183000+0800", MINUTE),
        ("2024-01-31 10", MINUTE - 1_800_000),
        ("2016-12-31T23:59:60Z", 1_483_228_800_000),
        # slashes, Chinese
        ("2024/1/31", DAY),
        ("2024/01/31 10:30:00.123", JAN_31),
        ("2024年1月31日", DAY),
        ("2024年01月31日 10:30:00", MINUTE),
        (" 2024-01-31 ", DAY),
        # values of a table
        (datetime(2024, 1, 31, 10, 30, 0, 123_999), JAN_31),
        (datetime(2024, 1, 31, 18, 30, 0, 123_999, tzinfo=timezone(timedelta(hours=8))), JAN_31),
        (date(2024, 1, 31), DAY),
        # nothing
        (None, None),
        ("", None),
        ("NaT", None),
        ("\\N", None),
        (float("nan"), None),
        ("1970-01-01", 0),
        ("2199-12-31 23:59:59.999", 7_258_118_399_999),
    ],
)
def test_times(value: object, expected: int | None) -> None:
    assert milliseconds_of(value) == expected


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("0", "too small"),
        (-5, "too small"),
        ("3.5", "too small"),
        (41000.354, "too small"),
        ("20240230", "too small"),
        ("20240131.5", "too small"),
        ("9999999999", "after the year 2200"),
        ("7258118400000", "after the year 2200"),
        (34_560_000_000, "after the year 2200"),
        (1e30, "after the year 2200"),
        ("1e30", "after the year 2200"),
        ("1e99999999999999999999", "is no time"),
        ("2200-01-01", "after the year 2200"),
        ("9999-12-31 23:59:59", "after the year 2200"),
        ("1969-12-31", "before 1970"),
        ("inf", "is no time"),
        (float("inf"), "is no time"),
        (True, "is no time"),
        ([1706697000], "is no time"),
        ("yesterday", "is no time"),
        ("10/12/01 08:28", "is no time"),
        ("10-12-01", "is no time"),
        ("12/1/2010 8:26", "is no time"),
        ("03.04.2012", "is no time"),
        ("2024-01", "is no time"),
        ("2024-02-30", "is no time"),
        ("0000-00-00 00:00:00", "is no time"),
        ("2024-01-31 24:00:00", "is no time"),
        ("2024-01-31 10:60", "is no time"),
        ("2024-01-31T10:30:00+25:00", "is no time"),
        ("2024-01-31 10:30:00 PST", "is no time"),
        ("2024-01-31T10:30:00[Asia/Tokyo]", "is no time"),
        ("2024-01/31", "is no time"),
        ("10:30", "is no time"),
        ("\u0662\u0660\u0662\u0664-01-31", "is no time"),
        ("2024-01-31\n2024-02-01", "is no time"),
    ],
)
def test_what_is_no_time_is_refused(value: object, message: str) -> None:
    with pytest.raises(Unreadable, match=message):
        milliseconds_of(value)


@pytest.mark.parametrize(
    ("text", "form", "expected"),
    [
        ("31.01.2024 10:30", "%d.%m.%Y %H:%M", MINUTE),
        ("1/31/2024 10:30 AM", "%m/%d/%Y %I:%M %p", MINUTE),
        ("31/Jan/2024:18:30:00 +0800", "%d/%b/%Y:%H:%M:%S %z", MINUTE),
        ("24-01-31", "%y-%m-%d", DAY),
        ("20240131", "%Y%d%m", None),
        ("NULL", "%Y-%m-%d", None),
    ],
)
def test_a_format_says_how_texts_are_read(text: str, form: str, expected: int | None) -> None:
    if text == "20240131":
        with pytest.raises(Unreadable, match="is no time of the form %Y%d%m"):
            milliseconds_of(text, form=form)
    else:
        assert milliseconds_of(text, form=form) == expected


@pytest.mark.parametrize(
    ("form", "message"),
    [("%d.%m.%q", "%q, which is no directive"), ("%H:%M", "lacks the year"), ("%Y %b", "lacks"), ("%Z %Y-%m-%d", "%Z")],
)
def test_a_format_is_checked(form: str, message: str) -> None:
    with pytest.raises(Unreadable, match=message):
        check_format(form)
    check_format("%d %b %Y %%")
    check_format("%Y-%j")


def test_a_zone_is_for_times_without_one() -> None:
    shanghai = zone_of("Asia/Shanghai")
    for value in ("2024-01-31 18:30", "202401311830", datetime(2024, 1, 31, 18, 30)):
        assert milliseconds_of(value, zone=shanghai) == MINUTE
    assert milliseconds_of("2024-01-31 10:30Z", zone=shanghai) == MINUTE
    assert milliseconds_of("1706697000", zone=shanghai) == MINUTE
    assert milliseconds_of("31.1.2024 18:30", form="%d.%m.%Y %H:%M", zone=shanghai) == MINUTE


def test_hours_that_a_zone_has_twice_or_never() -> None:
    berlin = zone_of("Europe/Berlin")
    first = datetime(2024, 10, 27, 0, 30, tzinfo=UTC).timestamp() * 1000
    assert milliseconds_of("2024-10-27 02:30", zone=berlin) == first
    with pytest.raises(Unreadable, match="does not exist in the time zone Europe/Berlin"):
        milliseconds_of("2024-03-31 02:30", zone=berlin)


@pytest.mark.parametrize("name", ["Mars/Olympus", "../etc/passwd", "/etc/localtime", "", "PST8PDT8", "Europe"])
def test_an_unknown_zone_is_refused(name: str) -> None:
    with pytest.raises(Unreadable, match="is no time zone"):
        zone_of(name)


def test_compact_dates() -> None:
    assert all(map(is_compact, (19700101, 21001231, 202401311230, 20240131123059)))
    assert not any(map(is_compact, (19691231, 21010101, 20240230, 202401312460, 2024013112, -20240131)))
