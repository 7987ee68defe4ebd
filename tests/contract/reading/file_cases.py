"""Cases of files: the same rows in every form of file, and files that are refused as a whole."""

import gzip
import json
from collections.abc import Mapping, Sequence
from typing import Any

import zstandard

from tests.contract.reading.case import HEADER, SECOND, Case, Row, csv, ndjson, parquet

THREE = [
    Row("u1", "i1", "view", 2.5, SECOND),
    Row("用户", "商品 1", "购买", None, SECOND + 60_000),
    Row("u3", "i3", "view", -1.0, SECOND + 120_000),
]
LINES = ["u1,i1,view,2.5,1706697000", "用户,商品 1,购买,,1706697060", "u3,i3,view,-1,1706697120"]
_PLAIN = csv(*LINES)
_TEXT = _PLAIN.decode()
_RECORDS: list[dict[str, Any]] = [
    {"user_id": "u1", "item_id": "i1", "action": "view", "value": 2.5, "timestamp": 1706697000},
    {"user_id": "用户", "item_id": "商品 1", "action": "购买", "value": None, "timestamp": 1706697060},
    {"user_id": "u3", "item_id": "i3", "action": "view", "value": -1, "timestamp": 1706697120},
]
_NDJSON = ndjson(*_RECORDS)
_TRAP = csv("wrong,wrong,wrong,0,1706697000")
_TITLES = ("user_id", "item_id", "action", "value", "timestamp", "note")


_REWRITERS = ("segrec-train --events delta", "segrec-train --vectors")
"""Readers whose tests first read the file themselves, to write it as the reader wants it."""


def _with_notes(*notes: str) -> bytes:
    return csv(*(f"{line},{note}" for line, note in zip(LINES, notes, strict=True)), header=_TITLES)


def _with_header(*header: str) -> bytes:
    return csv(*LINES, header=header)


def _with_end(text: str, *header: str, delimiter: str = ",") -> bytes:
    lines = (f"{line},{text}".replace(",", delimiter) for line in LINES)
    return csv(*lines, header=(*HEADER, *header), delimiter=delimiter)


def _columns(records: Sequence[Mapping[str, Any]]) -> bytes:
    return parquet(**{name: [record[name] for record in records] for name in HEADER})


FIRST, FIRST_RECORD = THREE[0], _RECORDS[0]


def _delimited_cases() -> list[Case]:
    semicolons = _TEXT.replace(",", ";").encode()
    tabs = _TEXT.replace(",", "\t")
    quoted = "".join(f'"{line}"\n'.replace(",", '","') for line in _TEXT.splitlines())
    short = [FIRST, Row("u2", None, None, None, None), Row("u3", "i3", None, None, None)]
    return [
        Case("plain CSV", _PLAIN, THREE),
        Case("semicolons", semicolons, THREE),
        Case("bars", _TEXT.replace(",", "|").encode(), THREE),
        Case("tabs in CSV", tabs.encode(), THREE),
        Case("TSV", tabs.encode(), THREE, "log.tsv"),
        Case("capital suffix", _PLAIN, THREE, "LOG.CSV"),
        Case("a comma in a header of semicolons", _with_end("x", "price, EUR", delimiter=";"), THREE),
        Case("bars in a header of commas", _with_end("x", "a|b|c|d|e|f|g"), THREE),
        Case("sep=", b"sep=;\r\n" + semicolons.replace(b"\n", b"\r\n"), THREE),
        Case("CRLF", _PLAIN.replace(b"\n", b"\r\n"), THREE),
        Case("CR", _PLAIN.replace(b"\n", b"\r"), THREE),
        Case("no last line end", _PLAIN.rstrip(b"\n"), THREE),
        Case("blank lines", b"\n" + _PLAIN.replace(b"\n", b"\n\n") + b"  \n\n", THREE),
        Case("all quoted", quoted.encode(), THREE),
        Case("names of camels", _with_header("userId", "itemID", "Action", "VALUE", "time-stamp"), THREE),
        Case("names of people", _with_header("User ID", "product id", "event type", "price", "created_at"), THREE),
        Case("Chinese names", _with_header("用户ID", "商品ID", "行为类型", "行为值", "时间戳"), THREE),
        Case("names with blanks", _with_header(" user_id ", "item_id\u00a0", "action", "value", "timestamp"), THREE),
        Case("other columns", csv(*(f"x,{line},y" for line in LINES), header=("index", *HEADER, "note")), THREE),
        Case("inch marks in a column that is not read", _with_notes('12" vinyl', "tea", '7" single'), THREE),
        Case("quoted line breaks and quotes", _with_notes('"two\nlines"', '"12"" vinyl"', '"a,b"'), THREE),
        Case("text after a closing quote", _with_notes('"12" vinyl', "tea", '"x"y'), THREE),
        Case("a zero byte in a column that is not read", _with_notes("a\0b", "c", "d"), THREE),
        Case("short rows", csv(LINES[0], "u2", "u3,i3"), short),
        Case("empty fields at the end", csv(*(f"{line},," for line in LINES)), THREE),
        Case("a name with brackets", _PLAIN, THREE, "log[1].csv", beside={"log1.csv": _TRAP}),
        Case("a name with a star", _PLAIN, THREE, "log*.csv", beside={"log2.csv": _TRAP}),
    ]


