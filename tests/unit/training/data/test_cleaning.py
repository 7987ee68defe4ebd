"""Every step of cleaning does what its line in the account says, and the counts add up."""

import io
from contextlib import suppress
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from training.config import Clean, Missing, MissingColumns, Outliers
from training.data.account import Account
from training.data.cleaning import (
    DAY_MS,
    clean,
    drop_duplicates,
    drop_impossible_times,
    drop_unusable_ids,
    fill_missing,
    keep_core,
    sort_events,
    treat_outliers,
    usual_values,
)
from training.data.reading.log_reader import RawLog
from training.data.split import Split
from training.errors import LogError

NOW = 1_700_000_000_000
IDS = ("user_id", "item_id", "action")


def frame(rows: list[tuple[Any, ...]]) -> pl.DataFrame:
    """Events as `reading.Log` has them, from rows of (user, item, action, value, timestamp)."""
    types = dict.fromkeys(IDS, pl.String) | {"value": pl.Float64, "timestamp": pl.Int64}
    events = pl.DataFrame(rows, schema=types, orient="row")
    return events.with_columns(events[name].cast(pl.Enum(events[name].drop_nulls().unique().sort())) for name in IDS)


def values(*numbers: float | None, user: str = "u") -> pl.DataFrame:
    """One user's events with these values, in this order."""
    return frame([(user, "i", "view", number, NOW + place) for place, number in enumerate(numbers)])


def test_training_part_holds_back_two_events_of_each_user() -> None:
    events = frame(
        [(user, "i", "view", None, n) for user, count in (("a", 1), ("b", 2), ("c", 4)) for n in range(count)]
    )
    assert Split().training_part(events.lazy()).collect().select("user_id", "timestamp").rows() == [("c", 0), ("c", 1)]


def test_ids_that_the_api_refuses_are_dropped() -> None:
    good, longest = "u", "é" * 128
    events = frame([(user, "i", "view", None, NOW) for user in (good, longest, longest + "x", "a\0b", "a\nb", "a\x7f")])
    kept, step = drop_unusable_ids(events, "user_id")
    assert kept["user_id"].to_list() == [good, longest]
    assert step.rows_dropped == 4


def test_times_before_1970_and_in_the_future_are_dropped() -> None:
    events = frame([("u", "i", "view", None, time) for time in (-1, 0, NOW, NOW + DAY_MS, NOW + DAY_MS + 1)])
    kept, step = drop_impossible_times(events, has_clock=True, now_ms=NOW)
    assert kept["timestamp"].to_list() == [0, NOW, NOW + DAY_MS]
    assert step.rows_dropped == 2
    assert drop_impossible_times(events, has_clock=False, now_ms=NOW)[0].equals(events)


@pytest.mark.parametrize("later", [1, 2**62])
def test_events_are_sorted_by_user_then_time_and_ties_stay(later: int) -> None:
    rows = [("b", "1", 5), ("a", "2", later), ("a", "3", 0), ("b", "4", 5), ("a", "5", 0), ("b", "6", -1)]
    events = frame([(user, item, "view", None, time) for user, item, time in rows])
    assert sort_events(events)["item_id"].to_list() == ["3", "5", "2", "6", "1", "4"]


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        (Missing(method="keep"), [1.0, None, 2.0, None, 6.0, 100.0, 100.0]),
        (Missing(method="drop"), [1.0, 2.0, 6.0, 100.0, 100.0]),
        (Missing(method="constant", fill=0.0), [1.0, 0.0, 2.0, 0.0, 6.0, 100.0, 100.0]),
        (Missing(method="mean"), [1.0, 3.0, 2.0, 3.0, 6.0, 100.0, 100.0]),
        (Missing(method="median"), [1.0, 2.0, 2.0, 2.0, 6.0, 100.0, 100.0]),
        (Missing(method="interpolate"), [1.0, 1.5, 2.0, 4.0, 6.0, 100.0, 100.0]),
    ],
)
def test_missing_values_by_the_training_part(how: Missing, expected: list[float | None]) -> None:
    """The user's last two events, 100 each, are held back and count for no statistic."""
    kept, step = fill_missing(values(1.0, None, 2.0, None, 6.0, 100.0, 100.0), "value", how)
    assert kept["value"].to_list() == expected
    assert step.rows_dropped == 7 - len(expected)
    assert step.rows_changed == (2 if how.method not in ("keep", "drop") else 0)


