"""One rule for ids."""

from datetime import date
from decimal import Decimal

import polars as pl
import pytest
from segrec.reading.ids import WHOLE_FLOAT, WHOLE_FLOAT_DIGITS, id_of
from segrec.reading.refusals import Unreadable
from segrec.reading.words import missing_words

TEXTS = [
    ("17850.0", "17850"),
    ("17850.00", "17850"),
    (" 17850.0\u00a0", "17850"),
    ("-3.0", "-3"),
    ("0.0", "0"),
    ("-0.0", "0"),
    ("17850", "17850"),
    ("007", "007"),
    ("007.0", "007.0"),
    ("17850.50", "17850.50"),
    ("10", "10"),
    ("1.2E+11", "1.2E+11"),
    ("1.0.0", "1.0.0"),
    ("10.0\n", "10"),
    ("v2.0", "v2.0"),
    ("Ünï 用户", "Ünï 用户"),
    ("12345678901234567890.0", "12345678901234567890"),
]


@pytest.mark.parametrize(("text", "expected"), TEXTS)
def test_texts(text: str, expected: str) -> None:
    assert id_of(text) == expected


def test_polars_says_the_same_by_the_same_expression() -> None:
    texts = pl.Series([text for text, _ in TEXTS]).str.strip_chars()
    assert texts.str.replace(WHOLE_FLOAT, WHOLE_FLOAT_DIGITS).to_list() == [expected for _, expected in TEXTS]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (42, "42"),
        (42.0, "42"),
        (-0.0, "0"),
        (1.5, "1.5"),
        (0.0001, "0.0001"),
        (-0.00012, "-0.00012"),
        (float(2**53 - 1), "9007199254740991"),
        (12345678901234567890, "12345678901234567890"),
        (Decimal("17850.00"), "17850"),
        (b" u1 ", "u1"),
        (None, None),
        (float("nan"), None),
        ("NULL", None),
        ("nan", None),
        (b"\\N", None),
    ],
)
def test_other_values(value: object, expected: str | None) -> None:
    assert id_of(value) == expected


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (True, "is true, not an id"),
        (["x"], r"is a list, not an id: \"\['x'\]\""),
        ({"a": 1}, "is an object, not an id"),
        (date(2024, 1, 1), "is a date, not an id"),
        (2.0**53, "too large to tell ids apart"),
        (float("inf"), "too large to tell ids apart"),
        (1e-7, "is the float 1e-07, too near to 0 for an id"),
        (-9.9e-5, "too near to 0"),
        (b"\xff\x00", "is binary data, not an id: ff00"),
    ],
)
def test_what_is_no_id_is_refused(value: object, message: str) -> None:
    with pytest.raises(Unreadable, match=message):
        id_of(value)


def test_words_can_be_real_ids_when_told() -> None:
    assert id_of("None", missing_words([])) == "None"
