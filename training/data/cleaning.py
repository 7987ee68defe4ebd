"""Cleans a log in steps, and counts the rows that each step drops and changes.

Every step takes the events of a `RawLog` and returns the remaining events and a `Step`, its line of the account.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from server.core.history import ID_MAX_BYTES
from server.core.preprocessing import VALUE_MAX, ValueCleaning
from training.config import Clean, Missing, Outliers
from training.data.account import Step, dropping_step, lowest
from training.data.reading.ids import unusable_ids
from training.data.reading.log_reader import RawLog
from training.data.split import LEAVE_ONE_OUT, Split
from training.errors import LogError

DAY_MS = 86_400_000
_FOREST_ROWS = 100_000


@dataclass(frozen=True)
class Cleaned:
    """Events sorted by user_id, then time, the steps of the cleaning, and what callers' values need as well."""

    events: pl.DataFrame
    steps: tuple[Step, ...]
    values: ValueCleaning


def clean(log: RawLog, settings: Clean, now_ms: int, seed: int, split: Split = LEAVE_ONE_OUT) -> Cleaned:
    """Clean a log whose actions have their final names. `now_ms` is the current time, `seed` is the forest's.

    Steps name the first dropped rows if the events have the column `row`, which the cleaned events lack.

    Statistics are computed on the training part of `split`. Raises LogError if no event is left.
    """
    missing = settings.missing
    before_sort: list[Callable[[pl.DataFrame], tuple[pl.DataFrame, Step]]] = [
        lambda events: fill_missing(events, "user_id", missing.user_id, split),
        lambda events: drop_unusable_ids(events, "user_id"),
        lambda events: fill_missing(events, "timestamp", missing.timestamp, split),
        lambda events: drop_impossible_times(events, log.has_clock, now_ms),
    ]
    after_sort: list[Callable[[pl.DataFrame], tuple[pl.DataFrame, Step]]] = [
        lambda events: fill_missing(events, "item_id", missing.item_id, split),
        lambda events: drop_unusable_ids(events, "item_id"),
        lambda events: fill_missing(events, "action", missing.action, split),
        lambda events: drop_unusable_ids(events, "action"),
        drop_infinite,
        lambda events: drop_duplicates(events, settings.drop_duplicates, log.ordered_by_row),
    ]
    events, steps = log.events, []
    for step in before_sort:
        events, record = step(events)
        steps.append(record)
    events = sort_events(events)
    for step in after_sort:
        events, record = step(events)
        steps.append(record)
    fill = fill_of(events, "value", missing.value, split)
    events, record = fill_missing(events, "value", missing.value, split, fill)
    usual = usual_values(events, settings.outliers, seed, split)
    events, outliers = treat_outliers(events, settings.outliers, usual)
    steps += [record, outliers]
    events, records = keep_core(events, settings.min_events_per_user, settings.min_events_per_item)
    steps.extend(records)
    if events.is_empty():
        worst = max(steps, key=lambda step: step.rows_dropped)
        raise LogError(
            f"Cleaning left none of {len(log.events):,} events; the step `{worst.name}` dropped "
            f"{worst.rows_dropped:,}: {worst.why}. Change [clean], or check which columns were read."
        )
    return Cleaned(
        events.drop("row", strict=False), tuple(steps), _value_cleaning(missing.value, fill, settings.outliers, usual)
    )


def _value_cleaning(
    missing: Missing, fill: Any, outliers: Outliers, usual: tuple[float, float] | None
) -> ValueCleaning:
    method = missing.method if missing.method in ("keep", "drop", "interpolate") else "fill"
    if method == "fill" and fill is None:
        method = "keep"
    raw = {"missing": method, "fill": fill or 0.0, "bounds": usual, "drop_outside": outliers.action == "drop"}
    return ValueCleaning.model_validate(raw)


def sort_events(events: pl.DataFrame) -> pl.DataFrame:
    """Sort by user_id, then time; ties keep the order of the rows.

    If both fit into one int64, they are sorted as one integer, four times as fast as two columns.
    """
    first, last = events["timestamp"].min(), events["timestamp"].max()
    if not isinstance(first, int) or not isinstance(last, int):
        return events
    span = last - first + 1
    if len(_texts(events["user_id"])) * span >= 2**63:
        return events.sort("user_id", "timestamp", maintain_order=True)
    key = pl.col("user_id").to_physical().cast(pl.Int64) * span + (pl.col("timestamp") - first)
    return events.with_columns(key.alias("key")).sort("key", maintain_order=True).drop("key")


