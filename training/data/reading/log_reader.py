"""Reads a behaviour log into typed columns: every row of every file, or an error that names the rows."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl
from segrec.reading.refusals import Unreadable
from segrec.reading.values import number_of

from training.config import Columns
from training.data.account import LogPart, Step, dropping_step, row_name
from training.data.columns import DEFAULT_ACTION
from training.data.reading.ids import id_of_text, raw_text, unreadable_ids
from training.data.reading.log_files import LogFiles
from training.data.reading.log_parts import (
    ID_ROLES,
    Part,
    holds_inexact_ids,
    joined,
    open_part,
    source_part,
    strict_part,
)
from training.data.reading.sources import Log, Source
from training.data.reading.tables import check_row_count, readable
from training.data.reading.time_numbers import MixedTimes, Times
from training.data.reading.timestamps import TimeParser, TimeSettings, time_parser
from training.errors import LogError

ACTIONS_MAX = 256
"""A column with more distinct texts is refused as the action column."""

_DOUBTFUL_ID = r"^(true|false|-?inf|-?Infinity|-0)$|^[\[{]|^-?0\.0000|^-?[0-9.]{16,}$|^-?[0-9.]+[eE][+-]?[0-9]+$"
"""What Polars makes of values of NDJSON that are no ids, and of numbers of which it may have rounded some digits."""
_PLAIN = "text or as integers"
_SAMPLE_ROWS = 10_000
_SHOWN_ROWS = 5
_SHOWN_CHARACTERS = 60
_DROP = 'or leave such rows out: unreadable = "drop" in [columns]'
_REMEDIES = {
    "timestamp": f'name another form, such as timestamp_format = "%d.%m.%Y %H:%M", {_DROP}',
    "value": f"write numbers such as 1234.5, or leave out the column, value = false, {_DROP}",
}


@dataclass(frozen=True)
class RawLog:
    """A log before cleaning: all rows, in the order of the files.

    `events` has the columns row (uint32, from 1), user_id, item_id and action (Enum of texts by `segrec.reading.ids`,
    null if missing; sorts like the texts), value (float64, null if missing) and timestamp (int64 milliseconds, null if
    missing). Without `has_clock`, timestamps only give the order. With `ordered_by_row`, they are row numbers.
    """

    events: pl.DataFrame
    has_clock: bool
    ordered_by_row: bool
    columns: dict[str, str]
    """The name of the file's column for each role, such as `user_id`."""
    row_count: int = 0
    """Rows in the files, counted from their bytes; `steps` say which of them `events` lacks."""
    steps: tuple[Step, ...] = ()
    notes: tuple[str, ...] = ()
    parts: tuple[LogPart, ...] = ()
    """The files of a log of several."""


@dataclass(frozen=True)
class _Source:
    """The log as one frame whose columns are named as their roles, and how messages name it."""

    part: Part
    where: str
    parts: tuple[LogPart, ...]
    words: frozenset[str]

    def column(self, role: str) -> str:
        return f"The column `{self.part.names[role]}` ({role}) of {self.where}"


def read_raw_log(path: Log, columns: Columns, scratch: Path) -> RawLog:
    """Read the log at `path`, which may be a directory or a pattern; `scratch` is a directory for regular copies.

    Raises LogError for a file that `open_table` refuses, a source that `Source.frame` refuses or that has neither times
    nor an order of its rows, a log without rows, files with different columns, a missing or ambiguous column, a column
    of times without a name for it, and unreadable ids, times and values; names the column and the first bad rows.
    """
    if isinstance(path, Source):
        return _read([source_part(path, columns)], str(path), columns)
    files = LogFiles.of([path]) if isinstance(path, Path) else path
    parts = [open_part(file, columns, scratch) for file in files.files]
    try:
        return _read(parts, str(files), columns)
    except LogError:
        if not any(part.is_json for part in parts):
            raise
    strict = [strict_part(part, columns) if part.is_json else part for part in parts]
    return _read(strict, str(files), columns)


