"""Names in words for the categories of an item table, from the configuration or from a table of two columns."""

from collections.abc import Collection, Mapping
from pathlib import Path

import polars as pl

from training.data.reading.ids import raw_text, trimmed
from training.data.reading.tables import column_names, readable, scan_table
from training.errors import LogError

_COLUMNS = ("category", "name")


def read_category_names(names: Mapping[str, str] | Path, scratch: Path, words: Collection[str]) -> dict[str, str]:
    """The name of each category, by the category as the item table writes it.

    A table has the columns `category` and `name`; rows without one of them are left out. Raises LogError as
    `scan_table` does, for a missing column, and for a category with two names.
    """
    if not isinstance(names, Path):
        return dict(names)
    frame = scan_table(names, scratch)
    found = column_names(frame)
    if missing := [column for column in _COLUMNS if column not in found]:
        raise LogError(
            f"{names} lacks the column {' and '.join(missing)}; [items] category_names needs a table with the columns "
            "category and name."
        )
    schema = frame.collect_schema()
    with readable(names):
        table = frame.select(_COLUMNS).collect()
    texts = table.select(trimmed(raw_text(column, schema[column], names), words).alias(column) for column in _COLUMNS)
    rows = texts.drop_nulls().unique(maintain_order=True)
    if twice := rows.filter(pl.col("category").is_duplicated())["category"].unique(maintain_order=True).to_list():
        raise LogError(f"{names} gives the category `{twice[0]}` two names; leave one of them.")
    return dict(rows.iter_rows())
