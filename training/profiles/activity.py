"""Activity figures of each cluster: amount, growth, hours, weekdays and spend."""

from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from server.core.profiles import Activity, Spend
from training.profiles.traits import placed_users

DAY_MS = 86_400_000
_PERIODS = 10
"""The log's time is divided into this number of equal periods; growth compares the last two."""


@dataclass(frozen=True, slots=True)
class Habits:
    """Activity figures of one cluster; the fields have the meaning of those in the API's `SegmentProfile`.

    `local_weekdays` are the weekdays of the run's time zone; `hours` and `weekdays` are UTC.
    """

    activity: Activity | None
    growth: float | None
    hours: tuple[float, ...]
    weekdays: tuple[float, ...]
    spend: Spend | None
    local_weekdays: tuple[float, ...] = ()


def habits_of(
    events: pl.LazyFrame,
    clusters: NDArray[np.intp],
    cluster_count: int,
    has_clock: bool,
    min_users: int,
    zone: str = "UTC",
) -> list[Habits]:
    """The figures of each cluster; None or empty for a cluster without users.

    `events` has `row`, `timestamp` (milliseconds) and `value`; `clusters` (U,) is the cluster of each row. Growth and
    spend are None if fewer than `min_users` users of the cluster contribute to them.
    """
    users = placed_users(clusters).join(_users(events), on="row", how="left")
    activity = _activity(users, has_clock)
    spend = _spend(users, min_users)
    hours, weekdays, local = (list[tuple[float, ...]]([()] * cluster_count) for _ in range(3))
    growth: list[float | None] = [None] * cluster_count
    if has_clock:
        clock = pl.from_epoch("timestamp", "ms").dt
        local_clock = clock.replace_time_zone("UTC").dt.convert_time_zone(zone).dt
        placed = events.join(users.lazy().select("row", "cluster"), on="row")
        hours = _shares(placed, clock.hour().cast(pl.Int64), 24, cluster_count)
        weekdays = _shares(placed, clock.weekday().cast(pl.Int64) - 1, 7, cluster_count)
        local = weekdays
        if zone != "UTC":
            local = _shares(placed, local_clock.weekday().cast(pl.Int64) - 1, 7, cluster_count)
        growth = _growth(placed, cluster_count, min_users)
    return [
        Habits(
            activity.get(cluster),
            growth[cluster],
            hours[cluster],
            weekdays[cluster],
            spend.get(cluster),
            local[cluster],
        )
        for cluster in range(cluster_count)
    ]


def _users(events: pl.LazyFrame) -> pl.DataFrame:
    """Per user: `events`, active `days`, newest time `last`, count of finite `values`, and their sum `total`."""
    value = pl.col("value").cast(pl.Float64)
    finite = value.filter(value.is_finite())
    totals = events.group_by("row").agg(
        pl.len().alias("events"),
        pl.col("timestamp").max().alias("last"),
        finite.len().alias("values"),
        finite.sum().alias("total"),
    )
    days = events.select("row", (pl.col("timestamp") // DAY_MS).alias("day")).unique()
    day_counts = days.group_by("row").agg(pl.len().alias("days")).collect(engine="streaming")
    return totals.collect(engine="streaming").join(day_counts, on="row")


def _activity(users: pl.DataFrame, has_clock: bool) -> dict[int, Activity]:
    idle = (pl.col("last").max() - pl.col("last")) / DAY_MS
    figures = (
        users.with_columns(idle.alias("idle"))
        .group_by("cluster")
        .agg(
            pl.col("events").mean().alias("mean_events"),
            pl.col("events").median().alias("median_events"),
            pl.col("days").mean().alias("mean_active_days"),
            pl.col("idle").mean().alias("mean_days_since_last"),
        )
    )
    if not has_clock:
        figures = figures.with_columns(mean_active_days=0.0, mean_days_since_last=0.0)
    return {row.pop("cluster"): Activity(**row) for row in figures.iter_rows(named=True)}


def _spend(users: pl.DataFrame, min_users: int) -> dict[int, Spend]:
    """Spend by cluster, for clusters in which at least `min_users` users have values."""
    figures = (
        users.group_by("cluster")
        .agg(
            (pl.col("total").sum() / pl.col("values").sum()).alias("mean_value"),
            pl.col("total").mean().alias("mean_total"),
            pl.col("total").median().alias("median_total"),
            (pl.col("values") > 0).sum().alias("users"),
        )
        .filter(pl.col("users") >= min_users)
        .drop("users")
    )
    return {row.pop("cluster"): Spend(**row) for row in figures.iter_rows(named=True)}


def _shares(placed: pl.LazyFrame, cell: pl.Expr, cell_count: int, cluster_count: int) -> list[tuple[float, ...]]:
    """For each cluster, the share of its events in each cell (hour or weekday), cells numbered from 0."""
    counts = placed.group_by("cluster", cell.alias("cell")).agg(pl.len().alias("count")).collect(engine="streaming")
    table = np.zeros((cluster_count, cell_count))
    table[counts["cluster"].to_numpy(), counts["cell"].to_numpy()] = counts["count"].to_numpy()
    return [tuple(row) for row in (table / np.maximum(table.sum(1, keepdims=True), 1)).tolist()]


def _growth(placed: pl.LazyFrame, cluster_count: int, min_users: int) -> list[float | None]:
    """Relative change of each cluster's share of active users between the last two periods.

    None if fewer than `min_users` of the cluster were active in one of the periods.
    """
    time = pl.col("timestamp")
    first, last = placed.select(time.min().alias("first"), time.max().alias("last")).collect(engine="streaming").row(0)
    if first == last:
        return [None] * cluster_count
    previous_start, last_start = (last - periods * (last - first) / _PERIODS for periods in (2, 1))
    active = (
        placed.filter(time >= previous_start)
        .select("row", "cluster", (time >= last_start).alias("in_last"))
        .unique()
        .group_by("cluster", "in_last")
        .agg(pl.len().alias("count"))
        .collect(engine="streaming")
    )
    # Active users (K, 2) in the previous and in the last period.
    table = np.zeros((cluster_count, 2))
    table[active["cluster"].to_numpy(), active["in_last"].cast(pl.Int64).to_numpy()] = active["count"].to_numpy()
    shares = table / np.maximum(table.sum(0), 1)
    return [
        float(shares[cluster, 1] / shares[cluster, 0] - 1) if table[cluster].min() >= max(min_users, 1) else None
        for cluster in range(cluster_count)
    ]
