"""What the users of a segment add to its profile: local hours, weeks, values, labels, and what typical users share.

Nobody can be recognised: a figure is of at least `least` users, and items are those that several users have in common.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import polars as pl

STORY_USERS = 20
"""Users that a story is about: those nearest to the middle of a segment, or those at its border."""

MOST_LABELS = 30
"""A column of the user table with more distinct values is no label of groups."""

_STORY_ITEMS, _SHOWN_LABELS = 4, 4
_STORY_SHARE = 0.25
_LABEL_LIFT, _LABEL_ERRORS = 1.15, 3.0
"""Least lift of a label, and least distance from the share of all users, in standard errors."""


@dataclass(frozen=True, slots=True)
class Label:
    """A value of a column of the user table: its share among the segment's users with a value, and the lift."""

    column: str
    value: str
    share: float
    lift: float


@dataclass(frozen=True, slots=True)
class Story:
    """What `users` users of a segment have in common: median events, `items` (title and number of users), and to which
    segment most of them are next nearest, 0 if unknown."""

    users: int
    median_events: float
    items: tuple[tuple[str, int], ...]
    next_segment: int


@dataclass(frozen=True, slots=True)
class Week:
    """The users of a segment with an event in a week, which begins at `start`; None for too few to be told."""

    start: date
    users: int | None


@dataclass(frozen=True, slots=True)
class People:
    """The facts of one segment; empty or None where the log does not tell them. `value` is the sum of all values."""

    hours: tuple[float, ...] = ()
    weekdays: tuple[float, ...] = ()
    weeks: tuple[Week, ...] = ()
    value: float | None = None
    value_share: float | None = None
    labels: tuple[Label, ...] = ()
    typical: Story | None = None
    border: Story | None = None


@dataclass(frozen=True, slots=True)
class Sources:
    """`events` with `user_id, item_id, timestamp, value` of a run, `assignments` of its users, and `users` with labels
    if there is a table. `least` users must be behind each figure; `titles` by item id."""

    events: pl.LazyFrame
    assignments: pl.DataFrame
    users: pl.DataFrame | None
    titles: Mapping[str, str]
    has_clock: bool
    time_zone: str
    least: int


def people_by_segment(sources: Sources) -> dict[int, People]:
    """The facts of each segment, by its id."""
    placed = sources.assignments.lazy().select("user_id", "segment_id")
    events = sources.events.join(placed, on="user_id")
    hours, weekdays, weeks = _rhythms(events, sources) if sources.has_clock else ({}, {}, {})
    values = _values(events, sources.least)
    total = sum(values.values())
    labels = _labels(sources)
    stories = {kind: _stories(sources, kind) for kind in ("typical", "border")}
    return {
        segment_id: People(
            hours=hours.get(segment_id, ()),
            weekdays=weekdays.get(segment_id, ()),
            weeks=weeks.get(segment_id, ()),
            value=values.get(segment_id),
            value_share=values[segment_id] / total if segment_id in values and total > 0 else None,
            labels=labels.get(segment_id, ()),
            typical=stories["typical"].get(segment_id),
            border=stories["border"].get(segment_id),
        )
        for segment_id in sources.assignments["segment_id"].unique().to_list()
    }


_Shares = dict[int, tuple[float, ...]]


def _rhythms(events: pl.LazyFrame, sources: Sources) -> tuple[_Shares, _Shares, dict[int, tuple[Week, ...]]]:
    """Shares of events by hour and weekday, and active users by week, in local time."""
    local = pl.from_epoch("timestamp", "ms").dt.replace_time_zone("UTC").dt.convert_time_zone(sources.time_zone)
    timed = events.select("segment_id", "user_id", local.alias("time"))
    cells = {"hour": pl.col("time").dt.hour(), "weekday": pl.col("time").dt.weekday() - 1}
    hours, weekdays = (_cell_shares(timed, cell, size) for cell, size in zip(cells.values(), (24, 7), strict=True))
    return hours, weekdays, _weeks(timed, sources.least)


def _cell_shares(timed: pl.LazyFrame, cell: pl.Expr, size: int) -> _Shares:
    counts = timed.group_by("segment_id", cell.alias("cell")).len().collect(engine="streaming")
    shares = {}
    for (segment_id,), rows in counts.group_by("segment_id"):
        by_cell = dict(rows.select("cell", "len").iter_rows())
        total = sum(by_cell.values())
        shares[segment_id] = tuple(by_cell.get(number, 0) / total for number in range(size))
    return shares


def _weeks(timed: pl.LazyFrame, least: int) -> dict[int, tuple[Week, ...]]:
    """Active users of each whole week of the log; none for a log of fewer than four whole weeks."""
    first, last = timed.select(pl.col("time").min().alias("first"), pl.col("time").max().alias("last")).collect().row(0)
    week = pl.col("time").dt.truncate("1w").dt.date().alias("week")
    counts = (
        timed.select("segment_id", "user_id", week)
        .unique()
        .group_by("segment_id", "week")
        .len()
        .collect(engine="streaming")
    )
    whole = [
        one for one in counts["week"].unique().sort().to_list() if first.date() <= one and (last.date() - one).days >= 6
    ]
    if len(whole) < 4:
        return {}
    found = {}
    for (segment_id,), rows in counts.group_by("segment_id"):
        users = dict(rows.select("week", "len").iter_rows())
        found[segment_id] = tuple(Week(one, users[one] if users.get(one, 0) >= least else None) for one in whole)
    return {number: one for number, one in found.items() if any(week.users for week in one)}