def test_the_most_frequent_value_and_action() -> None:
    assert fill_missing(values(3.0, 3.0, None, 1.0, 1.0, 1.0), "value", Missing(method="most_frequent"))[0][
        "value"
    ].to_list() == [3.0, 3.0, 3.0, 1.0, 1.0, 1.0]
    events = frame(
        [("u", "i", action, None, n) for n, action in enumerate(["view", "view", None, "buy", "buy", "buy"])]
    )
    filled, step = fill_missing(events, "action", Missing(method="most_frequent"))
    assert filled["action"][2] == "view"
    assert step.rows_changed == 1


def test_a_constant_may_be_a_new_text() -> None:
    events = frame([(user, "i", "view", None, NOW) for user in ("a", None)])
    filled, step = fill_missing(events, "user_id", Missing(method="constant", fill="nobody"))
    assert filled["user_id"].to_list() == ["a", "nobody"]
    assert (step.rows_changed, step.rows_dropped) == (1, 0)


def test_times_are_interpolated_between_neighbours_and_dropped_where_there_are_none() -> None:
    events = frame([("a", "i", "v", None, time) for time in (10, None, 30, None)] + [("b", "i", "v", None, None)])
    filled, step = fill_missing(events, "timestamp", Missing(method="interpolate"))
    assert filled["timestamp"].to_list() == [10, 20, 30, 30]
    assert (step.rows_changed, step.rows_dropped) == (2, 1)


def test_without_a_training_part_a_statistic_fills_nothing() -> None:
    kept, step = fill_missing(values(1.0, None), "value", Missing(method="mean"))
    assert kept["value"].to_list() == [1.0, None]
    assert step.rows_changed == 0


def test_duplicates_are_equal_in_everything() -> None:
    row = ("u", "i", "view", None, NOW)
    events = frame(
        [row, ("u", "j", "view", None, NOW), row, ("u", "i", "view", 1.0, NOW), ("u", "i", "view", None, NOW + 1)]
    )
    kept, step = drop_duplicates(events, enabled=True, ordered_by_row=False)
    assert kept.equals(pl.concat([events[:2], events[3:]]))
    assert step.rows_dropped == 1
    assert len(drop_duplicates(events, enabled=False, ordered_by_row=False)[0]) == 5


def test_without_a_time_column_only_the_row_before_can_be_repeated() -> None:
    events = frame([("u", item, "view", None, n) for n, item in enumerate(["i", "i", "j", "i"])])
    kept, _ = drop_duplicates(events, enabled=True, ordered_by_row=True)
    assert kept["item_id"].to_list() == ["i", "j", "i"]


USUAL = [float(number % 10) for number in range(100)]


@pytest.mark.parametrize("method", ["z_score", "iqr", "isolation_forest"])
@pytest.mark.parametrize("action", ["drop", "clip"])
def test_outliers_by_the_training_part(method: Any, action: Any) -> None:
    # An isolation forest knows only what it grew on; a z-score is stretched by far values that it learns from.
    seen = [1e6, -1e6] if method == "isolation_forest" else []
    events = values(*USUAL, *seen, None, -1e6, 1e6)
    far = int((events["value"].abs() > 1e5).sum())
    share = 0.03 if method == "isolation_forest" else None
    outliers = Outliers(method=method, action=action, threshold=share)
    kept, step = treat_outliers(events, outliers, usual_values(events, outliers, seed=0))
    assert kept["value"].abs().max() < 100  # type: ignore[operator]
    assert kept["value"].null_count() == 1
    assert (step.rows_dropped, step.rows_changed) == ((far, 0) if action == "drop" else (0, far))