def _encoded_cases() -> list[Case]:
    return [
        Case("byte order mark", b"\xef\xbb\xbf" + _PLAIN, THREE),
        Case("UTF-16", _TEXT.encode("utf-16"), THREE),
        Case("UTF-16 with tabs", _TEXT.replace(",", "\t").encode("utf-16"), THREE),
        Case("UTF-16 BE", b"\xfe\xff" + _TEXT.encode("utf-16-be"), THREE),
        Case("GB18030", _TEXT.encode("gb18030"), THREE),
        Case("gzip", gzip.compress(_PLAIN), THREE, "log.csv.gz"),
        Case("gzip of two members", gzip.compress(_PLAIN[:60]) + gzip.compress(_PLAIN[60:]), THREE, "log.csv.gz"),
        Case("gzip of GB18030", gzip.compress(_TEXT.encode("gb18030")), THREE, "log.csv.gz"),
        Case("Zstandard", zstandard.compress(_PLAIN), THREE, "log.csv.zst"),
        Case("Zstandard of NDJSON", zstandard.compress(_NDJSON), THREE, "log.ndjson.zst"),
    ]


def _json_cases() -> list[Case]:
    reordered = ndjson(*(dict(reversed(record.items())) for record in _RECORDS))
    late = ndjson(*[{**FIRST_RECORD, "value": None}] * 10_500, FIRST_RECORD)
    late_rows = [*[FIRST._replace(value=None)] * 10_500, FIRST]
    ids = ndjson(*({**FIRST_RECORD, "user_id": user_id} for user_id in (7, "7", 7.0)))
    values = ndjson(*({**FIRST_RECORD, "value": value} for value in (5, 5.75, "6")))
    value_rows = [FIRST._replace(value=value) for value in (5.0, 5.75, 6.0)]
    trap = {"log1.parquet": _columns(_RECORDS[:1])}
    return [
        Case("NDJSON", _NDJSON, THREE, "log.ndjson"),
        Case("JSON lines", _NDJSON.replace(b"\n", b"\r\n"), THREE, "log.jsonl"),
        Case("NDJSON with a byte order mark", b"\xef\xbb\xbf" + _NDJSON, THREE, "log.ndjson"),
        Case("NDJSON with blank lines", _NDJSON.replace(b"\n", b"\n\n"), THREE, "log.ndjson"),
        Case("NDJSON in UTF-16", _NDJSON.decode().encode("utf-16"), THREE, "log.ndjson"),
        Case("NDJSON, gzip", gzip.compress(_NDJSON), THREE, "log.ndjson.gz"),
        Case("NDJSON, keys in another order", reordered, THREE, "log.ndjson"),
        Case("NDJSON, a late key", late, late_rows, "log.ndjson"),
        Case("NDJSON, ids of three types", ids, [FIRST._replace(user_id="7")] * 3, "log.ndjson"),
        Case("NDJSON, values of three types", values, value_rows, "log.ndjson"),
        Case("Parquet", _columns(_RECORDS), THREE, "log.parquet"),
        Case("Parquet with brackets", _columns(_RECORDS), THREE, "log[1].parquet", beside=trap, not_for=_REWRITERS[:1]),
    ]


def _refused_cases() -> list[Case]:
    western = "café bleu,i,view,,1706697000\n".encode("cp1252")
    return [
        Case("a quote that never closes", _with_notes("tea", '"12 inch', "cup"), refusal="line 3"),
        Case("two quotes that never close", _with_notes('"12 inch', "tea", '"7 inch'), refusal="line 2"),
        Case("a row that is too long", csv(LINES[0], LINES[1] + ",more", LINES[2]), refusal="line 3"),
        Case("western letters", csv(LINES[0]) + western, refusal="line 3.*iconv"),
        Case("western letters after much text", csv(*LINES[:1] * 60_000) + western, refusal="line 60,?002.*iconv"),
        Case("UTF-16 without a mark", _TEXT.encode("utf-16-le"), refusal="UTF-16"),
        Case("a gzip that is cut off", gzip.compress(_PLAIN * 50)[:-9], file="log.csv.gz", refusal="cut off"),
        Case("bytes behind a gzip", gzip.compress(_PLAIN) + b"more", file="log.csv.gz", refusal="damaged"),
        Case(
            "a Zstandard file that is cut off", zstandard.compress(_PLAIN)[:-5], file="log.csv.zst", refusal="cut off"
        ),
        Case("a NDJSON line that is cut off", _NDJSON[:-9], file="log.ndjson", refusal="line 3"),
        Case(
            "a bad NDJSON line",
            _NDJSON.replace(b'{"user_id": "u3"', b"{'user_id': 'u3'"),
            file="log.ndjson",
            refusal="line 3",
        ),
        Case("two objects on a line", _NDJSON.replace(b"}\n{", b"} {", 1), file="log.ndjson", refusal="line 1"),
        Case("a JSON array", json.dumps(_RECORDS).encode(), file="log.ndjson", refusal="line 1.*array"),
        Case("a Parquet file by another name", parquet(user_id=["u1"], item_id=["i1"]), refusal="Parquet"),
        Case("Excel by another name", b"PK\x03\x04" + b"\0" * 99, refusal="Excel"),
        Case("no Parquet", _PLAIN, file="log.parquet", refusal="arquet", not_for=_REWRITERS),
        Case("no such columns", b"a,b\n1,2\n", refusal="its columns are `a`, `b`"),
        Case("an empty file", b"", refusal="empty|no rows", not_for=("segrec stream --users",)),
    ]


FILE_CASES: Sequence[Case] = (*_delimited_cases(), *_encoded_cases(), *_json_cases(), *_refused_cases())
