"""One rule for ids of users and items, and for names of actions."""

import re
from collections.abc import Collection
from decimal import Decimal

from segrec.reading.refusals import Unreadable, shown
from segrec.reading.words import BLANKS, MISSING_WORDS

WHOLE_FLOAT = r"^(?:-?(0)|(-?[1-9][0-9]*))\.0+$"
"""A whole number that a tool wrote as a float, such as 17850.0; in Python's and in Polars' regular expressions."""
WHOLE_FLOAT_DIGITS = "${1}${2}"
"""Polars' replacement of `WHOLE_FLOAT`: the digits before the point."""
LARGEST_WHOLE_FLOAT = 2.0**53
"""A float of this size or more no longer tells neighbouring ids apart."""
SMALLEST_FRACTION = 1e-4
"""Floats nearer to 0 are written with an exponent, which every tool spells in its own way."""

_WHOLE_FLOAT = re.compile(WHOLE_FLOAT.removesuffix("$") + r"\Z")


def id_of(value: object, words: Collection[str] = MISSING_WORDS) -> str | None:
    """The id as text without blanks around; None if it is missing.

    Whole floats are integers, as number and as text: 17850.0 gives `17850`. Texts with leading zeros or an exponent
    stay as they are. Raises Unreadable for booleans, lists, objects, dates, bytes that are not UTF-8, and floats that
    are too large or too near to 0.
    """
    if isinstance(value, str):
        return _of_text(value, words)
    if value is None:
        return None
    if isinstance(value, bool):
        raise Unreadable(f"is {str(value).lower()}, not an id")
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        return _of_float(value)
    if isinstance(value, Decimal):
        return _of_text(f"{value:f}", words)
    if isinstance(value, bytes):
        return _of_text(_decoded(value), words)
    kind = {"list": "a list", "dict": "an object"}.get(type(value).__name__, f"a {type(value).__name__}")
    raise Unreadable(f"is {kind}, not an id: {shown(value)}")


def _of_text(text: str, words: Collection[str]) -> str | None:
    text = text.strip(BLANKS)
    if text.lower() in words:
        return None
    return _WHOLE_FLOAT.sub(r"\1\2", text) if text.endswith("0") else text


def _of_float(number: float) -> str | None:
    if number != number:
        return None
    if abs(number) >= LARGEST_WHOLE_FLOAT:
        raise Unreadable(f"is the float {number:g}, too large to tell ids apart: save the column as text or integers")
    if 0 < abs(number) < SMALLEST_FRACTION:
        raise Unreadable(f"is the float {number:g}, too near to 0 for an id: save the column as text or integers")
    return str(int(number)) if number.is_integer() else repr(number)


def _decoded(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise Unreadable(f"is binary data, not an id: {data[:16].hex()}") from None
