"""Ids and other texts of a table's column, as Polars expressions."""

import polars as pl


def raw_text(column: str, dtype: pl.DataType) -> pl.Expr:
    """The column as text; a whole float gives `17`, not `17.0`, and NaN is null."""
    raw = pl.col(column)
    if dtype.is_float():
        whole = raw == raw.round()
        return (
            pl.when(whole)
            .then(raw.cast(pl.Int64, strict=False).cast(pl.String))
            .otherwise(raw.fill_nan(None).cast(pl.String))
        )
    return raw.cast(pl.String)


def trimmed_text(column: str, dtype: pl.DataType) -> pl.Expr:
    """Trimmed text, null if empty."""
    text = raw_text(column, dtype).str.strip_chars()
    return pl.when(text != "").then(text)
