"""Reads a column of numbers as times by the constants of `segrec.reading.times`: units, dates, Excel, an order."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import polars as pl
from segrec.reading.times import COMPACT_DIGITS, COMPACT_YEARS, EXCEL_DAYS, SMALLEST, UNITS, Unit

IMPOSSIBLE = -1
"""Milliseconds of what cannot be a time, such as 0 among dates; cleaning drops and counts times before 1970."""

EXACT_BELOW = 2.0**53
"""Floats from here on have no fractions, and not all whole numbers."""

_DAY_MS = 86_400_000
_SINCE_1970 = ("s", "ms", "µs", "ns")


class MixedTimes(ValueError):
    """A column of which some numbers are dates and others are not; `str(error)` ends a sentence about the column."""


@dataclass(frozen=True, slots=True)
class Times:
    """Milliseconds int64 (N,), null where a time is missing or unreadable, and why by row from 0 where unreadable.

    Without a clock the numbers only give the order. `notes` say what was recognised. `is_naive`: some name no zone.
    """

    milliseconds: pl.Series
    has_clock: bool
    notes: tuple[str, ...] = ()
    unreadable: Mapping[int, str] = field(default_factory=dict)
    is_naive: bool = False


def read_numbers(whole: pl.Series, real: pl.Series | None, zone: str) -> Times:
    """The times of numbers (N,): `whole` int64 and `real` float64, each null where the other has the number.

    Units are found row by row. If most positive numbers are too small for times, all are an order, unless they are
    dates such as 20240131 in the `zone`, or have fractions and lie within Excel's days. Raises MixedTimes for dates
    among other times.
    """
    if real is None:
        real = pl.Series([None], dtype=pl.Float64).new_from_index(0, len(whole))
    numbers = pl.DataFrame({"whole": whole, "real": real}).with_columns(
        size=pl.coalesce(pl.col("whole").cast(pl.Float64), "real")
    )
    size = numbers["size"]
    low, high = size.min(), size.max()
    if not isinstance(low, float) or not isinstance(high, float):
        return Times(whole, False)
    has_fractions = bool((real != real.floor()).any())
    if has_fractions and low >= EXCEL_DAYS[0] and high < EXCEL_DAYS[1]:
        days = ((size - EXCEL_DAYS[0]) * _DAY_MS).round(2).floor().cast(pl.Int64)
        return Times(localised(days, zone), True, ("times are days of Excel",), is_naive=True)
    digits, dates = _dates(numbers, high, zone)
    positive = size.filter(size > 0)
    is_order = positive.is_empty() or int((positive < SMALLEST).sum()) * 2 > len(positive)
    if is_order and int((digits == 8).sum()) * 2 <= len(positive):
        exact = not has_fractions and max(-low, high) < EXACT_BELOW
        return Times(size.cast(pl.Int64) if exact else size.rank("dense").cast(pl.Int64), False)
    return _of_dates(size, digits, dates, zone) if digits.count() else _since_1970(numbers, low, high)


def localised(milliseconds: pl.Series, zone: str) -> pl.Series:
    """Milliseconds of clocks in the zone as milliseconds since the epoch; null for an hour that the zone skips."""
    if zone == "UTC":
        return milliseconds
    moments = milliseconds.cast(pl.Datetime("ms"))
    return moments.dt.replace_time_zone(zone, ambiguous="earliest", non_existent="null").dt.epoch("ms")


def _since_1970(numbers: pl.DataFrame, low: float, high: float) -> Times:
    """Numbers that count from 1970, or from the first year of another system."""
    units = [unit for unit in UNITS if low < unit.high and high >= unit.low]
    milliseconds, name = pl.lit(IMPOSSIBLE, pl.Int64), pl.lit(None, pl.String)
    for unit in reversed(units):  # the first unit whose range holds a number wins
        inside = (pl.col("size") >= unit.low) & (pl.col("size") < unit.high)
        milliseconds = pl.when(inside).then(_milliseconds(unit, numbers)).otherwise(milliseconds)
        name = pl.when(inside).then(pl.lit(unit.name)).otherwise(name)
    read = numbers.select(pl.when(pl.col("size").is_not_null()).then(milliseconds)).to_series()
    if len(units) == 1:
        note = () if units[0].name in _SINCE_1970 else (f"times are {units[0].name}",)
        return Times(read, True, note)
    counts = numbers.select(name).to_series().drop_nulls().value_counts(sort=True).rows()
    shares = ", ".join(f"{unit} in {count:,} rows" for unit, count in counts)
    return Times(read, True, (f"times have several units: {shares}",) if len(counts) > 1 else ())


def _milliseconds(unit: Unit, numbers: pl.DataFrame) -> pl.Expr:
    """Whole milliseconds since 1970; of seconds with a fraction, the first three digits that people see."""
    ticks = pl.coalesce("whole", pl.col("real").floor().cast(pl.Int64, strict=False)) - unit.zero
    if unit.ticks_per_second > 1000:
        return ticks // (unit.ticks_per_second // 1000)
    milliseconds = ticks * (1000 // unit.ticks_per_second)
    if unit.ticks_per_second == 1 and numbers["real"].count():
        thousandths = pl.col("real").cast(pl.String).str.extract(r"\.([0-9]{1,3})").str.pad_end(3, "0")
        milliseconds += thousandths.cast(pl.Int64).fill_null(0)
    return milliseconds


def _dates(numbers: pl.DataFrame, high: float, zone: str) -> tuple[pl.Series, pl.Series]:
    """The number of digits of each number that is a date such as 20240131, else null, and its milliseconds."""
    digits = pl.Series([None], dtype=pl.Int8).new_from_index(0, len(numbers))
    milliseconds = pl.Series([None], dtype=pl.Int64).new_from_index(0, len(numbers))
    for count, form in COMPACT_DIGITS.items():
        if high < 10 ** (count - 1):
            break
        tens = 10 ** (count - 4)
        whole = pl.coalesce(
            "whole", pl.when(pl.col("real") == pl.col("real").floor()).then("real").cast(pl.Int64, strict=False)
        )
        fits = whole.is_between(COMPACT_YEARS[0] * tens, (COMPACT_YEARS[1] + 1) * tens - 1) & (whole % 100 < 60)
        rows = numbers.select(fits.fill_null(False).arg_true()).to_series()
        texts = numbers[rows].select(whole.cast(pl.String)).to_series()
        days = texts.str.to_datetime(form, strict=False, time_unit="ms").dt.epoch("ms")
        valid = days.is_not_null()
        rows, days = rows.filter(valid), days.filter(valid)
        digits, milliseconds = digits.scatter(rows, count), milliseconds.scatter(rows, localised(days, zone))
    return digits, milliseconds


def _of_dates(size: pl.Series, digits: pl.Series, dates: pl.Series, zone: str) -> Times:
    """Dates with one number of digits; smaller numbers among them are impossible times."""
    kind = int(digits.drop_nulls().mode().sort()[0])
    is_date = (digits == kind).fill_null(False)
    no_date = (~is_date & (size >= 10 ** (kind - 1)) & (size < 10**kind) & digits.is_null()).fill_null(False)
    other = (~is_date & ~no_date & (digits.is_not_null() | (size >= SMALLEST))).fill_null(False)
    if other.any():
        (date, row), (time, other_row) = (
            (size[at], at + 1) for at in (int(is_date.arg_true()[0]), int(other.arg_true()[0]))
        )
        raise MixedTimes(
            f"holds dates such as {date:.0f} (row {row:,}) and other times such as {time:.0f} (row {other_row:,}): "
            f"{int(is_date.sum()):,} and {int(other.sum()):,} rows; write all of them alike"
        )
    unreadable = dict.fromkeys(no_date.arg_true(), "is no date")
    unreadable |= dict.fromkeys((is_date & dates.is_null()).arg_true(), f"does not exist in the time zone {zone}")
    others = (size.is_not_null() & ~is_date & ~no_date).arg_true()
    return Times(dates.scatter(others, IMPOSSIBLE), True, (), unreadable, is_naive=True)
