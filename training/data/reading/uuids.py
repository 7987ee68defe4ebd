"""UUIDs of tables as texts; Polars knows them as bytes."""

from collections.abc import Iterable

import polars as pl

_PARTS = ((0, 8), (8, 4), (12, 4), (16, 4), (20, 12))
"""Start and length of the groups of digits."""


def uuid_text(name: str) -> pl.Expr:
    """A column of 16 bytes each as `segrec.reading.uuids.uuid_text` writes them."""
    digits = pl.col(name).bin.encode("hex")
    return pl.concat_str([digits.str.slice(*part) for part in _PARTS], separator="-").alias(name)


def with_uuid_texts(frame: pl.LazyFrame, names: Iterable[str]) -> pl.LazyFrame:
    """The frame with these columns of UUIDs as texts."""
    return frame.with_columns(uuid_text(name) for name in names)
