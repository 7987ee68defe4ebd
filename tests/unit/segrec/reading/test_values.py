"""One rule for values."""

import math
from decimal import Decimal

import pytest
from segrec.reading.refusals import Unreadable
from segrec.reading.values import number_of


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("5.75", 5.75),
        (" -3 ", -3.0),
        (".5", 0.5),
        ("5.", 5.0),
        ("1e3", 1000.0),
        ("1.7976931348623157E+308", 1.7976931348623157e308),
        ("inf", math.inf),
        ("-Infinity", -math.inf),
        ("1e999", math.inf),
        (5, 5.0),
        (Decimal("2.50"), 2.5),
        (True, 1.0),
        ("NULL", None),
        ("", None),
        (math.nan, None),
        (None, None),
    ],
)
def test_numbers(value: object, expected: float | None) -> None:
    assert number_of(value) == expected


@pytest.mark.parametrize("value", ["5,75", "1 000", "1_000", "£5", "many", "0x10", "\u0665", [1], "1e", "."])
def test_what_is_no_number_is_refused(value: object) -> None:
    with pytest.raises(Unreadable, match="is not a number"):
        number_of(value)
