"""Reads a behaviour log into five typed columns, and item and user tables beside it."""

from dataclasses import dataclass
from pathlib import Path

import polars as pl

from training.config import Columns, ItemColumns, UserColumns
from training.data.columns import DEFAULT_ACTION, ROLES, find_columns, require_columns
from training.data.tables import column_names, readable, scan_table
from training.data.timestamps import numbers_to_milliseconds, time_parsers
from training.errors import LogError

ACTIONS_MAX = 256
"""A column with more different texts than this is hardly one of actions."""

_SAMPLE_ROWS = 10_000
_SHOWN_ROWS = 5
_NOTHING = ("", "nan", "nat", "null", "none", "na", "n/a", "\\n", "-")  # texts for a number or time that is not there


@dataclass(frozen=True)
class RawLog:
    """A log as it was read: nothing dropped, nothing filled in, rows in the order of the file.

    `events` has the columns user_id, item_id, action (Enum, trimmed, null where empty; an Enum sorts like its
    texts), value (float64, null where missing) and timestamp (int64 milliseconds, null where missing).
    Where `has_clock` is false timestamps only give the order; where `own_order` is true, too, they are row numbers.
    """

    events: pl.DataFrame
    has_clock: bool
    own_order: bool
    columns: dict[str, str]
    """Which column of the file became which, by role."""


def read_raw_log(path: Path, columns: Columns, scratch: Path) -> RawLog:
    """Read the log in `path`; `scratch` is a directory for a copy in UTF-8 where one is needed.

    Raises LogError for what `scan_table` does not open, a log without rows, a lacking or ambiguous column, and
    unreadable times and values, with the column's name and the first bad rows.
    """
    frame = scan_table(path, scratch)
    names = column_names(frame)
    found = find_columns(names, columns.model_dump(), ROLES, "columns", str(path))
    require_columns(found, names, ("user_id", "item_id"), "columns", str(path))
    with readable(path):
        sample = frame.select(found.values()).head(_SAMPLE_ROWS).collect()
    if sample.is_empty():
        raise LogError(f"{path} has no rows.")
    events = _typed(frame, found, sample, path)
    if "timestamp" not in found:
        times, has_clock = pl.int_range(len(events), dtype=pl.Int64, eager=True), False
    elif events["timestamp"].dtype == pl.Int64:
        times, has_clock = events["timestamp"], True
    else:
        times, has_clock = numbers_to_milliseconds(events["timestamp"])
    if events["action"].n_unique() > ACTIONS_MAX:
        raise LogError(
            f"The column `{found.get('action')}` of {path} has {events['action'].n_unique():,} different texts, more "
            f'than the {ACTIONS_MAX} that actions may have; name another one: [columns] action = "...".'
        )
    return RawLog(events.with_columns(times.alias("timestamp")), has_clock, "timestamp" not in found, found)


def read_items(path: Path, columns: ItemColumns, scratch: Path) -> pl.DataFrame:
    """The item table: item_id, title, description (text, null where empty), category (list of text). One row an item.

    A description without a title is taken for one. Raises LogError as `read_raw_log` does.
    """
    frame = scan_table(path, scratch)
    names = column_names(frame)
    category = columns.category
    several = list(category) if isinstance(category, tuple) else None
    chosen = columns.model_dump(include={"item_id", "title", "description"})
    chosen["category"] = None if several else category
    roles = ("item_id", "title", "description", *(() if several else ("category",)))
    found = find_columns(names, chosen, roles, "items", str(path))
    if "title" not in found and "description" in found:
        found["title"] = found.pop("description")
    require_columns(found, names, ("item_id",), "items", str(path))
    for name in several or []:
        find_columns(names, {"category": name}, ("category",), "items", str(path))
    parts = several or ([found["category"]] if "category" in found else [])
    schema = frame.collect_schema()
    lists = [_categories(name, schema[name], columns.category_separator) for name in parts]
    title, description = (
        _text(found[role], schema[found[role]]) if role in found else pl.lit(None, pl.String)
        for role in ("title", "description")
    )
    with readable(path):
        table = frame.select(
            _text(found["item_id"], schema[found["item_id"]]).alias("item_id"),
            title.alias("title"),
            (pl.concat_list(lists) if lists else pl.lit([], pl.List(pl.String))).alias("category"),
            description.alias("description"),
        ).collect()
    return table.drop_nulls("item_id").unique("item_id", keep="first", maintain_order=True)


def read_users(path: Path, columns: UserColumns, scratch: Path) -> pl.DataFrame:
    """The user table: user_id (text), then its other columns as they are. One row a user. Raises LogError."""
    frame = scan_table(path, scratch)
    names = column_names(frame)
    found = find_columns(names, columns.model_dump(), ("user_id",), "users", str(path))
    require_columns(found, names, ("user_id",), "users", str(path))
    id_column = found["user_id"]
    with readable(path):
        table = frame.select(
            _text(id_column, frame.collect_schema()[id_column]).alias("user_id"),
            pl.exclude(id_column, "user_id"),
        ).collect()
    return table.drop_nulls("user_id").unique("user_id", keep="first", maintain_order=True)


