"""The files of a log as frames whose columns are named as their roles, and as one frame over all files."""

import json
import re
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import polars as pl
from segrec.reading.ids import id_of
from segrec.reading.refusals import Refused, Unreadable
from segrec.reading.text_file import TextFile
from segrec.reading.words import BLANKS

from training.config import Columns
from training.data.columns import ROLES, find_columns, require_columns
from training.data.reading.ids import raw_text, unreadable_ids
from training.data.reading.log_files import LogFile
from training.data.reading.sources import Source
from training.data.reading.tables import column_names, json_rows, open_table, readable
from training.data.reading.timestamps import reads_as_times
from training.errors import LogError

ID_ROLES = ("user_id", "item_id", "action")
_SAMPLE_ROWS = 1_000


@dataclass(frozen=True, slots=True)
class Part:
    """One file of a log: a frame with a column for each role in `names`, and the names of the file's columns."""

    path: Path | Source
    frame: pl.LazyFrame
    names: dict[str, str]
    row_count: int
    is_json: bool = False
    partition: dict[str, str | None] = field(default_factory=dict)
    """Columns that the directories of the file give."""


def open_part(file: LogFile, columns: Columns, scratch: Path) -> Part:
    """Open a file and find its columns. Raises LogError, also if a column that nobody named reads as times."""
    path = file.path
    table = open_table(path, scratch, has_header=columns.header)
    names = column_names(table.frame)
    added = [pl.lit(value, pl.String).alias(name) for name, value in file.partition.items() if name not in names]
    part = _part(path, table.frame.with_columns(added), table.row_count, columns)
    for name in table.doubled:
        if name in part.names.values():
            raise LogError(f"{path} has more than one column `{name}`; give each of them a name of its own.")
    return replace(part, is_json=table.is_json, partition=file.partition)


def source_part(source: Source, columns: Columns) -> Part:
    """A table or query as a part. Raises LogError as `open_part` does, and if its rows have neither times nor order."""
    if not columns.header:
        raise LogError(f"{source} names its columns: take `header = false` out of [columns].")
    frame = source.frame()
    with readable(source):
        row_count = frame.select(pl.len()).collect().item()
    part = _part(source, frame, row_count, columns)
    if "timestamp" not in part.names and not source.has_row_order:
        raise LogError(
            f"{source} has no time column, and its rows have no order of their own; name the column of the time: "
            '[columns] timestamp = "...", or, in a query, add ORDER BY.'
        )
    return part


def _part(path: Path | Source, frame: pl.LazyFrame, row_count: int, columns: Columns) -> Part:
    pair = _date_and_time(columns)
    for name in pair:
        find_columns(column_names(frame), {"timestamp": name}, ("timestamp",), "columns", str(path))
    if pair:
        frame = frame.with_columns(_date_with_time(pair, columns.words).alias(" ".join(pair)))
    names = column_names(frame)
    try:
        by_role = find_columns(names, _configured(columns), ROLES, "columns", str(path))
        require_columns(by_role, names, ("user_id", "item_id"), "columns", str(path))
    except LogError as error:
        raise LogError(f"{error}{_header_hint(names, columns)}") from error
    if "timestamp" not in by_role and columns.timestamp is None:
        _refuse_unnamed_times(frame, [name for name in names if name not in by_role.values()], path)
    schema = frame.collect_schema()
    for role in by_role.keys() & set(ID_ROLES):
        raw_text(by_role[role], schema[by_role[role]], path)  # refuses a column without ids by its own name
    roles = [pl.col(name).alias(role) for role, name in by_role.items()]
    return Part(path, frame.select(roles), by_role, row_count)


def joined(parts: Sequence[Part]) -> Part:
    """All parts as one, their rows in the order of the parts. Raises LogError for parts with columns of other roles."""
    first = parts[0]
    if len(parts) == 1:
        return first
    for part in parts:
        for role in first.names.keys() ^ part.names.keys():
            one, other = (first, part) if role in first.names else (part, first)
            raise LogError(
                f"{one.path} has a column for the {role}, `{one.names[role]}`, and {other.path} has none; the files of "
                f"a log need the same columns, or [columns] {role} = false."
            )
    schemas = [part.frame.collect_schema() for part in parts]
    frames = []
    for part, schema in zip(parts, schemas, strict=True):
        mixed = [role for role in first.names if len({other[role] for other in schemas}) > 1]
        _check_ids(part, {role: schema[role] for role in mixed if role in ID_ROLES})
        frames.append(
            part.frame.with_columns(_as_text(role, schema[role], part) for role in mixed).select(list(first.names))
        )
    return replace(first, frame=pl.concat(frames), row_count=sum(part.row_count for part in parts))


