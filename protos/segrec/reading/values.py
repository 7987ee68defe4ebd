"""One rule for the value of an event: a price, rating, amount or quantity."""

import re
from collections.abc import Collection
from decimal import Decimal

from segrec.reading.refusals import Unreadable, shown
from segrec.reading.words import BLANKS, MISSING_WORDS

NUMBER = r"^[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?$"
"""A decimal number with a point, without separators of thousands; Python's and Polars' regular expressions agree."""
INFINITE = r"^[+-]?(?i:inf|infinity)$"
"""An infinite number as text. It is read as a number; cleaning drops the event, and the server refuses it."""

_NUMBER = re.compile(f"{NUMBER.removesuffix('$')}\\Z")
_INFINITE = re.compile(f"{INFINITE.removesuffix('$')}\\Z")


def number_of(value: object, words: Collection[str] = MISSING_WORDS) -> float | None:
    """The number; None if it is missing. true and false are 1 and 0. Raises Unreadable."""
    if value is None:
        return None
    if isinstance(value, int | float | Decimal):
        try:
            number = float(value)
        except OverflowError:
            raise Unreadable(f"{shown(value)} is too large a number") from None
        return None if number != number else number
    if isinstance(value, str):
        text = value.strip(BLANKS)
        if text.lower() in words:
            return None
        if _NUMBER.match(text) or _INFINITE.match(text):
            return float(text)
    raise Unreadable(f"{shown(value)} is not a number")
