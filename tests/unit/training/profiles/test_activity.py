"""How much, when and for how much, on logs that can be counted by hand."""

import numpy as np
import polars as pl
import pytest

from server.core.profiles import Activity, Spend
from training.profiles.activity import DAY_MS, Habits, habits_of

HOUR_MS = 3_600_000
MONDAY = 4 * DAY_MS
"""5 January 1970, 0 h UTC."""


def log_of(events: list[tuple[int, int, float | None]]) -> pl.LazyFrame:
    """Events are (user row, milliseconds, value)."""
    rows, times, values = (list(column) for column in zip(*events, strict=True))
    return pl.LazyFrame(
        {
            "row": pl.Series(rows, dtype=pl.UInt32),
            "timestamp": pl.Series(times, dtype=pl.Int64),
            "value": pl.Series(values, dtype=pl.Float32),
        }
    )


def habits(
    events: list[tuple[int, int, float | None]], clusters: list[int], has_clock: bool = True, min_users: int = 1
) -> list[Habits]:
    return habits_of(log_of(events), np.array(clusters), max(clusters) + 1, has_clock, min_users)


SHOPPERS = [
    *((0, MONDAY + hour * HOUR_MS, 2.0) for hour in (8, 9, 32)),
    (1, MONDAY + 8 * HOUR_MS, 6.0),
    (2, MONDAY + 10 * DAY_MS, None),
]


def test_activity_is_of_users() -> None:
    first, second = habits(SHOPPERS, [0, 0, 1])
    assert first.activity is not None
    assert (first.activity.mean_events, first.activity.median_events) == (2.0, 2.0)
    assert first.activity.mean_active_days == 1.5
    assert first.activity.mean_days_since_last == pytest.approx(((10 - 32 / 24) + (10 - 8 / 24)) / 2)
    assert second.activity == Activity(mean_events=1, median_events=1, mean_active_days=1, mean_days_since_last=0)


def test_hours_and_weekdays_are_shares_of_events() -> None:
    first, second = habits(SHOPPERS, [0, 0, 1])
    assert len(first.hours) == 24
    assert (first.hours[8], first.hours[9]) == (0.75, 0.25)
    assert first.weekdays == (0.75, 0.25, 0, 0, 0, 0, 0)
    assert second.weekdays == (0, 0, 0, 1, 0, 0, 0)


def test_spend_is_of_events_and_of_users() -> None:
    first, second = habits(SHOPPERS, [0, 0, 1])
    assert first.spend == Spend(mean_value=3.0, mean_total=6.0, median_total=6.0)
    assert second.spend is None


def test_values_that_are_no_numbers_are_none() -> None:
    [only] = habits([(0, 0, float("nan")), (0, 0, float("inf")), (1, 0, 4.0)], [0, 0])
    assert only.spend == Spend(mean_value=4.0, mean_total=2.0, median_total=2.0)


def test_spend_needs_enough_users_with_values() -> None:
    events = [(row, 0, 1.0 if row < 4 else None) for row in range(9)]
    assert habits(events, [0] * 9, min_users=5)[0].spend is None
    assert habits(events, [0] * 9, min_users=4)[0].spend is not None


def test_without_a_clock_there_are_no_times() -> None:
    first, _ = habits(SHOPPERS, [0, 0, 1], has_clock=False)
    assert first.hours == first.weekdays == ()
    assert first.growth is None
    assert first.activity == Activity(mean_events=2, median_events=2, mean_active_days=0, mean_days_since_last=0)


def growing(before: tuple[int, int], now: tuple[int, int], min_users: int = 1) -> list[float | None]:
    """Growth in a log of ten days, of so many users of each cluster in the last two of them; each acts twice."""
    clusters = [0] * 20 + [1] * 20
    events: list[tuple[int, int, float | None]] = [(row, 0, None) for row in range(40)]
    for counts, day in ((before, 8), (now, 9)):
        events += [(20 * c + row, day * DAY_MS + row, None) for c in (0, 1) for row in range(counts[c])] * 2
    end: list[tuple[int, int, float | None]] = [
        (0, 10 * DAY_MS, None)
    ]  # the first user of the first cluster, who acts on the last day as it is
    return [one.growth for one in habits(events + end, clusters, min_users=min_users)]


def test_growth_is_of_the_share_of_active_users() -> None:
    first, second = growing((10, 10), (15, 5))
    assert first == pytest.approx(0.5)
    assert second == pytest.approx(-0.5)


def test_everybody_acting_twice_as_much_is_no_growth() -> None:
    assert growing((5, 5), (10, 10)) == [pytest.approx(0), pytest.approx(0)]


@pytest.mark.parametrize(("before", "now"), [((4, 10), (10, 10)), ((10, 10), (4, 10))])
def test_growth_needs_enough_active_users_in_both_periods(before: tuple[int, int], now: tuple[int, int]) -> None:
    first, second = growing(before, now, min_users=5)
    assert first is None
    assert second is not None


def test_a_log_of_one_moment_has_no_growth() -> None:
    assert habits([(0, 5, None), (1, 5, None)], [0, 1])[0].growth is None


def test_a_cluster_without_users_has_no_habits() -> None:
    empty = habits([(0, 5, 1.0), (1, 7, 1.0)], [1, 1])[0]
    assert (empty.activity, empty.spend, empty.growth) == (None, None, None)
