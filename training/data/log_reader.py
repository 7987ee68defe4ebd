"""Reads a behaviour log into five typed columns."""

from dataclasses import dataclass
from pathlib import Path

import polars as pl

from training.config import Columns
from training.data.columns import DEFAULT_ACTION, ROLES, find_columns, require_columns
from training.data.ids import raw_text
from training.data.sources import Log, Source
from training.data.tables import column_names, readable, scan_table
from training.data.timestamps import numbers_to_milliseconds, time_parsers
from training.errors import LogError

ACTIONS_MAX = 256
"""A column with more distinct texts is refused as the action column."""

_SAMPLE_ROWS = 10_000
_SHOWN_ROWS = 5
_NOTHING = ("", "nan", "nat", "null", "none", "na", "n/a", "\\n", "-")  # texts that mean a missing number or time


@dataclass(frozen=True)
class RawLog:
    """A log before cleaning: all rows, in the order of the file.

    `events` has the columns user_id, item_id and action (Enum of trimmed texts, null if empty; sorts like the texts),
    value (float64, null if missing) and timestamp (int64 milliseconds, null if missing).
    Without `has_clock`, timestamps only give the order. With `ordered_by_row`, they are row numbers.
    """

    events: pl.DataFrame
    has_clock: bool
    ordered_by_row: bool
    columns: dict[str, str]
    """The name of the file's column for each role, such as `user_id`."""


def read_raw_log(path: Log, columns: Columns, scratch: Path) -> RawLog:
    """Read the log at `path`; `scratch` is a directory for a UTF-8 copy, if the file has another encoding.

    Raises LogError for a file that `scan_table` refuses, a source that `Source.frame` refuses or that has neither times
    nor an order of its rows, a log without rows, a missing or ambiguous column, and unreadable times and values; names
    the column and the first bad rows.
    """
    frame = path.frame() if isinstance(path, Source) else scan_table(path, scratch)
    names = column_names(frame)
    by_role = find_columns(names, columns.model_dump(), ROLES, "columns", str(path))
    require_columns(by_role, names, ("user_id", "item_id"), "columns", str(path))
    if "timestamp" not in by_role and isinstance(path, Source) and not path.has_row_order:
        raise LogError(
            f"{path} has no time column, and its rows have no order of their own; name the column of the time: "
            '[columns] timestamp = "...", or, in a query, add ORDER BY.'
        )
    with readable(path):
        sample = frame.select(by_role.values()).head(_SAMPLE_ROWS).collect()
    if sample.is_empty():
        raise LogError(f"{path} has no rows.")
    events = _typed(frame, by_role, sample, path)
    if "timestamp" not in by_role:
        times, has_clock = pl.int_range(len(events), dtype=pl.Int64, eager=True), False
    elif events["timestamp"].dtype == pl.Int64:
        times, has_clock = events["timestamp"], True
    else:
        times, has_clock = numbers_to_milliseconds(events["timestamp"])
    if events["action"].n_unique() > ACTIONS_MAX:
        raise LogError(
            f"The column `{by_role.get('action')}` of {path} has {events['action'].n_unique():,} different texts; a "
            f'log may have at most {ACTIONS_MAX} actions; choose another column: [columns] action = "...".'
        )
    return RawLog(events.with_columns(times.alias("timestamp")), has_clock, "timestamp" not in by_role, by_role)


