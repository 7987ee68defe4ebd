"""Numbers and lists as text: percentages, counts, lists of segments. Both reports use these functions."""

from collections.abc import Sequence

from humanize import natural_list


def percent(share: float, digits: int = 0) -> str:
    """0.123 is 12 %; a positive share that would round to 0 is `< 1 %`, or less with more digits."""
    smallest = 10.0 ** -(digits + 2)
    return f"<\xa0{100 * smallest:g}\xa0%" if 0 < share < smallest / 2 else f"{100 * share:.{digits}f}\xa0%"


def signed_percent(change: float) -> str:
    """0.2 is +20 %; what rounds to 0 has no sign."""
    number = f"{100 * abs(change):.0f}"
    sign = "" if number == "0" else "+" if change > 0 else "−"
    return f"{sign}{number}\xa0%"


def count(number: float) -> str:
    """1234 is 1,234."""
    return f"{number:,.0f}"


def figure(number: float) -> str:
    """Three significant digits; whole numbers from 100 on."""
    return f"{number:,.0f}" if abs(number) >= 100 else f"{number:.3g}"


def segments_in_words(ids: Sequence[int]) -> str:
    """`segment 3` or `segments 3 and 9`."""
    return ("segment " if len(ids) == 1 else "segments ") + natural_list([*ids])
