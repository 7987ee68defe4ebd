"""One rule for times: numbers of any unit, dates and texts become whole milliseconds since 1970, cut off, not rounded.

The rule for one value is here. A column of many rows is read by the same constants (`UNITS`, `COMPACT_DIGITS`, `TEXT`),
and has two more readings, because other rows show what is meant: small numbers can be an order or Excel's days.
"""

import re
from collections.abc import Collection
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta, timezone, tzinfo
from decimal import Decimal, InvalidOperation

from segrec.reading.refusals import OutOfRange, Unreadable, shown
from segrec.reading.values import NUMBER
from segrec.reading.words import BLANKS, MISSING_WORDS

SMALLEST = 10**8
"""Smaller numbers are no time by themselves, but for dates such as 20240131: as seconds they end in March 1973."""
LATEST_MILLISECONDS = 7_258_118_400_000
"""The year 2200: times from here on are unreadable."""


@dataclass(frozen=True)
class Unit:
    """Numbers from `low` (inclusive) to `high` (exclusive) count ticks since 1970, which is the number `zero`."""

    name: str
    low: int
    high: int
    ticks_per_second: int
    zero: int = 0


UNITS = (
    Unit("FILETIME", 116_444_736_000_000_000, 157_784_544_000_000_000, 10**7, zero=116_444_736_000_000_000),
    Unit(".NET ticks", 621_355_968_000_000_000, 662_695_992_000_000_000, 10**7, zero=621_355_968_000_000_000),
    Unit("s", SMALLEST, 10**11, 1),
    Unit("ms", 10**11, 10**14, 10**3),
    Unit("µs", 10**14, 10**17, 10**6),
    Unit("ns", 10**17, LATEST_MILLISECONDS * 10**6, 10**9),
)
"""The unit of a number is the first whose range holds it; a compact date goes before them all."""

COMPACT_DIGITS = {8: "%Y%m%d", 12: "%Y%m%d%H%M", 14: "%Y%m%d%H%M%S"}
"""Whole numbers of so many digits are dates of this form, where they are valid, from 1970 to 2100."""
COMPACT_YEARS = (1970, 2100)

EXCEL_DAYS = (25_569, 73_051)
"""Excel's numbers of the days from 1970-01-01 to 2099-12-31, the second one exclusive."""

_CLOCK = r"(?P<{0}h>[0-9]{{1,2}})(?::(?P<{0}m>[0-9]{{1,2}})(?::(?P<{0}s>[0-9]{{1,2}})(?:[.,](?P<{0}f>[0-9]+))?)?)?"
_ZONE = r"(?P<{0}zone> *(?:Z|UTC|GMT|[+-][0-9]{{2}}(?::?[0-9]{{2}})?))?"
TEXT = (
    r"(?i)^(?:(?P<year>[0-9]{4})(?:-(?P<month>[0-9]{1,2})-(?P<day>[0-9]{1,2})"
    r"|/(?P<slash_month>[0-9]{1,2})/(?P<slash_day>[0-9]{1,2})"
    r"|年(?P<cn_month>[0-9]{1,2})月(?P<cn_day>[0-9]{1,2})日)"
    r"(?:(?:T| +)" + (_CLOCK + _ZONE).format("") + r")?"
    r"|(?P<basic>[0-9]{8})(?:T| +)"
    r"(?P<bh>[0-9]{2})(?:(?P<bm>[0-9]{2})(?:(?P<bs>[0-9]{2})(?:[.,](?P<bf>[0-9]+))?)?)?" + _ZONE.format("b") + r")$"
)
"""Texts that are times without a setting: ISO 8601 in its usual forms, with slashes, and Chinese dates."""

FORMAT_DIRECTIVES = frozenset("YymdBbjHIMSfpzAa%")
"""The directives that a format may hold, as in Python's `strptime`. %Z is none: its names differ between machines."""

_NUMBER = re.compile(f"{NUMBER.removesuffix('$')}\\Z")
_TEXT = re.compile(f"{TEXT.removesuffix('$')}\\Z")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND = timedelta(milliseconds=1)
_MOST_DIGITS = 40


def zone_of(name: str) -> tzinfo:
    """The time zone of an IANA name such as Asia/Shanghai. Raises Unreadable for an unknown name."""
    if name.upper() == "UTC":
        return UTC
    from zoneinfo import ZoneInfo  # slow to import, and rarely needed

    try:
        return ZoneInfo(name)
    except (OSError, ValueError, KeyError):  # a folder, an absolute path, an unknown name
        raise Unreadable(f"{shown(name)} is no time zone: give an IANA name such as Asia/Shanghai or UTC") from None


def check_format(form: str) -> None:
    """Raise Unreadable unless the format has known directives, and among them year, month and day."""
    found = re.findall(r"%(.?)", form, flags=re.DOTALL)
    unknown = [letter for letter in found if letter not in FORMAT_DIRECTIVES]
    if unknown:
        known = " ".join(f"%{letter}" for letter in sorted(FORMAT_DIRECTIVES))
        raise Unreadable(f"{shown(form)} holds %{unknown[0]}, which is no directive: the directives are {known}")
    has_day = "j" in found or ("d" in found and {"m", "b", "B"} & {*found})
    if not ({"Y", "y"} & {*found} and has_day):
        raise Unreadable(f"{shown(form)} lacks the year, month or day: write them as %Y, %m and %d")


