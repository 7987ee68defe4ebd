"""Reads the item table and the user table: one row per id, whatever the file has."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl
from segrec.reading.ids import id_of as id_of_value
from segrec.reading.refusals import Refused, Unreadable
from segrec.reading.words import MISSING_WORDS

from training.config import ItemColumns, UserColumns
from training.data.account import TableRows, lowest
from training.data.columns import find_columns, require_columns
from training.data.reading.category_names import read_category_names
from training.data.reading.ids import id_of, id_of_text, raw_text, trimmed, unreadable_ids
from training.data.reading.list_texts import listed
from training.data.reading.tables import (
    Table,
    check_row_count,
    column_names,
    is_ndjson,
    json_rows,
    open_table,
    readable,
)
from training.errors import LogError

_SHOWN = 3
_ROW, _ID = "\0row", "\0id"
"""Columns beside those of the file: the number of the row from 1, and its id."""


_OPTIONAL = ("group", "seller")
"""Columns of the item table that are read only where the configuration names them."""


@dataclass(frozen=True)
class IdTable:
    """A table with one row per id, in the order of the file, and what a person should know of the reading.

    `row_numbers` are the rows of the file, from 1 without the header, in which the ids first stand. `account` says what
    became of all rows.
    """

    rows: pl.DataFrame
    row_numbers: pl.Series
    notes: tuple[str, ...]
    account: TableRows


def read_items(path: Path, columns: ItemColumns, scratch: Path, words: Collection[str] = MISSING_WORDS) -> IdTable:
    """The item table: item_id, title and description (text, null if missing), category (list of distinct texts), and
    group and seller (text, null if missing) if they are configured.

    Of an item in several rows, the first title and the first description count, and the categories are joined. A table
    with a description column and no title column gets the descriptions as titles, unless `title` is false. Raises
    LogError as `scan_table` does, for a missing or ambiguous column, and for ids and categories that cannot be read;
    names the column and the rows.
    """
    opened = open_table(path, scratch)
    frame = opened.frame
    by_role, category_columns = _item_columns(column_names(frame), columns, path)
    schema = frame.collect_schema()
    ids, texts = by_role["item_id"], [role for role in ("title", "description", *_OPTIONAL) if role in by_role]
    table = _collected(opened, frame.select(list(dict.fromkeys([*by_role.values(), *category_columns]))))
    rows, notes = _with_ids(table, ids, "item_id", path, words)
    read = rows.select(
        _ROW,
        pl.col(_ID).alias("item_id"),
        *(trimmed(raw_text(by_role[role], schema[by_role[role]], path), words).alias(role) for role in texts),
        *(pl.lit(None, pl.String).alias(role) for role in ("title", "description") if role not in by_role),
    )
    categories = _categories(rows, category_columns, columns.category_separator, path, words)
    names = read_category_names(columns.category_names, scratch, words)
    notes += _unknown_notes(names, categories)
    categories = categories.with_columns(pl.col("category").replace(names))
    given = {role: raw_text(by_role[role], schema[by_role[role]], path).str.strip_chars() != "" for role in texts}
    notes += _word_notes(read, rows.select(expression.alias(role) for role, expression in given.items()))
    merged, merge_notes = _one_row_each(read.drop(_ROW), "item_id", "the item table", joined=", categories are joined")
    by_item = (
        categories.join(read.select(_ROW, "item_id"), on=_ROW, maintain_order="left")
        .group_by("item_id", maintain_order=True)
        .agg(pl.col("category").unique(maintain_order=True))
    )
    with_categories = merged.join(by_item, on="item_id", how="left", maintain_order="left")
    more = [role for role in _OPTIONAL if role in by_role]
    items = with_categories.select("item_id", "title", pl.col("category").fill_null([]), "description", *more)
    return _id_table(items, rows, (*notes, *merge_notes), opened)


def read_users(path: Path, columns: UserColumns, scratch: Path, words: Collection[str] = MISSING_WORDS) -> IdTable:
    """The user table: user_id, then its other columns, the labels, texts without blanks around and null if missing.

    Of a user in several rows, the first label that is not missing counts. Raises LogError as `read_items` does.
    """
    opened = open_table(path, scratch)
    names = column_names(opened.frame)
    by_role = find_columns(names, columns.model_dump(), ("user_id",), "users", str(path))
    require_columns(by_role, names, ("user_id",), "users", str(path))
    table = _collected(opened, opened.frame)
    rows, notes = _with_ids(table, by_role["user_id"], "user_id", path, words)
    labels = [name for name in names if name not in (by_role["user_id"], "user_id")]
    if "user_id" in names and by_role["user_id"] != "user_id":
        notes.append(f"the column `user_id` of {path.name} is no label: the ids are in `{by_role['user_id']}`")
    read = rows.select(pl.col(_ID).alias("user_id"), *(_label(name, rows.schema[name], words) for name in labels))
    merged, merge_notes = _one_row_each(read, "user_id", "the user table")
    return _id_table(merged, rows, (*notes, *merge_notes), opened)


def _item_columns(names: Sequence[str], columns: ItemColumns, path: Path) -> tuple[dict[str, str], list[str]]:
    """The columns of item_id, title and description by role, and those of categories."""
    several = list(columns.category) if isinstance(columns.category, tuple) else None
    configured = columns.model_dump(include={"item_id", "title", "description"})
    configured["category"] = None if several else columns.category
    roles = ("item_id", "title", "description", *(() if several else ("category",)))
    for role in _OPTIONAL:
        if (name := getattr(columns, role)) is not None:
            configured, roles = configured | {role: name}, (*roles, role)
    by_role = find_columns(names, configured, roles, "items", str(path))
    if "title" not in by_role and "description" in by_role and columns.title is not False:
        by_role["title"] = by_role.pop("description")
    require_columns(by_role, names, ("item_id",), "items", str(path))
    for name in several or []:
        find_columns(names, {"category": name}, ("category",), "items", str(path))
    one = by_role.pop("category", None)
    return by_role, several or ([one] if one else [])


def _with_ids(
    table: pl.DataFrame, column: str, role: str, path: Path, words: Collection[str]
) -> tuple[pl.DataFrame, list[str]]:
    """The rows that have an id, with the columns `_ROW` and `_ID`, and notes.

    Raises LogError that names the first rows with a value that is no id.
    """
    dtype = table.schema[column]
    if is_ndjson(path):  # where a text may have been true, a list or an object
        dtype, table = (
            pl.String(),
            table.with_columns(pl.Series(column, _json_ids(path, column, role, words), pl.String)),
        )
    read = id_of(column, dtype, path, words)
    numbered = pl.int_range(1, pl.len() + 1, dtype=pl.UInt32).alias(_ROW)
    bad = table.select(numbered.filter(unreadable_ids(column, dtype))).to_series()
    if len(bad):
        kind = "bytes that are no UTF-8 text" if dtype == pl.Binary else "floats too large or too near to 0"
        raise LogError(
            f"The column `{column}` ({role}) of {path} has {kind} in {len(bad):,} rows, the first in row {bad[0]:,}; "
            "save it as text."
        )
    rows = table.with_columns(numbered, read.alias(_ID)).filter(pl.col(_ID).is_not_null())
    named = ", ".join(f"{row:,}" for row in _lost(rows, len(table)))
    missing = len(table) - len(rows)
    more = ", …" if missing > named.count(", ") + 1 else ""
    return rows, [f"{missing:,} rows of {path.name} have no {role} and are left out (row {named}{more})"] * bool(
        missing
    )


def _json_ids(path: Path, column: str, role: str, words: Collection[str]) -> Iterator[str | None]:
    """The ids of an NDJSON file, each value by its own type. Raises LogError that names the first bad line."""
    with readable(path):
        for line, values in json_rows(path):
            try:
                yield id_of_value(values.get(column), words)
            except Unreadable as error:
                raise Refused(f"{path}, line {line:,}: the column `{column}` ({role}) {error}") from None


def _collected(table: Table, frame: pl.LazyFrame) -> pl.DataFrame:
    with readable(table.path):
        read = frame.collect()
    check_row_count(table.path, table.row_count, len(read))
    return read


def _lost(rows: pl.DataFrame, row_count: int) -> tuple[int, ...]:
    """The first numbers of rows that `rows` lacks."""
    numbers = pl.int_range(1, row_count + 1, dtype=pl.UInt32, eager=True)
    return lowest([numbers.filter(~numbers.is_in(rows[_ROW].implode()))])


def _id_table(merged: pl.DataFrame, rows: pl.DataFrame, notes: tuple[str, ...], table: Table) -> IdTable:
    """The table of `merged` rows, one per id, that came from the `rows` with an id."""
    account = TableRows(
        file=table.path.name,
        rows_in=table.row_count,
        rows_dropped=table.row_count - len(rows),
        first_rows=_lost(rows, table.row_count),
        rows_merged=len(rows) - len(merged),
        ids=len(merged),
    )
    return IdTable(merged, rows.unique(_ID, keep="first", maintain_order=True)[_ROW], notes, account)


def _one_row_each(table: pl.DataFrame, role: str, name: str, joined: str = "") -> tuple[pl.DataFrame, list[str]]:
    """One row per id, with the first value of each column that is not null, and notes."""
    counts = table.group_by(role, maintain_order=True).agg(pl.all().drop_nulls().n_unique())
    doubled = len(table) - len(counts)
    if not doubled:
        return table, []
    columns = [column for column in table.columns if column != role]
    repeated = table.filter(pl.col(role).is_duplicated())[role].unique(maintain_order=True)
    shown = ", ".join(f"`{key}`" for key in repeated.head(_SHOWN)) + (", …" if len(repeated) > _SHOWN else "")
    differing = [f"{int((counts[column] > 1).sum()):,} in {column}" for column in columns if (counts[column] > 1).any()]
    unequal = f"; they differ: {', '.join(differing)}" if differing else ""
    note = (
        f"{len(repeated):,} ids are in several rows of {name} ({shown}): the first value of each column counts"
        f"{joined}{unequal}"
    )
    merged = table.group_by(role, maintain_order=True).agg(pl.col(columns).drop_nulls().first())
    return merged.select(table.columns), [note]


def _word_notes(read: pl.DataFrame, given: pl.DataFrame) -> list[str]:
    """A note on texts that are words for nothing; `given` (rows of `read`) tells which texts are not empty."""
    counts = {role: int((given[role].fill_null(False) & read[role].is_null()).sum()) for role in given.columns}
    said = [f"{count:,} {role}s" for role, count in counts.items() if count]
    return [f"{' and '.join(said)} of the item table are words for nothing, such as `nan`: they are missing"] * bool(
        said
    )


def _unknown_notes(names: Mapping[str, str], categories: pl.DataFrame) -> list[str]:
    """A note on names of categories that no item has, since such a category may be misspelt."""
    unknown = sorted(names.keys() - set(categories["category"].unique()))
    shown = ", ".join(f"`{name}`" for name in unknown[:_SHOWN]) + (", …" if len(unknown) > _SHOWN else "")
    return [f"{len(unknown):,} of the [items] category_names are no categories of an item: {shown}"] * bool(unknown)


def _label(column: str, dtype: pl.DataType, words: Collection[str]) -> pl.Expr:
    if dtype == pl.String:
        return trimmed(pl.col(column), words).alias(column)
    return pl.col(column).fill_nan(None) if dtype.is_float() else pl.col(column)


def _categories(
    rows: pl.DataFrame, columns: Sequence[str], separator: str, path: Path, words: Collection[str]
) -> pl.DataFrame:
    """Columns `_ROW` and `category`: every category of every row, ordered by row, then by column and place."""
    parts = [_of_column(rows.select(_ROW, column), column, separator, path) for column in columns]
    empty = pl.DataFrame(schema={_ROW: pl.UInt32, "category": pl.String})
    read = pl.concat([empty, *parts]).with_columns(id_of_text(pl.col("category"), words))
    return read.drop_nulls("category").sort(_ROW, maintain_order=True)


def _of_column(table: pl.DataFrame, column: str, separator: str, path: Path) -> pl.DataFrame:
    is_list = False
    while isinstance(table.schema[column], pl.List | pl.Array):
        table, is_list = table.explode(column), True
    texts = table.select(_ROW, raw_text(column, table.schema[column], path).alias("category")).drop_nulls("category")
    written = dict(_written_lists(texts, column, path))
    if written:
        replaced = texts["category"].replace_strict(written, default=None, return_dtype=pl.List(pl.String))
    else:
        replaced = pl.Series([None], dtype=pl.List(pl.String)).new_from_index(0, len(texts))
    plain = pl.concat_list("category") if is_list else pl.col("category").str.split(separator)
    return texts.select(_ROW, pl.coalesce(replaced, plain).alias("category")).explode("category")


def _written_lists(texts: pl.DataFrame, column: str, path: Path) -> Iterator[tuple[str, list[str]]]:
    """Texts that are lists, such as `['Home', 'Light']`, with their parts."""
    begins = texts["category"].str.strip_chars_start().str.contains(r"^[\[({]")
    for row, text in texts.filter(begins).unique("category", maintain_order=True).rows():
        try:
            parts = listed(text)
        except ValueError:
            raise LogError(
                f"The column `{column}` (category) of {path}, row {row:,}, looks like a list that is cut off or "
                f"wrong: `{text[:60]}`. Write categories as JSON lists, or as one text with separators."
            ) from None
        if parts is not None:
            yield text, parts
