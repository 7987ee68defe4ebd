"""Reads the times of a log as milliseconds since the epoch: the rule of `segrec.reading.times` for a whole column."""

import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from decimal import Decimal

import polars as pl
from segrec.reading.refusals import OutOfRange, Unreadable
from segrec.reading.times import milliseconds_of, zone_of
from segrec.reading.values import NUMBER
from segrec.reading.words import MISSING_WORDS

from training.data.reading.time_numbers import EXACT_BELOW, IMPOSSIBLE, Times, read_numbers

_FORMS = (  # formats without fractions first: parsing a fraction is three times as slow
    "%Y-%m-%d %H:%M:%S",
    "%Y-%m-%dT%H:%M:%S",
    "%Y-%m-%d %H:%M:%S UTC",
    "%Y-%m-%d %H:%M:%S%.f",
    "%Y-%m-%dT%H:%M:%S%.f",
    "%Y-%m-%dT%H:%M:%S%.f%#z",
    "%Y-%m-%d %H:%M:%S%.f%#z",
    "%Y-%m-%d %H:%M:%S%.f %#z",
    "%Y-%m-%d %H:%M:%S%.f UTC",
    "%Y-%m-%d",
    "%Y-%m-%d %H:%M",
    "%Y-%m-%dT%H:%M",
    "%Y-%m-%dT%H:%M%#z",
    "%Y/%m/%d %H:%M:%S%.f",
    "%Y/%m/%d %H:%M",
    "%Y/%m/%d",
    "%Y年%m月%d日",
    "%Y年%m月%d日 %H:%M:%S",
    "%Y年%m月%d日 %H:%M",
    "%Y-%m-%d %H",
)
"""Polars' formats of common times; `milliseconds_of` reads the other ones, a hundred times as slowly."""
_NUMBER = re.compile(NUMBER)
_ZONE = r"(?i)(?:Z|UTC|GMT|[T ][0-9:.,]+ *[+-][0-9:]{2,5})\s*$"  # how texts of times end that name their zone
_YEAR_1000_MS = -30_610_224_000_000  # Polars takes two digits for %Y, as a year before 100
_DAY_MS = 86_400_000
_YEAR_2000_MS = 946_684_800_000


@dataclass(frozen=True, slots=True)
class TimeSettings:
    """What the configuration says of times: their format, the zone of those without one, and the words for none."""

    form: str | None = None
    zone: str | None = None
    words: Collection[str] = MISSING_WORDS

    @property
    def zone_name(self) -> str:
        """The zone of times that name none."""
        return self.zone or "UTC"


@dataclass(frozen=True, slots=True)
class TimeParser:
    """Reads one column in two passes: by the expression `quick`, then by `read`, which gets what `quick` left null.

    `quick` gives int64 milliseconds, or, for a column of numbers, the numbers as int64 or float64.
    """

    quick: pl.Expr
    settings: TimeSettings
    is_numeric: bool = False
    is_naive: bool = False
    """Whether the times name no zone."""

    def read(self, quick: pl.Series, rows: pl.Series, texts: pl.Series) -> Times:
        """The times of all rows (N,): `quick` (N,), and the `texts` (R,) of the `rows` (R,) that it left null.

        Raises MixedTimes.
        """
        late = _read_texts(texts, self.settings, self.is_numeric)
        times = Times(quick.clone(), True)
        if self.is_numeric:
            whole = quick if quick.dtype == pl.Int64 else _nulls(pl.Int64, len(quick))
            real = quick if quick.dtype == pl.Float64 else None
            if late["real"].count():
                real = (_nulls(pl.Float64, len(quick)) if real is None else real).scatter(rows, late["real"])
            times = read_numbers(whole.scatter(rows, late["whole"]), real, self.settings.zone_name)
        unreadable = dict(times.unreadable)
        moments = late["milliseconds"]
        known, milliseconds = moments.is_not_null(), times.milliseconds
        if times.has_clock:
            milliseconds = milliseconds.scatter(rows.filter(known), moments.filter(known))
        else:
            unreadable |= dict.fromkeys(rows.filter(known), "is not a number, as the others are")
        bad = late["reason"].is_not_null()
        unreadable |= zip(rows.filter(bad), late["reason"].filter(bad), strict=True)
        notes = times.notes
        is_naive = self.is_naive or times.is_naive or not texts.filter(known).str.contains(_ZONE).all()
        if is_naive and times.has_clock and self.settings.zone is None:
            notes = (*notes, "times without a zone count as UTC; [columns] timezone names another zone")
        return Times(milliseconds, times.has_clock, notes, unreadable, is_naive)


