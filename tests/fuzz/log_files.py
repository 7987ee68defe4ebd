"""Logs as hypothesis writes them: known events in every form of file that people have."""

import csv
import gzip
import io
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import zstandard
from hypothesis import assume
from hypothesis import strategies as st
from segrec.reading.words import BLANKS, MISSING_WORDS

from tests.contract.reading.case import HEADER, Row

SECOND_MS, MINUTE_MS, DAY_MS = 1_000, 60_000, 86_400_000
_FROM = datetime(2000, 1, 1, tzinfo=UTC)
_WORDS = sorted(MISSING_WORDS)
_HEADERS = (
    HEADER,
    ("userId", "Item ID", "event_type", "price", "ts"),
    ("用户ID", "商品ID", "行为类型", "金额", "时间戳"),
)


@dataclass(frozen=True)
class LogFile:
    """A file, and what is to be read from it: rows, or a refusal with the line."""

    name: str
    content: bytes
    rows: Sequence[Row]
    bad_line: int | None = None
    may_be_refused: bool = False
    """Whether the encoding cannot be told for sure from so little text."""


def _is_plain_id(text: str) -> bool:
    is_whole_float = re.fullmatch(r"-?[0-9]+\.0+", text) is not None
    return text == text.strip(BLANKS) and text.lower() not in MISSING_WORDS and not is_whole_float


_LETTERS = st.characters(codec="utf-8", exclude_categories=("Cc", "Cs", "Cn", "Co"), exclude_characters="\ufeff")
_MARKS = st.sampled_from([*",;\t|\"'\n\r\\[]{}%#=:", '""', "\r\n", "NULL", "1.0", "Ü", "用户", "é"])
_TEXTS = st.lists(st.one_of(_LETTERS, _MARKS), min_size=1, max_size=6).map("".join).filter(_is_plain_id)
_NUMBERS = st.integers(-99, 10**15).map(str)
_IDS = st.one_of(_TEXTS, _NUMBERS)
_MOMENTS = st.integers(0, 26 * 365 * DAY_MS).map(lambda ms: int(_FROM.timestamp()) * 1000 + ms)
_VALUES = st.one_of(
    st.none(), st.floats(-1e12, 1e12, allow_nan=False).map(lambda value: value + 0.0), st.integers(-9, 99)
)

_FORMS: Mapping[str, int] = {  # forms of time, and the milliseconds of their smallest step
    "s": SECOND_MS,
    "ms": 1,
    "µs": 1,
    "ns": 1,
    "s and ms": 1,
    "s with fraction": 1,
    "%Y-%m-%d": DAY_MS,
    "%Y-%m-%d %H:%M:%S": SECOND_MS,
    "%Y-%m-%dT%H:%MZ": MINUTE_MS,
    "%Y-%m-%d %H:%M:%S UTC": SECOND_MS,
    "%Y/%m/%d %H:%M": MINUTE_MS,
    "%Y年%m月%d日 %H:%M:%S": SECOND_MS,
    "%Y%m%dT%H%M%SZ": SECOND_MS,
    "%Y%m%d": DAY_MS,
    "%Y%m%d%H%M": MINUTE_MS,
    "%Y%m%d%H%M%S": SECOND_MS,
    "+08:00": 1,
    "none": 0,
}


