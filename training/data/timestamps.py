"""Parses the times of a log, dates or numbers in any unit, as milliseconds since the epoch."""

import polars as pl

ORDER_BELOW = 1e8
"""If all numbers are smaller, they are an order and not seconds: as seconds they would end in March 1973."""

_FORMATS = (  # formats without fractions first: parsing a fraction is three times as slow
    "%Y-%m-%d %H:%M:%S",
    "%Y-%m-%dT%H:%M:%S",
    "%Y-%m-%d %H:%M:%S%.f",
    "%Y-%m-%dT%H:%M:%S%.f",
    "%Y-%m-%dT%H:%M:%S%.f%#z",
    "%Y-%m-%d %H:%M:%S%.f%#z",
    "%Y-%m-%d %H:%M:%S%.f %#z",
    "%Y-%m-%d",
    "%Y-%m-%d %H:%M",
    "%Y-%m-%dT%H:%M",
    "%Y/%m/%d %H:%M:%S%.f",
    "%Y/%m/%d %H:%M",
    "%Y/%m/%d",
    "%Y年%m月%d日",
    "%Y年%m月%d日 %H:%M:%S",
    "%Y年%m月%d日 %H:%M",
)
_HOUR_ONLY = "%Y-%m-%d %H"
_UNITS = (
    (1e11, 1e3),
    (1e14, 1.0),
    (1e17, 1e-3),
    (float("inf"), 1e-6),
)  # (upper limit of the median, factor to milliseconds): s, ms, µs, ns
_DAY_NUMBERS = (19_700_101, 21_001_231)  # YYYYMMDD


def time_parsers(name: str, sample: pl.Series) -> list[pl.Expr]:
    """Parsers for the column `name`, the fastest first; each gives null for a text that it cannot read.

    `sample` holds the first rows of the column. Dates and texts of dates become int64 milliseconds. Numbers become
    float64 with the same value, input for `numbers_to_milliseconds`.
    """
    column = pl.col(name)
    if sample.dtype.is_temporal() and sample.dtype not in (pl.Time, pl.Duration):
        return [column.cast(pl.Datetime("ms", getattr(sample.dtype, "time_zone", None))).dt.epoch("ms")]
    if sample.dtype.is_numeric():
        return [column.cast(pl.Float64).fill_nan(None)]
    text = column.cast(pl.String)
    texts = sample.cast(pl.String).str.strip_chars().drop_nulls()
    numbers = texts.cast(pl.Float64, strict=False)
    if texts.is_empty() or numbers.count() > len(texts) / 2:
        return [
            text.cast(pl.Float64, strict=False).fill_nan(None),
            text.str.strip_chars().cast(pl.Float64, strict=False),
        ]
    forms = (*_FORMATS, _HOUR_ONLY)
    matching, unmatched = [], texts
    for form in forms:
        unread = unmatched.to_frame().select(_read(pl.first(), form).is_null()).to_series()
        if not unread.all():
            matching.append(form)
            unmatched = unmatched.filter(unread)
    stripped = text.str.strip_chars()
    quick = [pl.coalesce(_read(text, form) for form in matching)] if matching else []
    return [*quick, pl.coalesce(_read(stripped, form) for form in forms)]


def numbers_to_milliseconds(numbers: pl.Series) -> tuple[pl.Series, bool]:
    """Numbers float64 (n,) as int64 milliseconds, and whether they are times; if not, they only give the order.

    The size of the median gives the unit (s, ms, µs or ns); numbers such as 20240131 are dates.
    """
    low, high = numbers.min(), numbers.max()
    if not isinstance(low, float) or not isinstance(high, float):
        return numbers.cast(pl.Int64), False
    if low >= _DAY_NUMBERS[0] and high <= _DAY_NUMBERS[1]:
        days = numbers.cast(pl.Int64).cast(pl.String).str.to_datetime("%Y%m%d", strict=False, time_unit="ms")
        if days.null_count() == numbers.null_count():
            return days.dt.epoch("ms"), True
    if high < ORDER_BELOW:
        return numbers.round().cast(pl.Int64), False
    median = abs(float(numbers.median() or 0.0))  # type: ignore[arg-type]
    factor = next(factor for below, factor in _UNITS if median < below)
    return (numbers * factor).round().cast(pl.Int64, strict=False), True


def _read(text: pl.Expr, form: str) -> pl.Expr:
    """Milliseconds of texts in the format `form`, null for other texts; times without a zone are UTC."""
    if form == _HOUR_ONLY:
        text, form = text + ":00", f"{form}:%M"
    return text.str.to_datetime(form, strict=False, time_unit="ms").dt.epoch("ms")