def time_parser(column: str, sample: pl.Series, settings: TimeSettings) -> TimeParser:
    """A parser for the column, chosen by its type and a `sample` of its first rows."""
    raw, dtype, form = pl.col(column), sample.dtype, settings.form
    if isinstance(dtype, pl.Datetime) or dtype == pl.Date:
        zone = getattr(dtype, "time_zone", None)
        moments = _epoch(raw.cast(pl.Datetime("ms", zone)), settings, is_naive=zone is None)
        return TimeParser(moments, settings, is_naive=zone is None)
    if form is None and dtype.is_integer():
        return TimeParser(raw.cast(pl.Int64, strict=False), settings, is_numeric=True)
    if form is None and (dtype.is_float() or dtype.is_decimal()):
        return TimeParser(_real(raw), settings, is_numeric=True)
    text, texts = raw.cast(pl.String), sample.cast(pl.String).str.strip_chars().drop_nulls()
    texts = texts.filter(~texts.str.to_lowercase().is_in(list(settings.words)))
    numbers = texts.filter(texts.str.contains(NUMBER))
    if form is None and len(numbers) * 2 >= len(texts):
        is_whole = numbers.cast(pl.Int64, strict=False).count() * 2 >= len(numbers)
        quick = text.cast(pl.Int64, strict=False) if is_whole else _real(text)
        return TimeParser(quick, settings, is_numeric=True)
    forms = list(_matching(texts, settings))
    quick = pl.coalesce(_read(text, one, settings) for one in forms) if forms else pl.lit(None, pl.Int64)
    return TimeParser(quick, settings, is_naive=any(_is_naive(one) for one in forms))


def reads_as_times(sample: pl.Series, now_ms: int) -> bool:
    """Whether the values are dates, nine of ten at least, or numbers that all are times from 2000 until tomorrow."""
    dtype = sample.dtype
    if isinstance(dtype, pl.Datetime) or dtype == pl.Date:
        return sample.count() > 0
    if not (dtype == pl.String or dtype.is_integer() or dtype.is_float()):
        return False
    read = _read_texts(sample.drop_nulls().cast(pl.String), TimeSettings(), is_numeric=True)
    held = read.filter(~pl.all_horizontal(pl.all().is_null()))
    if held["milliseconds"].count():
        return held["milliseconds"].count() >= 0.9 * len(held)
    if held["whole"].count() < len(held) or held["whole"].n_unique() < 2:
        return False
    times = read_numbers(held["whole"], None, "UTC")
    return times.has_clock and bool(times.milliseconds.is_between(_YEAR_2000_MS, now_ms + _DAY_MS).all())