def _check_ids(part: Part, dtypes: Mapping[str, pl.DataType]) -> None:
    """Raise LogError for values that cannot become ids as text; names the first row within the file."""
    bad = [unreadable_ids(role, dtype).arg_true().first().alias(role) for role, dtype in dtypes.items()]
    with readable(part.path):
        rows = part.frame.select(bad).collect().row(0, named=True) if bad else {}
    for role, row in rows.items():
        if row is not None:
            kind = "bytes that are no text" if dtypes[role] == pl.Binary else "a float too large or too near to 0"
            raise LogError(
                f"The column `{part.names[role]}` ({role}) of {part.path} is unreadable, the first in row {row + 1:,}: "
                f"{kind}; save the column as text or as integers."
            )


def holds_inexact_ids(part: Part, role: str) -> bool:
    """Whether an NDJSON part has ids that Polars may have rounded or taken for texts: neither texts nor integers."""
    assert isinstance(part.path, Path)
    dtype = part.frame.collect_schema()[role]
    if dtype != pl.String:
        return not dtype.is_integer()
    name = re.escape(json.dumps(part.names[role], ensure_ascii=False))
    key_with_escapes = r'"[^"\\]*\\(?:[^"\\]|\\.)*"'
    other_than_text = re.compile(rf'(?:{name}|{key_with_escapes})\s*:\s*[^"n\s]')
    with readable(part.path), TextFile(part.path) as text:
        return any(other_than_text.search(line) for line in text.lines())


def strict_part(part: Part, columns: Columns) -> Part:
    """An NDJSON part again, each value by its own type. Raises LogError for ids that are none, with their line."""
    assert isinstance(part.path, Path)
    pair = _date_and_time(columns)
    read: dict[str, list[str | None]] = {role: [] for role in part.names}
    with readable(part.path):
        for line, values in json_rows(part.path):
            values = part.partition | values
            if pair:
                both = [_plain(values.get(name)) for name in pair]
                values[" ".join(pair)] = None if None in both else " ".join(filter(None, both))
            for role, name in part.names.items():
                try:
                    read[role].append(_strict(values.get(name), role, columns))
                except Unreadable as error:
                    raise Refused(f"{part.path}, line {line:,}: the column `{name}` ({role}) {error}") from None
    return replace(part, frame=pl.LazyFrame(read, dict.fromkeys(read, pl.String)), is_json=False)


def _strict(value: Any, role: str, columns: Columns) -> str | None:
    """A value of NDJSON as text that reads as the value does. Raises Unreadable for ids that are none."""
    if role in ID_ROLES:
        return id_of(value, columns.words)
    return _plain(int(value) if role == "value" and isinstance(value, bool) else value)


def _plain(value: Any) -> str | None:
    """A value as text, numbers without an exponent, lists and objects as JSON."""
    if value is None or isinstance(value, str):
        return value
    return f"{Decimal(repr(value)):f}" if isinstance(value, float) else json.dumps(value, ensure_ascii=False)


def _as_text(role: str, dtype: pl.DataType, part: Part) -> pl.Expr:
    return raw_text(role, dtype, part.path) if role in ID_ROLES else pl.col(role).cast(pl.String)


def _configured(columns: Columns) -> dict[str, str | bool | None]:
    """The configured column of each role as `Table` names it; False is off, None is not configured."""
    pair = _date_and_time(columns)
    raw = (
        columns.user_id,
        columns.item_id,
        columns.action,
        columns.value,
        " ".join(pair) if pair else columns.timestamp,
    )
    return {
        role: column if column is None or column is False else str(column)
        for role, column in zip(ROLES, raw, strict=True)
    }


def _date_and_time(columns: Columns) -> tuple[str, ...]:
    pair = columns.timestamp
    return tuple(str(column) for column in pair) if isinstance(pair, tuple) else ()


def _date_with_time(pair: Sequence[str], words: Collection[str]) -> pl.Expr:
    """Both texts with a blank between; null where one of them is missing."""
    texts = (pl.col(name).cast(pl.String).str.strip_chars(BLANKS) for name in pair)
    known = [pl.when(~text.str.to_lowercase().is_in(list(words))).then(text) for text in texts]
    return pl.concat_str(known, separator=" ")


def _header_hint(names: Sequence[str], columns: Columns) -> str:
    """What to do with a file whose first line seems to be an event."""
    if not columns.header or not any(name[:1].isdigit() for name in names):
        return ""
    return " If its first line is an event, set [columns] header = false, and give positions, such as user_id = 1."


def _refuse_unnamed_times(frame: pl.LazyFrame, unused: Sequence[str], path: Path | Source) -> None:
    schema = frame.collect_schema()
    with readable(path):
        sample = frame.select(name for name in unused if not schema[name].is_nested()).head(_SAMPLE_ROWS).collect()
    now_ms = int(time.time() * 1000)
    found = [column for column in sample if reads_as_times(column, now_ms)]
    if found:
        example = found[0].drop_nulls()[0]
        raise LogError(
            f"{path} has no column with a common name for times, but `{found[0].name}` reads as times, such as "
            f'`{example}`: set [columns] timestamp = "{found[0].name}", or timestamp = false if the order of '
            "the rows is the order of events."
        )