def _read(parts: Sequence[Part], where: str, columns: Columns) -> RawLog:
    words = columns.words
    named = tuple(LogPart(file=str(part.path), rows=part.row_count) for part in parts) if len(parts) > 1 else ()
    source = _Source(joined(parts), where, named, words)
    with readable(source.part.path):
        sample = source.part.frame.head(_SAMPLE_ROWS).collect()
    if sample.is_empty():
        raise LogError(f"{where} has no rows.")
    _check_value_type(source, sample.schema)
    settings = TimeSettings(columns.timestamp_format, columns.timezone, words)
    parser = time_parser("timestamp", sample["timestamp"], settings) if "timestamp" in sample.columns else None
    events = _collected(source, sample.schema, parser)
    _check_json_ids(source, parts, events)
    (values, bad_values), times = _values(source, events), _times(source, events, parser)
    ids, notes = _ids(source, events)
    rows = pl.int_range(1, len(events) + 1, dtype=pl.UInt32, eager=True).alias("row")
    read = pl.DataFrame([rows, *ids, values, times.milliseconds.alias("timestamp")])
    bad = {"timestamp": times.unreadable, "value": bad_values}
    read, steps = _without_unreadable(source, read, bad, columns.unreadable == "drop")
    return RawLog(
        read,
        has_clock=times.has_clock,
        ordered_by_row=parser is None,
        columns=source.part.names,
        row_count=source.part.row_count,
        steps=steps,
        notes=(*notes, *times.notes),
        parts=named,
    )


def _check_value_type(source: _Source, schema: Mapping[str, pl.DataType]) -> None:
    dtype = schema.get("value")
    if dtype is not None and not (dtype.is_numeric() or dtype in (pl.Boolean, pl.String, pl.Null)):
        raise LogError(f"{source.column('value')} holds {dtype}, not numbers; [columns] value = false leaves it out.")


def _check_json_ids(source: _Source, parts: Sequence[Part], events: pl.DataFrame) -> None:
    """Raise LogError if an id of NDJSON may have been true, false, a list, an object, or a number that was rounded."""
    json_parts = [part for part in parts if part.is_json]
    for role in events.columns if json_parts else ():
        if role in ID_ROLES:
            texts = events[role].drop_nulls().unique().cast(pl.String)
            if texts.str.contains(_DOUBTFUL_ID).any() and any(holds_inexact_ids(part, role) for part in json_parts):
                raise LogError(f"{source.column(role)} may hold values of several types.")


def _collected(source: _Source, schema: Mapping[str, pl.DataType], parser: TimeParser | None) -> pl.DataFrame:
    """Ids as Categoricals, values and times as far as fast expressions read them, and which of these are given at all.

    Raises LogError if the rows are not as many as the bytes of the files say, and for ids of another type.
    """
    ids = {role: schema[role] for role in ID_ROLES if role in schema}
    raw = {role: raw_text(role, dtype, source.part.path) for role, dtype in ids.items()}
    bad = {role: unreadable_ids(role, dtype) for role, dtype in ids.items() if dtype.is_float() or dtype == pl.Binary}
    given = {role: _is_given(role, schema[role]) for role in ("value", "timestamp") if role in schema}
    with readable(source.part.path):
        events = source.part.frame.select(
            *(text.cast(pl.Categorical(pl.Categories.random())).alias(role) for role, text in raw.items()),
            *([pl.col("value").cast(pl.Float64, strict=False)] if "value" in schema else []),
            *([parser.quick.alias("timestamp")] if parser else []),
            *(expression.alias(f"{role} given") for role, expression in given.items()),
            *(expression.alias(f"{role} bad") for role, expression in bad.items()),
        ).collect(engine="streaming")
    check_row_count(source.where, source.part.row_count, len(events))
    for role in bad:
        rows = events[f"{role} bad"].arg_true().to_list()
        if rows:
            what = "text, or as UUIDs of 16 bytes (Parquet, read with pyarrow)" if schema[role] == pl.Binary else _PLAIN
            raise LogError(f"{_unreadable(source, role, rows)}; save the column as {what}.")
    return events


def _times(source: _Source, events: pl.DataFrame, parser: TimeParser | None) -> Times:
    if parser is None:
        return Times(pl.int_range(len(events), dtype=pl.Int64, eager=True), has_clock=False)
    rows, texts = _left_null(source, events, "timestamp")
    try:
        return parser.read(events["timestamp"], rows, texts)
    except MixedTimes as error:
        raise LogError(f"{source.column('timestamp')} {error}.") from error


def _values(source: _Source, events: pl.DataFrame) -> tuple[pl.Series, dict[int, str]]:
    """The values float64 (N,), null where missing or unreadable, and why by row from 0 where unreadable."""
    if "value" not in events.columns:
        return pl.Series("value", [None], pl.Float64).new_from_index(0, len(events)), {}
    rows, texts = _left_null(source, events, "value")
    numbers: dict[str, float | None] = {}
    reasons: dict[str, str] = {}
    for text in texts.unique():
        try:
            numbers[text] = number_of(text, source.words)
        except Unreadable as error:
            reasons[text] = str(error)
    late = texts.replace_strict(numbers, default=None, return_dtype=pl.Float64)
    values = events["value"].fill_nan(None).scatter(rows, late)
    bad = zip(rows, texts, strict=True) if reasons else ()
    return values, {row: reasons[text] for row, text in bad if text in reasons}