def _values(events: pl.LazyFrame, least: int) -> dict[int, float]:
    """The sum of the values of each segment, if at least `least` of its users have a value above 0."""
    value = pl.col("value").cast(pl.Float64)
    sums = (
        events.filter(value.is_finite())
        .group_by("segment_id")
        .agg(value.sum().alias("total"), pl.col("user_id").filter(value > 0).n_unique().alias("users"))
        .filter(pl.col("users") >= least)
        .collect(engine="streaming")
    )
    return dict(sums.select("segment_id", "total").iter_rows())


def _labels(sources: Sources) -> dict[int, tuple[Label, ...]]:
    """The labels that users of a segment have clearly more often than all users with a label, the clearest first."""
    if sources.users is None:
        return {}
    users = sources.users.join(sources.assignments.select("user_id", "segment_id"), on="user_id")
    tables = [
        table for name in users.columns if name not in ("user_id", "segment_id") for table in _label_table(users, name)
    ]
    if not tables:
        return {}
    found = (
        pl.concat(tables)
        .filter(pl.col("users") >= sources.least, pl.col("lift") >= _LABEL_LIFT, pl.col("errors") >= _LABEL_ERRORS)
        .sort("errors", "column", "value", descending=[True, False, False])
    )
    return {
        segment_id: tuple(
            Label(**row) for row in rows.head(_SHOWN_LABELS).select("column", "value", "share", "lift").to_dicts()
        )
        for (segment_id,), rows in found.group_by("segment_id", maintain_order=True)
    }


def _label_table(users: pl.DataFrame, column: str) -> list[pl.DataFrame]:
    """A row for each segment and value of a column, with share, lift and errors; none for a column of many values."""
    values = users.select("segment_id", pl.col(column).cast(pl.String, strict=False).alias("value")).drop_nulls()
    if not 2 <= values["value"].n_unique() <= MOST_LABELS:
        return []
    sizes = values.group_by("segment_id").agg(pl.len().alias("size"))
    everyone = values.group_by("value").agg((pl.len() / len(values)).alias("usual"))
    share, usual = pl.col("share"), pl.col("usual")
    return [
        values.group_by("segment_id", "value")
        .agg(pl.len().alias("users"))
        .join(sizes, on="segment_id")
        .join(everyone, on="value")
        .with_columns((pl.col("users") / pl.col("size")).alias("share"), pl.lit(column).alias("column"))
        .with_columns(
            (share / usual).alias("lift"),
            ((share - usual) / (usual * (1 - usual) / pl.col("size")).sqrt()).alias("errors"),
        )
        .select("segment_id", "column", "value", "users", "share", "lift", "errors")
    ]


def _stories(sources: Sources, kind: str) -> dict[int, Story]:
    """What the users nearest to the middle of each segment, or at its border, have in common."""
    order = pl.col("distance") if kind == "typical" else pl.coalesce("confidence", -pl.col("distance"))
    rank = order.rank("ordinal").over("segment_id")
    size = pl.len().over("segment_id")
    # The nearest users of a small segment would be its border users too.
    chosen = sources.assignments.filter(rank <= STORY_USERS, size >= 3 * STORY_USERS)
    events = sources.events.join(chosen.lazy().select("user_id", "segment_id"), on="user_id")
    pairs = events.select("segment_id", "user_id", "item_id").unique()
    usual = sources.events.select("user_id", "item_id").unique().group_by("item_id").len("all_users")
    least = max(sources.least, round(_STORY_SHARE * STORY_USERS))
    everybody = len(sources.assignments)
    gain = pl.col("users") / STORY_USERS - pl.col("all_users") / everybody
    items = (
        pairs.group_by("segment_id", "item_id")
        .agg(pl.len().alias("users"))
        .filter(pl.col("users") >= least)
        .join(usual, on="item_id")
        .with_columns(gain.alias("gain"))
        .sort("gain", "item_id", descending=[True, False])
        .collect()
    )
    counts = (
        events.group_by("segment_id", "user_id").len("events").group_by("segment_id").agg(pl.col("events").median())
    )
    medians = dict(counts.collect().iter_rows())
    return {
        segment_id: Story(
            STORY_USERS, medians.get(segment_id, 0.0), _common(items, segment_id, sources.titles), _next(rows)
        )
        for (segment_id,), rows in chosen.group_by("segment_id")
    }


def _common(items: pl.DataFrame, segment_id: int, titles: Mapping[str, str]) -> tuple[tuple[str, int], ...]:
    """The items that a story names, of items with one title the first."""
    named: dict[str, int] = {}
    for item_id, users in items.filter(pl.col("segment_id") == segment_id).select("item_id", "users").iter_rows():
        named.setdefault(titles.get(item_id, item_id), users)
    return tuple(named.items())[:_STORY_ITEMS]


def _next(rows: pl.DataFrame) -> int:
    """The segment to which most of the users are next nearest; 0 if it is unknown."""
    runners = rows["runner_up_segment_id"].drop_nulls()
    return int(runners.mode().sort()[0]) if len(runners) else 0


def read_sources(
    prepared: Path, segmented: Path, titles: Mapping[str, str], has_clock: bool, time_zone: str, least: int
) -> Sources:
    """The sources of a run's stages."""
    users = prepared / "users.parquet"
    columns = ["user_id", "segment_id", "distance", "confidence", "runner_up_segment_id"]
    return Sources(
        events=pl.scan_parquet(prepared / "events.parquet").select("user_id", "item_id", "timestamp", "value"),
        assignments=pl.read_parquet(segmented / "assignments.parquet", columns=columns),
        users=pl.read_parquet(users) if users.is_file() else None,
        titles=titles,
        has_clock=has_clock,
        time_zone=time_zone,
        least=least,
    )
