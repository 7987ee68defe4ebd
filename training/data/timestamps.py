"""Times of a log, in whatever form it has them, as milliseconds since the epoch."""

import polars as pl

ORDER_BELOW = 1e8
"""Numbers that all lie below count events rather than seconds: as seconds they would end in March 1973."""

_FORMATS = (  # the plain ones first: a fraction of a second makes parsing three times as slow
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
_UNITS = ((1e11, 1e3), (1e14, 1.0), (1e17, 1e-3), (float("inf"), 1e-6))  # below which size; factor to milliseconds
_DAY_NUMBERS = (19_700_101, 21_001_231)  # YYYYMMDD


def time_parsers(name: str, sample: pl.Series) -> list[pl.Expr]:
    """Ways to read the column `name`, quickest first; rows that none of them reads come out null.

    `sample` is the column's start. The result is milliseconds as int64 for dates and texts of dates, and
    float64 as they stand for numbers, which `numbers_to_milliseconds` then makes times of.
    """
    column = pl.col(name)
    if sample.dtype.is_temporal() and sample.dtype not in (pl.Time, pl.Duration):
        return [column.cast(pl.Datetime("ms", getattr(sample.dtype, "time_zone", None))).dt.epoch("ms")]
    if sample.dtype.is_numeric():
        return [column.cast(pl.Float64).fill_nan(None)]
    text = column.cast(pl.String)
    some = sample.cast(pl.String).str.strip_chars().drop_nulls()
    numbers = some.cast(pl.Float64, strict=False)
    if some.is_empty() or numbers.count() > len(some) / 2:
        return [
            text.cast(pl.Float64, strict=False).fill_nan(None),
            text.str.strip_chars().cast(pl.Float64, strict=False),
        ]
    forms = (*_FORMATS, _HOUR_ONLY)
    fitting, left = [], some
    for form in forms:
        unread = left.to_frame().select(_read(pl.first(), form).is_null()).to_series()
        if not unread.all():
            fitting.append(form)
            left = left.filter(unread)
    stripped = text.str.strip_chars()
    quick = [pl.coalesce(_read(text, form) for form in fitting)] if fitting else []
    return [*quick, pl.coalesce(_read(stripped, form) for form in forms)]


def numbers_to_milliseconds(numbers: pl.Series) -> tuple[pl.Series, bool]:
    """Times of float64 numbers (n,) as int64, and whether they are times at all or give the order alone.

    The unit (s, ms, µs or ns) is told by the size of the median; numbers such as 20240131 are days.
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
    """Milliseconds of texts in one format, null where they are in another; without a zone they are UTC."""
    if form == _HOUR_ONLY:
        text, form = text + ":00", f"{form}:%M"
    return text.str.to_datetime(form, strict=False, time_unit="ms").dt.epoch("ms")
