"""Cases of single values: ids, times and values, each in several kinds of file."""

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

import polars as pl
import pyarrow as pa

from tests.contract.reading.case import BAD, DAY, MINUTE, MOMENT, SECOND, Case, Row, arrow_parquet, csv, ndjson, parquet

# --- ids: one text stands as the user, the item and the action of three rows ---

ID_TEXTS: Mapping[str, str | None] = {
    "17850": "17850",
    "17850.0": "17850",
    "17850.00": "17850",
    "007": "007",
    "007.0": "007.0",
    "0.0": "0",
    "1.23457E+11": "1.23457E+11",
    "1.50": "1.50",
    "  padded\u00a0": "padded",
    "用户 一": "用户 一",
    "ﬁ\u200b": "ﬁ\u200b",
    "true": "true",
    "{}": "{}",
    "12345678901234567890": "12345678901234567890",
    "": None,
    "  ": None,
    "NULL": None,
    "nan": None,
    "None": None,
    "N/A": None,
    "<NA>": None,
    "NaT": None,
    "\\N": None,
    " - ": None,
    "nil": None,
    "undefined": None,
    "#N/A": None,
}


def _three(value: Any) -> list[Row]:
    return [Row(user_id=value), Row(item_id=value), Row(action=value)]


def _id_cases() -> list[Case]:
    cases = []
    for text, expected in ID_TEXTS.items():
        name = f"id {text!r}"
        lines = (f"{text},i1,view,,1706697000", f"u1,{text},view,,1706697000", f"u1,i1,{text},,1706697000")
        cases.append(Case(f"{name} in CSV", csv(*lines), _three(expected)))
        cases.append(Case(f"{name} in NDJSON", ndjson(*_json_three(text)), _three(expected), "log.ndjson"))
        columns = [list(column) for column in zip(*([*row.values()] for row in _json_three(text)), strict=True)]
        content = parquet(**dict(zip(("user_id", "item_id", "action", "timestamp"), columns, strict=True)))
        cases.append(Case(f"{name} in Parquet", content, _three(expected), "log.parquet"))
    for value, expected in JSON_IDS:
        rows = _three(expected)
        cases.append(Case(f"id {json.dumps(value)} in NDJSON", ndjson(*_json_three(value)), rows, "log.ndjson"))
    return cases


JSON_IDS: Sequence[tuple[Any, Any]] = (
    (42, "42"),
    (42.0, "42"),
    (1.5, "1.5"),
    (0.0001, "0.0001"),
    (1e-7, BAD),
    (-3, "-3"),
    (2**53 + 1, "9007199254740993"),
    (True, BAD),
    (["x"], BAD),
    ({"a": 1}, BAD),
    (None, None),
)


AMONG_TEXTS: Sequence[tuple[str, Any]] = (
    ("9007199254740993", "9007199254740993"),
    ("-9007199254740993", "-9007199254740993"),
    ("18446744073709551617", "18446744073709551617"),
    ("12345678901234567890123456789012345678901234567890", "12345678901234567890123456789012345678901234567890"),
    ("9007199254740993.0", BAD),
    ("-9007199254740993.5", BAD),
    ("1e20", BAD),
    ("1e400", BAD),
    ("1.5e-9", BAD),
    ("1.2345678901234567", "1.2345678901234567"),
    ("123456789.123456789", "123456789.12345679"),
    ("9007199254740991.0", "9007199254740991"),
    ("-0.0", "0"),
    ("42.50", "42.5"),
    ('"9007199254740993.0"', "9007199254740993"),
    ('"1.5E+20"', "1.5E+20"),
)
"""Numbers as NDJSON spells them, in a column that also has texts and small integers."""


def _mixed_json_cases() -> list[Case]:
    cases = []
    others = ({"user_id": 7, "item_id": "i7"}, {"user_id": "u8", "item_id": 8})
    for text, expected in AMONG_TEXTS:
        lines = [json.dumps(other | {"action": "view", "timestamp": 1706697000}).encode() for other in others]
        lines += [
            b'{"user_id" : %s, "item_id": "i1", "action": "view", "timestamp": 1706697000}' % text.encode(),
            b'{"user_id": "u1", "item_id":%s, "action": "view", "timestamp": 1706697000}' % text.encode(),
        ]
        rows = [Row("7", "i7"), Row("u8", "8"), Row(user_id=expected), Row(item_id=expected)]
        cases.append(Case(f"id {text} among texts in NDJSON", b"\n".join(lines), rows, "log.ndjson"))
    return cases


def _json_three(value: Any) -> list[dict[str, Any]]:
    base = {"user_id": "u1", "item_id": "i1", "action": "view", "timestamp": 1706697000}
    return [base | {"user_id": value}, base | {"item_id": value}, base | {"action": value}]


