"""Ids of columns: the same as the client's rule for one value."""

from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from segrec.reading.ids import id_of as id_of_value
from segrec.reading.refusals import Unreadable
from segrec.reading.words import missing_words

from tests.unit.segrec.reading.test_ids import TEXTS
from training.data.reading.ids import id_of, unreadable_ids
from training.errors import LogError

HERE = Path("items.parquet")
WORDS = [*(text for text, _ in TEXTS), " NULL ", "nan", "None", "\\N", "-", "<NA>", "", "  ", "nano"]


def read(column: pl.Series, **words: Any) -> list[str | None]:
    frame = column.to_frame("id")
    assert not frame.select(unreadable_ids("id", column.dtype)).to_series().any()
    return frame.select(id_of("id", column.dtype, HERE, **words)).to_series().to_list()


@pytest.mark.parametrize(
    "values",
    [
        pl.Series(WORDS),
        pl.Series(WORDS, dtype=pl.Categorical),
        pl.Series([42, 7, None]),
        pl.Series([42.0, -0.0, 1.5, None, float("nan"), 2.0**53 - 1, 123_456.75, 0.0001, -0.00012]),
        pl.Series([2**64 - 1], dtype=pl.UInt64),
        pl.Series([Decimal("17850.00"), Decimal("0.50")]),
        pl.Series([b" u1 ", "用户".encode(), b"NULL", None]),
        pl.Series([None, None]),
    ],
    ids=lambda values: str(values.dtype),
)
def test_a_column_is_read_as_its_values_are(values: pl.Series) -> None:
    assert read(values) == [id_of_value(value) for value in values.to_list()]


def test_own_words() -> None:
    assert read(pl.Series(["NULL", "x", " "]), words=missing_words(["x"])) == ["NULL", None, None]


def test_rows_without_a_readable_id() -> None:
    floats = pl.Series([1e16, 2.0**53, float("inf"), 1.0]), pl.Series([1e-7, -9.9e-5, 5e-324, 1.0])
    for column in (*floats, pl.Series([b"\xff", b"\xfe\x00", b"\xe7", b"1"])):
        bad = column.to_frame("id").select(unreadable_ids("id", column.dtype)).to_series()
        assert bad.to_list() == [True, True, True, False]
        assert column.to_frame("id").select(id_of("id", column.dtype, HERE)).to_series()[3] == "1"
        for value in column[:3]:
            with pytest.raises(Unreadable):
                id_of_value(value)


@pytest.mark.parametrize(
    ("column", "kind"),
    [
        (pl.Series([True]), "true and false"),
        (pl.Series([["a"]]), "lists"),
        (pl.Series([{"a": 1}]), "objects"),
        (pl.Series([date(2024, 1, 31)]), "times"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_no_id_is_refused_with_the_column(column: pl.Series, kind: str) -> None:
    with pytest.raises(LogError, match=rf"The column `id` of items\.parquet holds {kind}, not ids"):
        id_of("id", column.dtype, HERE)
    with pytest.raises(Unreadable):
        id_of_value(column[0] if kind != "lists" else ["a"])