def _written_time(milliseconds: int, form: str, extra: int) -> str:
    """The time in this form; `extra`, 0 to 999,999 ns, stands behind the millisecond where the form has room for it."""
    moment = datetime.fromtimestamp(0, UTC) + timedelta(milliseconds=milliseconds)
    numbers = {
        "s": str(milliseconds // 1000),
        "ms": str(milliseconds),
        "µs": str(milliseconds * 1000 + extra // 1000),
        "ns": str(milliseconds * 1_000_000 + extra),
        "s and ms": str(milliseconds if extra % 2 else milliseconds // 1000),
        "s with fraction": f"{milliseconds // 1000}.{milliseconds % 1000:03}",
        "+08:00": moment.astimezone(timezone(timedelta(hours=8))).isoformat(sep=" ", timespec="milliseconds"),
        "none": "",
    }
    return numbers[form] if form in numbers else moment.strftime(form)


def _read_time(milliseconds: int, form: str, extra: int) -> int | None:
    if form == "none":
        return None
    step = SECOND_MS if form == "s and ms" and not extra % 2 else _FORMS[form]
    return milliseconds - milliseconds % step


@st.composite
def logs(draw: st.DrawFn) -> LogFile:
    """A log of one to eight events, and sometimes rows that lack an id, in a file of any form."""
    form = draw(st.sampled_from(sorted(_FORMS)))
    rows, texts = [], []
    for _ in range(draw(st.integers(1, 8))):
        ids = [draw(st.one_of(_IDS, st.sampled_from(_WORDS)) if draw(st.booleans()) else _IDS) for _ in range(3)]
        moment, extra = draw(_MOMENTS), draw(st.integers(0, 999_999))
        value = draw(_VALUES)
        read = [None if text in MISSING_WORDS else text for text in ids]
        rows.append(
            Row(read[0], read[1], read[2], None if value is None else float(value), _read_time(moment, form, extra))
        )
        texts.append([*ids, "" if value is None else repr(value), _written_time(moment, form, extra)])
    header = draw(st.sampled_from(_HEADERS))[: 4 if form == "none" else 5]
    if draw(st.integers(0, 3)) == 0:
        return _json_file(draw, header, rows, texts)
    return _delimited_file(draw, header, rows, texts)


def _delimited_file(draw: st.DrawFn, header: Sequence[str], rows: list[Row], texts: list[list[str]]) -> LogFile:
    delimiter = draw(st.sampled_from(",;\t|"))
    end = draw(st.sampled_from(["\n", "\r\n", "\r"]))
    note = draw(st.sampled_from(['12" vinyl', "tea 5'", "x"]))  # a column that is not read, written without quotes
    lines = [_line([*header, "note"], delimiter)]
    for row in texts:
        fields = [_varied(draw, text, place) for place, text in enumerate(row[: len(header)])]
        lines.append(_line(fields, delimiter, is_all_quoted=draw(st.booleans())) + delimiter + note)
    if draw(st.booleans()):
        lines.insert(0, f"sep={delimiter}")
    text = (end + end * draw(st.integers(0, 1))).join(lines)
    damage = draw(st.sampled_from([None, None, None, "open quote", "long row", "bad byte"]))
    bad_line = None
    if damage is None:
        text += end * draw(st.integers(0, 1))
    else:  # in the last row, where no later quote can make sense of an open one
        start = text.removesuffix(lines[-1])
        bad_line = 1 + _line_ends(start if damage == "long row" else text)
        text = {
            "open quote": text.removesuffix(note) + '"tea',
            "long row": f"{text}{delimiter}more",
            "bad byte": text + "\udcff\udcff",
        }[damage]
    encoding = draw(st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "gb18030"])) if bad_line is None else "utf-8"
    content = text.encode(encoding, errors="surrogateescape")
    if encoding == "gb18030":
        assume(text.isascii() or not _decodes(content))
    suffix = ".tsv" if delimiter == "\t" and draw(st.booleans()) else ".csv"
    return _compressed(draw, f"log{suffix}", content, rows, bad_line, may_be_refused=encoding == "gb18030")


def _line_ends(text: str) -> int:
    return len(re.findall("\r\n|\r|\n", text))


def _varied(draw: st.DrawFn, text: str, place: int) -> str:
    """The same id, value or time as another tool writes it."""
    if place < 3 and text.isdecimal() and text.isascii() and not text.startswith("0") and draw(st.booleans()):
        text += draw(st.sampled_from([".0", ".00"]))
    if draw(st.integers(0, 5)) == 0:
        return draw(st.sampled_from([" ", "\u00a0 "])) + text + draw(st.sampled_from(["", " ", "\u3000"]))
    return text


def _line(fields: Sequence[str], delimiter: str, *, is_all_quoted: bool = False) -> str:
    text = io.StringIO()
    csv.writer(text, delimiter=delimiter, quoting=csv.QUOTE_ALL if is_all_quoted else csv.QUOTE_MINIMAL).writerow(
        fields
    )
    return text.getvalue().removesuffix("\r\n")


def _json_file(draw: st.DrawFn, header: Sequence[str], rows: list[Row], texts: list[list[str]]) -> LogFile:
    records: list[dict[str, Any]] = []
    for row, written in zip(rows, texts, strict=True):
        record: dict[str, Any] = {}
        for place, (name, text) in enumerate(zip(header, written, strict=False)):
            value = _json_value(draw, text, place, row[place] is None)
            if value is not None or not records or draw(st.booleans()):  # every key is in the first line
                record[name] = value
        records.append(record)
    is_ascii = draw(st.booleans())
    blank = "\n" * draw(st.integers(0, 1))
    text = "".join(json.dumps(record, ensure_ascii=is_ascii) + "\n" + blank for record in records)
    encoding = draw(st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]))
    return _compressed(draw, "log.ndjson", text.encode(encoding), rows, None)


def _json_value(draw: st.DrawFn, text: str, place: int, is_missing: bool) -> Any:
    if is_missing and draw(st.booleans()):
        return None
    if place == 3:
        return None if is_missing else (json.loads(text) if draw(st.booleans()) else text)
    is_number = text.isdecimal() and text.isascii() and (text == "0" or not text.startswith("0"))
    if is_number and place < 3 and int(text) < 2**53 and draw(st.booleans()):
        return draw(st.sampled_from([int(text), float(text)]))
    return int(text) if is_number and place == 4 and draw(st.booleans()) else text


def _compressed(
    draw: st.DrawFn, name: str, content: bytes, rows: list[Row], bad_line: int | None, may_be_refused: bool = False
) -> LogFile:
    kind = draw(st.sampled_from(["", "", ".gz", ".zst"]))
    packed = {"": lambda data: data, ".gz": gzip.compress, ".zst": zstandard.compress}[kind](content)
    return LogFile(name + kind, packed, rows, bad_line, may_be_refused)


def _decodes(content: bytes) -> bool:
    try:
        content.decode()
    except UnicodeDecodeError:
        return False
    return True