PARQUET_IDS: Mapping[str, tuple[pl.Series, Sequence[Any]]] = {
    "integers": (pl.Series([1, None, 3]), ["1", None, "3"]),
    "floats": (pl.Series([1.0, float("nan"), 2.5]), ["1", None, "2.5"]),
    "large floats": (pl.Series([1.0, 2.0**53, 3.0]), ["1", BAD, "3"]),
    "small floats": (pl.Series([1.0, 1e-7, 0.0001]), ["1", BAD, "0.0001"]),
    "decimals": (pl.Series([Decimal("17850.00"), None, Decimal("1.50")]), ["17850", None, "1.50"]),
    "categories": (pl.Series(["a", "NULL", "b "], dtype=pl.Categorical()), ["a", None, "b"]),
    "UTF-8 bytes": (pl.Series(["用户".encode(), None, b" b"]), ["用户", None, "b"]),
    "other bytes": (pl.Series([b"\xff\xfe", b"b", b"c"]), [BAD, "b", "c"]),
    "true and false": (pl.Series([True, False, None]), [BAD, BAD, None]),
    "lists": (pl.Series([["x"], ["y"], None]), [BAD, BAD, None]),
    "objects": (pl.Series([{"a": 1}, {"a": 2}, {"a": 3}]), [BAD, BAD, BAD]),
    "dates": (pl.Series([date(2024, 1, 31)] * 3), [BAD, BAD, BAD]),
}


_UUID = "6f9619ff-8b86-d011-b42d-00c04fc964ff"
_ASCII_UUID = str(UUID(bytes=b"0123456789abcdef"))


def _parquet_id_cases() -> list[Case]:
    cases = []
    for name, (series, ids) in PARQUET_IDS.items():
        others = {"action": ["view"] * 3, "timestamp": [1706697000] * 3}
        as_users = parquet(user_id=series, item_id=["i1"] * 3, **others)
        as_items = parquet(user_id=["u1"] * 3, item_id=series, **others)
        not_for = ("segrec-train --events delta",) if name == "categories" else ()  # Delta has no such type
        for content, role in ((as_users, "user_id"), (as_items, "item_id")):
            rows = [Row(**{role: one}) for one in ids]
            cases.append(Case(f"{name} as {role} in Parquet", content, rows, "log.parquet", not_for=not_for))
    return cases


_FIXED: Mapping[str, tuple[pa.DataType, Sequence[bytes | None], Sequence[Any]]] = {
    "UUIDs": (pa.uuid(), [UUID(_UUID).bytes, None, bytes(16)], [_UUID, None, str(UUID(int=0))]),
    "16 bytes each": (pa.binary(16), [UUID(_UUID).bytes, None, b"0123456789abcdef"], [_UUID, None, _ASCII_UUID]),
    "4 bytes each": (pa.binary(4), [b"\xff\xfe\xfd\xfc", b"abcd", b"efgh"], [BAD, "abcd", "efgh"]),
    "16 bytes by chance": (
        pa.binary(),
        [UUID(_UUID).bytes, b"abcd", b"0123456789abcdef"],
        [BAD, "abcd", "0123456789abcdef"],
    ),
}
"""Bytes as other tools write them; texts in them are texts, unless the type gives all of them 16 bytes."""


def _fixed_cases() -> list[Case]:
    cases = []
    not_for = ("segrec-train --events delta", "segrec-train --vectors")  # their tables are written by Polars
    for name, (kind, data, ids) in _FIXED.items():
        for role, other in (("user_id", "item_id"), ("item_id", "user_id")):
            others = {other: [f"{other[0]}1"] * 3, "action": ["view"] * 3, "timestamp": [1706697000] * 3}
            content = arrow_parquet(pa.table({role: pa.array(data, kind), **others}))
            rows = [Row(**{role: one}) for one in ids]
            cases.append(Case(f"{name} as {role} in Parquet", content, rows, "log.parquet", not_for=not_for))
    return cases


# --- times: among other times of the same kind, so that a whole column is read as the one value is ---

_EPOCHS = {"1706697000": SECOND, "1706697060": SECOND + 60_000, "1706697120": SECOND + 120_000}
_DATES = {"2024-01-31": DAY, "2024-02-01": DAY + 86_400_000, "2024-02-02 00:00:00": DAY + 2 * 86_400_000}