def milliseconds_of(
    value: object, *, form: str | None = None, zone: tzinfo = UTC, words: Collection[str] = MISSING_WORDS
) -> int | None:
    """Whole milliseconds since 1970 of one value, 0 to the year 2200; None if it is missing.

    Texts are read by `form` (`strptime` directives) alone where it is given. `zone` is that of times without one; of
    an hour that a zone has twice, the first is meant. Raises Unreadable, which says what is wrong.
    """
    if value is None:
        return None
    if isinstance(value, str):
        text = value.strip(BLANKS)
        return None if text.lower() in words else _in_range(_of_text(text, form, zone), value)
    if isinstance(value, datetime):
        return _in_range(_of_moment(value, zone, value), value)
    if isinstance(value, date):
        return _in_range(_of_moment(datetime(value.year, value.month, value.day), zone, value), value)
    if isinstance(value, float) and value != value:
        return None
    if isinstance(value, int | float | Decimal) and not isinstance(value, bool):
        return _in_range(_of_number(_exact(value), zone, value), value)
    raise _no_time(value)


def is_compact(number: int) -> bool:
    """Whether the number is a date such as 20240131, 202401311230 or 20240131123059."""
    return _compact(str(number)) is not None


def _of_text(text: str, form: str | None, zone: tzinfo) -> int:
    if form is not None:
        return _of_format(text, form, zone)
    if len(text) <= _MOST_DIGITS and _NUMBER.match(text):
        if text.isdecimal():
            return _of_number(int(text), zone, text)
        try:
            number = Decimal(text)
        except InvalidOperation:  # an exponent of twenty digits
            raise _no_time(text) from None
        return _of_number(number, zone, text)
    match = _TEXT.match(text)
    if match is None:
        raise _no_time(text)
    parts = {name: part for name, part in match.groupdict().items() if part is not None}
    return _of_parts(parts, zone, text)


def _of_parts(parts: dict[str, str], zone: tzinfo, text: str) -> int:
    if basic := parts.get("basic"):
        year, month, day, prefix = basic[:4], basic[4:6], basic[6:], "b"
    else:
        kind = next(kind for kind in ("", "slash_", "cn_") if f"{kind}month" in parts)
        year, month, day, prefix = parts["year"], parts[f"{kind}month"], parts[f"{kind}day"], ""
    hour, minute, second = (int(parts.get(f"{prefix}{name}", 0)) for name in "hms")
    if hour > 23 or minute > 59 or second > 60:  # a leap second is the first of the next minute
        raise _no_time(text)
    thousandths = int(parts.get(f"{prefix}f", "0").ljust(3, "0")[:3])
    try:
        moment = datetime(int(year), int(month), int(day), hour, minute)
    except ValueError:
        raise _no_time(text) from None
    offset = _offset(parts.get(f"{prefix}zone", ""), zone, text)
    return _of_moment(moment, offset, text) + second * 1000 + thousandths


def _offset(text: str, zone: tzinfo, whole: str) -> tzinfo:
    text = text.strip().upper().replace(":", "")
    if not text:
        return zone
    if text in ("Z", "UTC", "GMT"):
        return UTC
    hours, minutes = int(text[1:3]), int(text[3:] or 0)
    if hours > 23 or minutes > 59:
        raise _no_time(whole)
    return timezone(timedelta(hours=hours, minutes=minutes) * (-1 if text[0] == "-" else 1))


def _of_format(text: str, form: str, zone: tzinfo) -> int:
    try:
        moment = datetime.strptime(text, form)
    except ValueError:
        raise Unreadable(f"{shown(text)} is no time of the form {form}") from None
    return _of_moment(moment, zone, text)


def _of_number(number: int | Decimal, zone: tzinfo, value: object) -> int:
    if isinstance(number, Decimal):
        if not number.is_finite():
            raise _no_time(value)
        if 0 < number < LATEST_MILLISECONDS * 10 and number == int(number):
            number = int(number)
    if isinstance(number, int):
        moment = _compact(str(number))
        if moment is not None:
            return _of_moment(moment, zone, value)
    for unit in UNITS:
        if unit.low <= number < unit.high:
            return int((number - unit.zero) * 1000 // unit.ticks_per_second)
    why = "is too small a number for a time" if number < SMALLEST else "lies after the year 2200"
    raise OutOfRange(f"{shown(value)} {why}: give ISO 8601, or seconds, ms, µs or ns since 1970")


def _compact(digits: str) -> datetime | None:
    form = COMPACT_DIGITS.get(len(digits))
    if form is None or not COMPACT_YEARS[0] <= int(digits[:4]) <= COMPACT_YEARS[1]:
        return None
    parts = [int(digits[:4]), *(int(digits[start : start + 2]) for start in range(4, len(digits), 2))]
    try:
        return datetime(*parts)  # type: ignore[arg-type]
    except ValueError:
        return None


def _exact(number: int | float | Decimal) -> int | Decimal:
    """The number as people see it: the float 1700000000.123 has 123 milliseconds, not 122.9999."""
    return Decimal(repr(number)) if isinstance(number, float) else number


def _of_moment(moment: datetime, zone: tzinfo, value: object) -> int:
    if moment.tzinfo is None:
        local = moment.replace(tzinfo=zone)
        try:
            moment = local.astimezone(UTC)
            exists = moment.astimezone(zone).replace(tzinfo=None) == local.replace(tzinfo=None)
        except OverflowError:
            exists = False
        if not exists:
            raise Unreadable(f"{shown(value)} does not exist in the time zone {zone}")
    return (moment - _EPOCH) // _MILLISECOND


def _in_range(milliseconds: int, value: object) -> int:
    if milliseconds < 0:
        raise OutOfRange(f"{shown(value)} lies before 1970")
    if milliseconds >= LATEST_MILLISECONDS:
        raise OutOfRange(f"{shown(value)} lies after the year 2200")
    return milliseconds


def _no_time(value: object) -> Unreadable:
    return Unreadable(f"{shown(value)} is no time: give ISO 8601, or seconds, ms, µs or ns since 1970")