def fill_missing(
    events: pl.DataFrame, column: str, missing: Missing, split: Split = LEAVE_ONE_OUT, fill: Any = None
) -> tuple[pl.DataFrame, Step]:
    """Fill or drop rows with a null in `column`. Rows that are still null are dropped, except in the column `value`.

    `fill` is the result of `fill_of`, if it is known already.
    """
    gaps = events[column].null_count()
    name = f"missing {column}"
    if gaps == 0 or missing.method == "keep":
        return events, Step(name=name, rows_in=len(events), why="kept as missing" if gaps else "none is missing")
    filled, why = events, "dropped" if missing.method == "drop" else ""
    if missing.method == "interpolate":
        interpolated = pl.col(column).cast(pl.Float64).interpolate().forward_fill().backward_fill()
        interpolated = interpolated.over("user_id", *split.periods())
        filled = events.with_columns(interpolated.cast(events.schema[column]))
        why = "interpolated between the user's neighbouring events"
    elif missing.method != "drop":
        fill = fill_of(events, column, missing, split) if fill is None else fill
        filled = events.with_columns(_filled(events[column], fill)) if fill is not None else events
        why = f"filled with {fill} ({missing.method.replace('_', ' ')})"
    kept = filled if column == "value" and missing.method != "drop" else filled.drop_nulls(column)
    return kept, dropping_step(name, events, kept, why, rows_changed=gaps - filled[column].null_count())


def fill_of(events: pl.DataFrame, column: str, missing: Missing, split: Split = LEAVE_ONE_OUT) -> Any:
    """What fills missing values of `column`; None without one, also when the training part has no values."""
    if missing.method in ("keep", "drop", "interpolate"):
        return None
    return missing.fill if missing.method == "constant" else _statistic(events, column, missing.method, split)


def drop_unusable_ids(events: pl.DataFrame, column: str) -> tuple[pl.DataFrame, Step]:
    """Drop ids that the API refuses: too long, or with control characters."""
    ids = _texts(events[column])
    bad = ids.filter(pl.select(unusable_ids(pl.lit(ids))).to_series())
    kept = events.filter(~pl.col(column).is_in(bad.cast(events.schema[column]).implode())) if len(bad) else events
    why = f"longer than {ID_MAX_BYTES} UTF-8 bytes, or with control characters"
    return kept, dropping_step(f"unusable {column}", events, kept, why)


def drop_impossible_times(events: pl.DataFrame, has_clock: bool, now_ms: int) -> tuple[pl.DataFrame, Step]:
    """Drop times that the API refuses: before 1970, or more than a day in the future."""
    kept = events.filter(pl.col("timestamp").is_between(0, now_ms + DAY_MS)) if has_clock else events
    return kept, dropping_step("impossible timestamp", events, kept, "before 1970, or more than a day in the future")


def drop_infinite(events: pl.DataFrame) -> tuple[pl.DataFrame, Step]:
    """Replace infinite values, and those beyond `VALUE_MAX`, by null, as `server.core.value_cleaning` does."""
    beyond = int((events["value"].abs() > VALUE_MAX).sum())
    if beyond:
        events = events.with_columns(pl.when(pl.col("value").abs() <= VALUE_MAX).then("value"))
    why = f"infinite, or beyond {VALUE_MAX:g}, so treated as missing"
    return events, Step(name="infinite value", rows_in=len(events), rows_changed=beyond, why=why)


def drop_duplicates(events: pl.DataFrame, enabled: bool, ordered_by_row: bool) -> tuple[pl.DataFrame, Step]:
    """Keep the first of equal events; `events` are sorted.

    With a time column (a clock or an ordinal), equal events are equal in all five columns. With `ordered_by_row`, times
    are row numbers and never equal; then a row is a duplicate if it repeats the user's previous row.
    """
    if not enabled:
        return events, Step(name="duplicates", rows_in=len(events), why="kept, as configured")
    columns = ["user_id", "item_id", "action", "value"]
    if ordered_by_row:
        repeats = pl.all_horizontal(pl.col(name).eq_missing(pl.col(name).shift(1)) for name in columns)
        kept = events.filter((pl.int_range(pl.len()) == 0) | ~repeats)
        return kept, dropping_step("duplicates", events, kept, "the same as the user's previous row")
    previous = pl.all_horizontal(
        (pl.col(name) == pl.col(name).shift(1)).fill_null(False) for name in ("user_id", "timestamp")
    )
    same_as_previous = events.select(previous).to_series()
    at_once = same_as_previous | same_as_previous.shift(
        -1, fill_value=False
    )  # only events of the same user and time can be equal
    first = events.filter(at_once).select(pl.struct(*columns, "timestamp").is_first_distinct()).to_series()
    kept = events if first.all() else events.filter(~at_once.scatter(at_once.arg_true(), ~first))
    return kept, dropping_step("duplicates", events, kept, "equal in user, item, action, value and time")


def usual_values(
    events: pl.DataFrame, outliers: Outliers, seed: int, split: Split = LEAVE_ONE_OUT
) -> tuple[float, float] | None:
    """Lowest and highest usual value by the training part; None without a method or values. `events` are sorted."""
    if outliers.method == "none":
        return None
    values = split.training_part(events.lazy()).select("value").drop_nulls().collect().to_series()
    if values.is_empty():
        return None
    if outliers.method == "isolation_forest":
        return _forest_bounds(values, outliers.threshold, seed)
    return _bounds(values, outliers)