def _typed(frame: pl.LazyFrame, by_role: dict[str, str], sample: pl.DataFrame, path: Log) -> pl.DataFrame:
    """The five columns, rows in the order of the file; times may still be numbers of unknown unit."""
    ids = {role: _id(by_role[role], sample, path) for role in ("user_id", "item_id", "action") if role in by_role}
    value = _value(by_role["value"], sample, path) if "value" in by_role else [pl.lit(None, pl.Float64)]
    time = (
        time_parsers(by_role["timestamp"], sample[by_role["timestamp"]]) if "timestamp" in by_role else [pl.lit(None)]
    )
    given = [
        pl.col(by_role[role]).is_not_null().alias(f"{role}_given") for role in ("value", "timestamp") if role in by_role
    ]
    with readable(path):
        events = frame.select(
            *(expr.alias(role) for role, expr in ids.items()),
            value[0].alias("value"),
            time[0].alias("timestamp"),
            *given,
        ).collect(engine="streaming")
    for role, parsers in (("value", value), ("timestamp", time)):
        if role in by_role:
            with readable(path):
                events = _repaired(events, frame, role, by_role[role], parsers, path)
    codes = [_as_enum(events[role]) for role in ids]
    if "action" not in by_role:
        action = pl.Series("action", [DEFAULT_ACTION], pl.Enum([DEFAULT_ACTION])).new_from_index(0, len(events))
        codes.append(action)
    return pl.DataFrame([*codes, events["value"].fill_nan(None), events["timestamp"]])


def _repaired(
    events: pl.DataFrame, frame: pl.LazyFrame, role: str, column: str, parsers: list[pl.Expr], path: Log
) -> pl.DataFrame:
    """Retry rows that the first parser left null with the last parser. Raises LogError for rows that also fail then."""
    failed = (events[role].is_null() & events[f"{role}_given"]).arg_true()
    if failed.is_empty():
        return events
    raw = frame.select(column).with_row_index("row").filter(pl.col("row").is_in(failed.implode())).collect()
    retried = raw.select("row", pl.col(column).cast(pl.String).alias("text"), parsers[-1].alias("parsed"))
    means_missing = pl.col("text").str.strip_chars().str.to_lowercase().is_in(_NOTHING)
    bad = retried.filter(pl.col("parsed").is_null() & ~means_missing)
    if len(bad):
        rows = ", ".join(
            f"row {row + 1:,} `{text[:60]}`" for row, text in bad.head(_SHOWN_ROWS).select("row", "text").rows()
        )
        raise LogError(
            f"The column `{column}` ({role}) of {path} is unreadable in {len(bad):,} row{'s' * (len(bad) > 1)}; the "
            f"first: {rows}. Rows count from 1, without the header."
        )
    return events.with_columns(events[role].scatter(failed, retried["parsed"].cast(events[role].dtype)).alias(role))


def _value(column: str, sample: pl.DataFrame, path: Log) -> list[pl.Expr]:
    dtype = sample.schema[column]
    if not (dtype.is_numeric() or dtype in (pl.Boolean, pl.String, pl.Null)):
        raise LogError(f"The column `{column}` (value) of {path} holds {dtype}, not numbers.")
    if dtype != pl.String:
        return [pl.col(column).cast(pl.Float64)]
    return [
        pl.col(column).cast(pl.Float64, strict=False),
        pl.col(column).str.strip_chars().cast(pl.Float64, strict=False),
    ]


def _id(column: str, sample: pl.DataFrame, path: Log) -> pl.Expr:
    """Ids as a Categorical, which stores each distinct id once; a whole float gives `17`, not `17.0`."""
    return raw_text(column, sample.schema[column], path).cast(pl.Categorical(pl.Categories.random()))


def _as_enum(ids: pl.Series) -> pl.Series:
    """Trimmed ids as an Enum that sorts like the texts; empty ids become null."""
    distinct = ids.drop_nulls().unique()
    texts = distinct.cast(pl.String).str.strip_chars()
    texts = texts.set(texts == "", None)
    enum = pl.Enum(texts.drop_nulls().unique().sort())
    codes = texts.cast(enum).to_physical()
    # `enum_codes` maps a code of the Categorical to a code of the Enum.
    codes_in = distinct.to_physical()
    enum_codes = pl.Series([None], dtype=codes.dtype).new_from_index(0, int(codes_in.max() or 0) + 1)  # type: ignore[arg-type]
    return enum_codes.scatter(codes_in, codes).gather(ids.to_physical()).cat.to(enum).alias(ids.name)