def _left_null(source: _Source, events: pl.DataFrame, role: str) -> tuple[pl.Series, pl.Series]:
    """The rows (R,) from 0 that fast expressions left null though they hold something, and their texts (R,)."""
    rows = (events[role].is_null() & events[f"{role} given"]).arg_true()
    return rows, _texts(source, role, rows)


def _texts(source: _Source, role: str, rows: pl.Series) -> pl.Series:
    if rows.is_empty():
        return pl.Series([], dtype=pl.String)
    column = pl.col(role)
    is_binary = source.part.frame.collect_schema()[role] == pl.Binary
    text = column.bin.encode("hex") if is_binary else column.cast(pl.String)
    raw = source.part.frame.select(text).with_row_index("row")
    with readable(source.part.path):
        return raw.filter(pl.col("row").is_in(rows.implode())).collect()[role]


def _ids(source: _Source, events: pl.DataFrame) -> tuple[list[pl.Series], list[str]]:
    """Ids and actions as Enums, and notes on words that count as missing."""
    columns, notes = [], []
    for role in ID_ROLES:
        if role in events.columns:
            codes, words = _as_enum(events[role], source.words)
            columns.append(codes)
            if words:
                shown = ", ".join(f"`{word}` ({count:,})" for word, count in sorted(words))
                notes.append(f"as {role}, {shown} count as missing; [columns] missing_words changes the list")
        else:
            columns.append(pl.Series(role, [DEFAULT_ACTION], pl.Enum([DEFAULT_ACTION])).new_from_index(0, len(events)))
    distinct = columns[-1].n_unique()
    if distinct > ACTIONS_MAX:
        raise LogError(
            f"{source.column('action')} has {distinct:,} different texts; a log may have at most {ACTIONS_MAX} "
            'actions; choose another column: [columns] action = "...", or action = false for none.'
        )
    return columns, notes


def _as_enum(ids: pl.Series, words: Collection[str]) -> tuple[pl.Series, list[tuple[str, int]]]:
    """Ids as an Enum that sorts like the texts, missing ones null; and the words that count as missing, with rows."""
    distinct = ids.drop_nulls().unique()
    raw = distinct.cast(pl.String)
    texts = raw.to_frame().select(id_of_text(pl.first(), words)).to_series()
    enum = pl.Enum(texts.drop_nulls().unique().sort())
    codes = texts.cast(enum).to_physical()
    # `enum_codes` maps a code of the Categorical to a code of the Enum.
    codes_in = distinct.to_physical()
    enum_codes = pl.Series([None], dtype=codes.dtype).new_from_index(0, int(codes_in.max() or 0) + 1)  # type: ignore[arg-type]
    nothing = distinct.filter(texts.is_null() & (raw.str.strip_chars() != ""))
    counts = ids.filter(ids.is_in(nothing.implode())).value_counts().rows() if len(nothing) else []
    return enum_codes.scatter(codes_in, codes).gather(ids.to_physical()).cat.to(enum).alias(ids.name), counts


def _is_given(role: str, dtype: pl.DataType) -> pl.Expr:
    column = pl.col(role)
    return (column.fill_nan(None) if dtype.is_float() else column).is_not_null()


def _without_unreadable(
    source: _Source, events: pl.DataFrame, unreadable: Mapping[str, Mapping[int, str]], may_drop: bool
) -> tuple[pl.DataFrame, tuple[Step, ...]]:
    """The events without unreadable rows, and a step for each column with some. Raises LogError unless `may_drop`."""
    steps: list[Step] = []
    for role, reasons in unreadable.items():
        if not reasons:
            continue
        if not may_drop:
            rows = sorted(reasons)
            raise LogError(f"{_unreadable(source, role, rows)}: {reasons[rows[0]]}; {_REMEDIES[role]}.")
        kept = events.filter(~pl.col("row").is_in([row + 1 for row in reasons]))
        steps.append(dropping_step(f"unreadable {role}", events, kept, "left out, as configured"))
        events = kept
    return events, tuple(steps)


def _unreadable(source: _Source, role: str, rows: Sequence[int]) -> str:
    """The beginning of a sentence about rows from 0 whose column cannot be read."""
    texts = _texts(source, role, pl.Series(rows[:_SHOWN_ROWS], dtype=pl.UInt32))
    shown = ", ".join(
        f"{row_name(row + 1, source.parts)} `{(text or '')[:_SHOWN_CHARACTERS]}`"
        for row, text in zip(rows, texts, strict=False)
    )
    return (
        f"{source.column(role)} is unreadable in {len(rows):,} row{'s' * (len(rows) > 1)} (counted from 1, without "
        f"headers and blank lines), the first: {shown}"
    )
