"""Ids and other texts of a table's column, as Polars expressions of the rules in `segrec.reading`."""

from collections.abc import Collection

import polars as pl
from segrec.reading.ids import LARGEST_WHOLE_FLOAT, SMALLEST_FRACTION, WHOLE_FLOAT, WHOLE_FLOAT_DIGITS
from segrec.reading.words import MISSING_WORDS

from server.core.history import ID_MAX_BYTES
from training.data.reading.sources import Log
from training.errors import LogError

_CONTROL = r"[\x00-\x1f\x7f]"


def id_of(column: str, dtype: pl.DataType, path: Log, words: Collection[str] = MISSING_WORDS) -> pl.Expr:
    """`segrec.reading.ids.id_of` of a column; null where an id is missing, and in rows of `unreadable_ids`.

    Raises LogError, which names `path` and the column, for a type that holds no ids.
    """
    return id_of_text(raw_text(column, dtype, path), words)


def unreadable_ids(column: str, dtype: pl.DataType) -> pl.Expr:
    """Which rows of a column have a value that is no id: floats too large or too near to 0, and bytes without text."""
    raw = pl.col(column)
    if dtype.is_float():
        size = raw.fill_nan(None).abs()
        return ((size >= LARGEST_WHOLE_FLOAT) | ((size > 0) & (size < SMALLEST_FRACTION))).fill_null(False)
    if dtype == pl.Binary:
        return raw.is_not_null() & _decoded(raw).is_null()
    return pl.lit(False)


def unusable_ids(ids: pl.Expr) -> pl.Expr:
    """Which ids the API refuses: those longer than `ID_MAX_BYTES` in UTF-8, and those with control characters."""
    return (ids.str.len_bytes() > ID_MAX_BYTES) | ids.str.contains(_CONTROL)


def id_of_text(text: pl.Expr, words: Collection[str] = MISSING_WORDS) -> pl.Expr:
    """Ids from texts: blanks are cut off, words that mean nothing are null, and 17850.0 becomes 17850."""
    return trimmed(text, words).str.replace(WHOLE_FLOAT, WHOLE_FLOAT_DIGITS)


def trimmed(text: pl.Expr, words: Collection[str] = MISSING_WORDS) -> pl.Expr:
    """Texts without blanks around; null for words that mean nothing."""
    text = text.str.strip_chars()
    return pl.when(~text.str.to_lowercase().is_in(list(words))).then(text)


def raw_text(column: str, dtype: pl.DataType, path: Log) -> pl.Expr:
    """The values of a column as text; a whole float gives `17`, not `17.0`, and NaN is null.

    Raises LogError, which names `path` and the column, for booleans, lists, objects and times.
    """
    raw = pl.col(column)
    if dtype == pl.Boolean or dtype.is_nested() or dtype.is_temporal() or dtype == pl.Object:
        raise LogError(
            f"The column `{column}` of {path} holds {_kind(dtype)}, not ids or texts; choose another column."
        )
    if dtype.is_float():
        known = raw.fill_nan(None)
        whole = (known == known.floor()) & (known.abs() < LARGEST_WHOLE_FLOAT)
        return pl.when(whole).then(known.cast(pl.Int64, strict=False).cast(pl.String)).otherwise(known.cast(pl.String))
    return _decoded(raw) if dtype == pl.Binary else raw.cast(pl.String)


def _decoded(raw: pl.Expr) -> pl.Expr:
    """Bytes as UTF-8 text; null for other bytes."""
    return raw.map_batches(_decode, pl.String)


def _decode(column: pl.Series) -> pl.Series:
    try:
        return column.cast(pl.String)
    except pl.exceptions.ComputeError:  # some are no UTF-8: one by one
        return column.map_elements(_decode_one, pl.String)


def _decode_one(data: bytes) -> str | None:
    try:
        return data.decode()
    except UnicodeDecodeError:
        return None


def _kind(dtype: pl.DataType) -> str:
    if dtype == pl.Boolean:
        return "true and false"
    if dtype == pl.Struct:
        return "objects"
    return "lists" if dtype.is_nested() else "times" if dtype.is_temporal() else "Python objects"