def test_few_events_are_dropped_until_nothing_changes() -> None:
    pairs = [("a", "x"), ("a", "y"), ("b", "x"), ("b", "y"), ("c", "y"), ("c", "z"), ("d", "z")]
    kept, steps = keep_core(frame([(*pair, "view", None, NOW) for pair in pairs]), per_user=2, per_item=2)
    assert kept.select("user_id", "item_id").rows() == pairs[:4]
    assert [step.rows_dropped for step in steps] == [2, 1]  # d, then item z, then c


def test_nothing_left_is_an_error_that_names_the_step() -> None:
    log = RawLog(values(1.0, 2.0), True, False, {})
    with pytest.raises(LogError, match="left none of 2 events; the step `users with few events` dropped 2"):
        clean(log, Clean(min_events_per_user=9), NOW, 0)


def test_the_account_as_a_table() -> None:
    log = RawLog(values(1.0, 1.0, None), True, False, {})
    cleaned = clean(log, Clean(missing=MissingColumns(value=Missing(method="drop"))), NOW, 0)
    account = Account(rows_in=3, rows_out=2, steps=cleaned.steps, notes=("a remark",))
    console = Console(file=io.StringIO(), width=100)
    console.print(account.table())
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "3 events read, 2 kept" in text
    assert "missing value" in text
    assert "a remark" in text
    assert "duplicates" not in text
    assert Account.model_validate_json(account.model_dump_json()) == account


small = st.integers(0, 3)
rows = st.tuples(
    st.sampled_from(["a", "b", "c", None, "a\0"]),
    st.sampled_from(["x", "y", "z", None]),
    st.sampled_from(["view", "buy", None]),
    st.sampled_from([None, 0.0, 1.0, 2.0, 1e9, float("inf")]),
    st.sampled_from([None, -5, 0, NOW, NOW + 1, NOW + 2 * DAY_MS]),
)
text_methods = st.sampled_from([Missing(method="drop"), Missing(method="constant", fill="new")])
number_methods = st.sampled_from(
    [Missing(method=method) for method in ("drop", "mean", "median", "most_frequent", "interpolate")]
    + [Missing(method="constant", fill=1.0)]
)
cleanings = st.builds(
    Clean,
    drop_duplicates=st.booleans(),
    missing=st.builds(
        MissingColumns,
        user_id=text_methods,
        item_id=text_methods,
        action=text_methods,
        value=number_methods | st.just(Missing(method="keep")),
        timestamp=number_methods,
    ),
    outliers=st.builds(
        Outliers, method=st.sampled_from(["none", "z_score", "iqr"]), action=st.sampled_from(["drop", "clip"])
    ),
    min_events_per_user=small.map(lambda number: number + 1),
    min_events_per_item=small.map(lambda number: number + 1),
)


@settings(max_examples=200, deadline=None)
@given(st.lists(rows, min_size=1, max_size=40), cleanings, st.booleans(), st.booleans())
def test_the_counts_add_up(rows: list[tuple[Any, ...]], how: Clean, has_clock: bool, ordered_by_row: bool) -> None:
    log = RawLog(frame(rows), has_clock, ordered_by_row and not has_clock, {})
    cleaned = None
    with suppress(LogError):
        cleaned = clean(log, how, NOW, 0)
    if cleaned is None:  # nothing was left
        return
    left = len(rows)
    for step in cleaned.steps:
        assert step.rows_in == left
        assert 0 <= step.rows_dropped <= left
        left = step.rows_out
        assert 0 <= step.rows_changed <= left
    events = cleaned.events
    assert left == len(events)
    assert events.select(*IDS, "timestamp").null_count().sum_horizontal().item() == 0
    assert events["value"].drop_nulls().is_finite().all()
    assert events.equals(events.sort("user_id", "timestamp", maintain_order=True))
    for column, least in (("user_id", how.min_events_per_user), ("item_id", how.min_events_per_item)):
        assert events.group_by(column).len()["len"].min() >= least  # type: ignore[operator]