def treat_outliers(
    events: pl.DataFrame, outliers: Outliers, usual: tuple[float, float] | None
) -> tuple[pl.DataFrame, Step]:
    """Drop events, or clip values, beyond the result of `usual_values`."""
    name = "outliers"
    if usual is None:
        why = "not treated, as configured" if outliers.method == "none" else "no values in the training part"
        return events, Step(name=name, rows_in=len(events), why=why)
    low, high = usual
    why = f"{outliers.method}: {'dropped' if outliers.action == 'drop' else 'clipped'} beyond {low:.6g} to {high:.6g}"
    if outliers.action == "drop":
        kept = events.filter(pl.col("value").is_between(low, high) | pl.col("value").is_null())
        return kept, dropping_step(name, events, kept, why)
    clipped = events.with_columns(pl.col("value").clip(low, high))
    changed = int((clipped["value"] != events["value"]).sum())
    return clipped, Step(name=name, rows_in=len(events), rows_changed=changed, why=why)


def keep_core(events: pl.DataFrame, per_user: int, per_item: int) -> tuple[pl.DataFrame, list[Step]]:
    """Drop users and items with too few events, in rounds, until all remaining users and items have enough."""
    rows_in, rounds = len(events), 0
    dropped_rows = {"user_id": 0, "item_id": 0}
    row_numbers: dict[str, list[pl.Series]] = {"user_id": [], "item_id": []}
    dropped_ids: dict[str, int] = {"user_id": 0, "item_id": 0}
    before = -1
    while before != len(events):
        before, rounds = len(events), rounds + 1
        for column, minimum in (("user_id", per_user), ("item_id", per_item)):
            # `few` is a mask by code: ids that occur, but not often enough.
            codes = events[column].to_physical().to_numpy()
            counts = np.bincount(codes)
            few = (counts > 0) & (counts < minimum)
            if few.any():
                if "row" in events.columns:
                    row_numbers[column].append(events["row"].filter(pl.Series(few[codes])))
                events = events.filter(pl.Series(~few[codes]))
                dropped_rows[column] += int(counts[few].sum())
                dropped_ids[column] += int(few.sum())
    steps = []
    for column, minimum, kind in (("user_id", per_user, "users"), ("item_id", per_item, "items")):
        why = (
            f"{dropped_ids[column]:,} {kind} with fewer than {minimum}, found in {rounds} rounds"
            if minimum > 1
            else "no minimum is configured"
        )
        dropped, named = dropped_rows[column], lowest(row_numbers[column])
        name = f"{kind} with few events"
        steps.append(Step(name=name, rows_in=rows_in, rows_dropped=dropped, why=why, first_rows=named))
        rows_in -= dropped
    return events, steps


def _texts(column: pl.Series) -> pl.Series:
    """All categories of an Enum column, in sort order."""
    dtype = column.dtype
    assert isinstance(dtype, pl.Enum)
    return dtype.categories


def _statistic(events: pl.DataFrame, column: str, method: str, split: Split) -> Any:
    """Mean, median or most frequent value of the training part; None if that part has no values."""
    known = events.drop_nulls("timestamp").sort("user_id", "timestamp", maintain_order=True)
    values = split.training_part(known.lazy()).select(column).drop_nulls().collect().to_series()
    if values.is_empty():
        return None
    if method == "most_frequent":
        return values.value_counts().sort("count", column, descending=[True, False])[column][0]
    return values.mean() if method == "mean" else values.median()


def _filled(column: pl.Series, fill: Any) -> pl.Series:
    """`column` with `fill` in place of nulls; `fill` becomes a category of an Enum."""
    if not isinstance(column.dtype, pl.Enum):
        return column.fill_null(pl.Series([fill]).cast(column.dtype, strict=False)[0])
    texts = pl.concat([column.dtype.categories, pl.Series([str(fill)])]).unique().sort()
    return column.cast(pl.String).fill_null(str(fill)).cast(pl.Enum(texts))


def _bounds(values: pl.Series, outliers: Outliers) -> tuple[float, float]:
    if outliers.method == "z_score":
        center, spread, threshold = values.mean(), values.std(ddof=0), outliers.threshold or 3.0
        low = high = float(center or 0.0)  # type: ignore[arg-type]
    else:
        low, high = (float(values.quantile(share, "linear") or 0.0) for share in (0.25, 0.75))
        spread, threshold = high - low, outliers.threshold or 1.5
    reach = threshold * float(spread or 0.0)  # type: ignore[arg-type]
    return low - reach, high + reach


def _as_float32(values: pl.Series) -> NDArray[np.float32]:
    """Values (n,) as a column (n, 1) in the precision of forests, the largest clipped."""
    limit = float(np.finfo(np.float32).max)
    return values.clip(-limit, limit).cast(pl.Float32).to_numpy().reshape(-1, 1)


def _forest_bounds(values: pl.Series, share: float | None, seed: int) -> tuple[float, float]:
    """The lowest and the highest of the values that an isolation forest fitted on them accepts."""
    from sklearn.ensemble import IsolationForest

    sample = values if len(values) <= _FOREST_ROWS else values.sample(_FOREST_ROWS, seed=seed)
    forest = IsolationForest(contamination=share or "auto", random_state=seed)
    forest.fit(_as_float32(sample))
    distinct = values.unique().sort()
    inliers = distinct.filter(pl.Series(forest.predict(_as_float32(distinct)) == 1))
    return float(inliers[0]), float(inliers[-1])