def _read_texts(texts: pl.Series, settings: TimeSettings, is_numeric: bool) -> pl.DataFrame:
    """For each text its milliseconds, or, if `is_numeric`, the number that it is; or the reason why it is unreadable.

    The columns are milliseconds, whole (int64), real (float64) and reason; all are null for a missing time.
    """
    distinct = texts.rename("text").to_frame().unique()
    forms = _FORMS if settings.form is None else [form for form in [_polars_form(settings.form)] if form]
    stripped = pl.col("text").str.strip_chars()
    read = [_read(stripped, form, settings) for form in forms]
    distinct = distinct.with_columns(quick=pl.coalesce(read) if read else pl.lit(None, pl.Int64))
    slow = distinct.filter(pl.col("quick").is_null())["text"]
    schema = {"text": pl.String, "milliseconds": pl.Int64, "whole": pl.Int64, "real": pl.Float64, "reason": pl.String}
    rows = ((text, *_read_text(text, settings, is_numeric)) for text in slow)
    known = distinct.join(pl.DataFrame(rows, schema, orient="row"), on="text", how="left", nulls_equal=True)
    known = known.with_columns(pl.coalesce("quick", "milliseconds").alias("milliseconds")).drop("quick")
    joined = texts.rename("text").to_frame().join(known, on="text", how="left", maintain_order="left", nulls_equal=True)
    return joined.drop("text")


def _read_text(
    text: str, settings: TimeSettings, is_numeric: bool
) -> tuple[int | None, int | None, float | None, str | None]:
    """Milliseconds, whole number, real number and reason, as in `_read_texts`."""
    number = text.strip()
    if is_numeric and len(number) < 40 and _NUMBER.match(number):
        exact = Decimal(number)
        is_whole = exact == exact.to_integral_value() and abs(exact) < 2**63
        return (None, int(exact), None, None) if is_whole else (None, None, float(exact), None)
    try:
        zone = zone_of(settings.zone_name)
        return milliseconds_of(text, form=settings.form, zone=zone, words=settings.words), None, None, None
    except OutOfRange:
        return IMPOSSIBLE, None, None, None
    except Unreadable as error:
        return None, None, None, str(error)


def _matching(texts: pl.Series, settings: TimeSettings) -> Iterator[str]:
    """The formats that the texts need, the first one that reads a text."""
    if settings.form is not None:
        form = _polars_form(settings.form)
        yield from [form] if form else []
        return
    unread = texts
    for form in _FORMS:
        read = unread.to_frame().select(_read(pl.first(), form, settings)).to_series()
        if read.count():
            yield form
            unread = unread.filter(read.is_null())


def _read(text: pl.Expr, form: str, settings: TimeSettings) -> pl.Expr:
    """Milliseconds of texts in the format `form`, null for other texts."""
    if "%H" in form and "%M" not in form:  # Polars reads no hour without minutes
        text, form = text + ":00", f"{form}:%M"
    moments = text.str.to_datetime(form, strict=False, time_unit="ms")
    milliseconds = _epoch(moments, settings, _is_naive(form))
    return pl.when(milliseconds >= _YEAR_1000_MS).then(milliseconds)


def _epoch(moments: pl.Expr, settings: TimeSettings, is_naive: bool) -> pl.Expr:
    if is_naive and settings.zone_name != "UTC":
        moments = moments.dt.replace_time_zone(settings.zone_name, ambiguous="earliest", non_existent="null")
    return moments.dt.epoch("ms")


def _is_naive(form: str) -> bool:
    return not form.endswith(("z", "UTC"))


def _polars_form(form: str) -> str | None:
    """A format of Python in Polars' directives; None if Polars has none that means the same."""
    ours = form.replace(".%f", "%.f").replace("%z", "%#z")
    has_hour, has_minute = "%H" in form or "%I" in form, "%M" in form
    same = "%%" not in form and "%f" not in ours and has_hour == has_minute and ("%I" in form) == ("%p" in form)
    return ours if same else None


def _real(number: pl.Expr) -> pl.Expr:
    """Numbers as float64; null for those that float64 holds inexactly, which `TimeParser.read` gets as texts."""
    real = number.cast(pl.Float64, strict=False)
    return pl.when(real.abs() < EXACT_BELOW).then(real)


def _nulls(dtype: type[pl.DataType], count: int) -> pl.Series:
    return pl.Series([None], dtype=dtype).new_from_index(0, count)
