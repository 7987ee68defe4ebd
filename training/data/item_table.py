"""Reads the item table and the user table."""

from pathlib import Path

import polars as pl

from training.config import ItemColumns, UserColumns
from training.data.columns import find_columns, require_columns
from training.data.ids import trimmed_text
from training.data.tables import column_names, readable, scan_table


def read_items(path: Path, columns: ItemColumns, scratch: Path) -> pl.DataFrame:
    """The item table, one row per item: item_id, title and description (text, null if empty), category (list of text).

    A table with a description column and no title column gets the descriptions as titles. Raises LogError as
    `read_raw_log` does.
    """
    frame = scan_table(path, scratch)
    names = column_names(frame)
    category = columns.category
    category_columns = list(category) if isinstance(category, tuple) else None
    configured = columns.model_dump(include={"item_id", "title", "description"})
    configured["category"] = None if category_columns else category
    roles = ("item_id", "title", "description", *(() if category_columns else ("category",)))
    by_role = find_columns(names, configured, roles, "items", str(path))
    if "title" not in by_role and "description" in by_role:
        by_role["title"] = by_role.pop("description")
    require_columns(by_role, names, ("item_id",), "items", str(path))
    for name in category_columns or []:
        find_columns(names, {"category": name}, ("category",), "items", str(path))
    list_columns = category_columns or ([by_role["category"]] if "category" in by_role else [])
    schema = frame.collect_schema()
    lists = [_categories(name, schema[name], columns.category_separator) for name in list_columns]
    title, description = (
        trimmed_text(by_role[role], schema[by_role[role]]) if role in by_role else pl.lit(None, pl.String)
        for role in ("title", "description")
    )
    with readable(path):
        table = frame.select(
            trimmed_text(by_role["item_id"], schema[by_role["item_id"]]).alias("item_id"),
            title.alias("title"),
            (pl.concat_list(lists) if lists else pl.lit([], pl.List(pl.String))).alias("category"),
            description.alias("description"),
        ).collect()
    return table.drop_nulls("item_id").unique("item_id", keep="first", maintain_order=True)


def read_users(path: Path, columns: UserColumns, scratch: Path) -> pl.DataFrame:
    """The user table, one row per user: user_id (text), then its other columns unchanged. Raises LogError."""
    frame = scan_table(path, scratch)
    names = column_names(frame)
    by_role = find_columns(names, columns.model_dump(), ("user_id",), "users", str(path))
    require_columns(by_role, names, ("user_id",), "users", str(path))
    id_column = by_role["user_id"]
    with readable(path):
        table = frame.select(
            trimmed_text(id_column, frame.collect_schema()[id_column]).alias("user_id"),
            pl.exclude(id_column, "user_id"),
        ).collect()
    return table.drop_nulls("user_id").unique("user_id", keep="first", maintain_order=True)


def _categories(column: str, dtype: pl.DataType, separator: str) -> pl.Expr:
    """A list of trimmed texts without empty ones."""
    column_list = pl.col(column) if isinstance(dtype, pl.List) else pl.col(column).cast(pl.String).str.split(separator)
    trimmed = column_list.cast(pl.List(pl.String)).list.eval(pl.element().str.strip_chars())
    return trimmed.list.eval(pl.element().filter(pl.element() != "")).fill_null([])