TIME_NUMBERS: Mapping[str, Any] = {
    "1706697000.1239": MOMENT,
    "1706697000.9999": SECOND + 999,
    "1706697000123": MOMENT,
    "1706697000123999": MOMENT,
    "1706697000123999999": MOMENT,
    "638422938001239999": MOMENT,
    "133511706001239999": MOMENT,
    " 1706697000 ": SECOND,
    "1706697000.0": SECOND,
    "0": BAD,
    "-1": BAD,
    "-1706697000": BAD,
    "3": BAD,
    "9999999999": BAD,
    "1e30": BAD,
    "inf": BAD,
    "": None,
    "NULL": None,
    "NaT": None,
    "nan": None,
    "\\N": None,
}
TIME_TEXTS: Mapping[str, Any] = {
    "2024-01-31T10:30": MINUTE,
    "2024-01-31T10:30Z": MINUTE,
    "2024-1-31 10:30": MINUTE,
    "2024-01-31 10": MINUTE - 1_800_000,
    "2024-01-31 10:30:00 UTC": MINUTE,
    "2024-01-31 10:30:00 GMT": MINUTE,
    "2024-01-31T10:30:00.123999Z": MOMENT,
    "2024-01-31 10:30:00.123999999": MOMENT,
    "2024-01-31T18:30:00+08:00": MINUTE,
    "2024-01-31 18:30:00 +0800": MINUTE,
    "2024-01-31 05:30:00-05": MINUTE,
    "20240131T103000Z": MINUTE,
    "2024/1/31": DAY,
    "2024/01/31 10:30:00": MINUTE,
    "2024年1月31日": DAY,
    "2024年01月31日 10:30:00": MINUTE,
    "1969-12-31 23:59:59": BAD,
    "2200-01-01": BAD,
    "9999-12-31": BAD,
    "0001-01-01": BAD,
    "0000-00-00 00:00:00": BAD,
    "2024-02-30": BAD,
    "2024-01-31 24:00:00": BAD,
    "10-12-01": BAD,
    "10/12/01 08:28": BAD,
    "12/1/2010 8:26": BAD,
    "03.04.2012": BAD,
    "2024-01": BAD,
    "yesterday": BAD,
    "": None,
    "null": None,
}
COMPACT: Sequence[tuple[str, int, str]] = (
    ("20240131", DAY, "20240201"),
    ("202401311030", MINUTE, "202401311031"),
    ("20240131103000", MINUTE, "20240131103001"),
)


def _time_case(text: str, expected: Any, others: Mapping[str, int]) -> list[Case]:
    texts, kind = [*others, text], next(iter(others))
    rows = [*(Row(timestamp=time) for time in others.values()), Row(timestamp=expected)]
    lines = [f"u1,i1,view,,{one}" for one in texts]
    records = [{"user_id": "u1", "item_id": "i1", "action": "view", "timestamp": one} for one in texts]
    return [
        Case(f"time {text!r} among {kind} in CSV", csv(*lines), rows),
        Case(f"time {text!r} among {kind} in NDJSON", ndjson(*records), rows, "log.ndjson"),
    ]


def _time_cases() -> list[Case]:
    cases = [case for text, time in TIME_NUMBERS.items() for case in _time_case(text, time, _EPOCHS)]
    cases += [case for text, time in TIME_TEXTS.items() for case in _time_case(text, time, _DATES)]
    comma = "2024-01-31T10:30:00,123Z"
    cases.append(Case("time with a decimal comma", csv(f'u1,i1,view,,"{comma}"'), [Row(timestamp=MOMENT)]))
    steps = {"20240131": 86_400_000, "202401311030": 60_000, "20240131103000": 1_000}
    for text, time, later in COMPACT:
        cases += _time_case(text, time, {later: time + steps[text]})
    return cases


PARQUET_TIMES: Mapping[str, pl.Series] = {
    "µs": pl.Series([datetime(2024, 1, 31, 10, 30, 0, 123_999)]),
    "ms": pl.Series([datetime(2024, 1, 31, 10, 30, 0, 123_000)], dtype=pl.Datetime("ms")),
    "ns": pl.Series([1_706_697_000_123_999_999]).cast(pl.Datetime("ns")),
    "zone": pl.Series(
        [datetime(2024, 1, 31, 10, 30, 0, 123_999, tzinfo=UTC)], dtype=pl.Datetime("us", "Asia/Shanghai")
    ),
    "integers": pl.Series([1_706_697_000_123]),
    "floats": pl.Series([1_706_697_000.123]),
    "texts": pl.Series(["2024-01-31T10:30:00.123Z"]),
}


def _parquet_time_cases() -> list[Case]:
    return [
        Case(
            f"time as {name} in Parquet",
            parquet(user_id=["u1"], item_id=["i1"], action=["view"], timestamp=series),
            [Row(timestamp=MOMENT)],
            "log.parquet",
        )
        for name, series in PARQUET_TIMES.items()
    ]


# --- values ---

VALUES: Mapping[str, Any] = {
    "5.75": 5.75,
    " -3 ": -3.0,
    ".5": 0.5,
    "1e3": 1000.0,
    "": None,
    "NULL": None,
    "nan": None,
    "-": None,
    "many": BAD,
    "£5": BAD,
    "1_000": BAD,
    "1 000": BAD,
}


def _value_cases() -> list[Case]:
    return [
        Case(
            f"value {text!r}",
            csv(f"u1,i1,view,{text},1706697000", "u2,i1,view,1.5,1706697000"),
            [Row(value=value), Row(user_id="u2", value=1.5)],
        )
        for text, value in VALUES.items()
    ]


VALUE_CASES: Sequence[Case] = (
    *_id_cases(),
    *_mixed_json_cases(),
    *_parquet_id_cases(),
    *_fixed_cases(),
    *_time_cases(),
    *_parquet_time_cases(),
    *_value_cases(),
)