def _typed(frame: pl.LazyFrame, found: dict[str, str], sample: pl.DataFrame, path: Path) -> pl.DataFrame:
    """The five columns, in the order of the file; times may still be numbers without a unit."""
    ids = {role: _id(found[role], sample) for role in ("user_id", "item_id", "action") if role in found}
    value = _value(found["value"], sample, path) if "value" in found else [pl.lit(None, pl.Float64)]
    time = time_parsers(found["timestamp"], sample[found["timestamp"]]) if "timestamp" in found else [pl.lit(None)]
    given = [
        pl.col(found[role]).is_not_null().alias(f"{role}_given") for role in ("value", "timestamp") if role in found
    ]
    with readable(path):
        events = frame.select(
            *(expr.alias(role) for role, expr in ids.items()),
            value[0].alias("value"),
            time[0].alias("timestamp"),
            *given,
        ).collect(engine="streaming")
    for role, parsers in (("value", value), ("timestamp", time)):
        if role in found:
            with readable(path):
                events = _repaired(events, frame, role, found[role], parsers, path)
    codes = [_as_enum(events[role]) for role in ids]
    if "action" not in found:
        action = pl.Series("action", [DEFAULT_ACTION], pl.Enum([DEFAULT_ACTION])).new_from_index(0, len(events))
        codes.append(action)
    return pl.DataFrame([*codes, events["value"].fill_nan(None), events["timestamp"]])


def _repaired(
    events: pl.DataFrame, frame: pl.LazyFrame, role: str, column: str, parsers: list[pl.Expr], path: Path
) -> pl.DataFrame:
    """`events` with the rows that the quick parser did not read tried with the last; raises LogError for the rest."""
    failed = (events[role].is_null() & events[f"{role}_given"]).arg_true()
    if failed.is_empty():
        return events
    raw = frame.select(column).with_row_index("row").filter(pl.col("row").is_in(failed.implode())).collect()
    again = raw.select("row", pl.col(column).cast(pl.String).alias("text"), parsers[-1].alias("parsed"))
    missing = pl.col("text").str.strip_chars().str.to_lowercase().is_in(_NOTHING)
    bad = again.filter(pl.col("parsed").is_null() & ~missing)
    if len(bad):
        rows = ", ".join(
            f"row {row + 1:,} `{text[:60]}`" for row, text in bad.head(_SHOWN_ROWS).select("row", "text").rows()
        )
        raise LogError(
            f"The column `{column}` ({role}) of {path} is unreadable in {len(bad):,} row{'s' * (len(bad) > 1)}; the "
            f"first: {rows}. Rows count from 1, without the header."
        )
    return events.with_columns(events[role].scatter(failed, again["parsed"].cast(events[role].dtype)).alias(role))


def _value(column: str, sample: pl.DataFrame, path: Path) -> list[pl.Expr]:
    dtype = sample.schema[column]
    if not (dtype.is_numeric() or dtype in (pl.Boolean, pl.String, pl.Null)):
        raise LogError(f"The column `{column}` (value) of {path} holds {dtype}, not numbers.")
    if dtype != pl.String:
        return [pl.col(column).cast(pl.Float64)]
    return [
        pl.col(column).cast(pl.Float64, strict=False),
        pl.col(column).str.strip_chars().cast(pl.Float64, strict=False),
    ]


def _id(column: str, sample: pl.DataFrame) -> pl.Expr:
    """Ids as a Categorical, which costs each different id once; whole floats are ids such as 17, not 17.0."""
    return _raw_text(column, sample.schema[column]).cast(pl.Categorical(pl.Categories.random()))


def _raw_text(column: str, dtype: pl.DataType) -> pl.Expr:
    raw = pl.col(column)
    if dtype.is_float():
        whole = raw == raw.round()
        return (
            pl.when(whole)
            .then(raw.cast(pl.Int64, strict=False).cast(pl.String))
            .otherwise(raw.fill_nan(None).cast(pl.String))
        )
    return raw.cast(pl.String)


def _text(column: str, dtype: pl.DataType) -> pl.Expr:
    """Trimmed text, null where empty."""
    text = _raw_text(column, dtype).str.strip_chars()
    return pl.when(text != "").then(text)


def _as_enum(ids: pl.Series) -> pl.Series:
    """Trimmed ids as an Enum in the order of their texts; empty ones are null."""
    different = ids.drop_nulls().unique()
    texts = different.cast(pl.String).str.strip_chars()
    texts = texts.set(texts == "", None)
    order = pl.Enum(texts.drop_nulls().unique().sort())
    codes = texts.cast(order).to_physical()
    place = different.to_physical()
    table = pl.Series([None], dtype=codes.dtype).new_from_index(0, int(place.max() or 0) + 1)  # type: ignore[arg-type]
    return table.scatter(place, codes).gather(ids.to_physical()).cat.to(order).alias(ids.name)


def _categories(column: str, dtype: pl.DataType, separator: str) -> pl.Expr:
    """A list of trimmed texts, empty where there is none."""
    column_list = pl.col(column) if isinstance(dtype, pl.List) else pl.col(column).cast(pl.String).str.split(separator)
    trimmed = column_list.cast(pl.List(pl.String)).list.eval(pl.element().str.strip_chars())
    return trimmed.list.eval(pl.element().filter(pl.element() != "")).fill_null([])
