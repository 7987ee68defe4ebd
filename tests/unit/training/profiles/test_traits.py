"""Traits and actions of clusters, on logs whose right answer is obvious, and on logs that have nothing to tell."""

import numpy as np
import polars as pl
import pytest
from numpy.typing import NDArray
from scipy.stats import t

from server.core.profiles import Trait
from training.profiles.traits import actions_by_cluster, tallies_of, traits_by_cluster

HOUR_MS = 3_600_000
MORNING, EVENING = 8 * HOUR_MS, 20 * HOUR_MS
CLUSTERS = np.repeat([0, 1], 30)

ITEMS = pl.DataFrame(
    {
        "item_id": ["tea", "milk", "nails"],
        "title": ["Green tea", None, ""],
        "category": [["Food", "Drinks"], ["Food"], ["Tools"]],
    }
)


def log_of(events: list[tuple[int, str, str, int]]) -> pl.LazyFrame:
    """Events are (user row, item id, action, milliseconds)."""
    rows, items, actions, times = (list(column) for column in zip(*events, strict=True))
    return pl.LazyFrame(
        {"row": pl.Series(rows, dtype=pl.UInt32), "item_id": items, "action": actions, "timestamp": times}
    )


def two_kinds_of_shoppers() -> list[tuple[int, str, str, int]]:
    """Users 0 to 29 buy tea and milk in the morning, 30 to 59 look at nails in the evening; all buy some milk."""
    eaters = [(row, item, "buy", MORNING) for row in range(30) for item in ("tea", "tea", "milk")]
    makers = [(row, "nails", "view", EVENING) for row in range(30, 60) for _ in range(3)]
    return eaters + makers + [(row, "milk", "buy", EVENING) for row in range(30, 60)]


def traits_of(
    events: list[tuple[int, str, str, int]],
    clusters: NDArray[np.intp] = CLUSTERS,
    min_users: int = 5,
    has_clock: bool = True,
) -> list[list[Trait]]:
    tallies = tallies_of(log_of(events), ITEMS, clusters, has_clock)
    return traits_by_cluster(tallies, int(clusters.max()) + 1, min_users)


def named(traits: list[Trait], kind: str) -> list[str]:
    return [trait.name for trait in traits if trait.kind == kind]


def test_traits_are_what_a_segment_does_more_than_everyone() -> None:
    first, second = traits_of(two_kinds_of_shoppers())
    assert sorted(named(first, "category")) == ["Drinks", "Food"]
    assert named(second, "category") == ["Tools"]
    assert named(first, "action") == ["buy"]
    assert named(second, "action") == ["view"]
    assert named(first, "time") == ["6–12 h UTC"]
    assert named(second, "time") == ["18–24 h UTC"]


def test_items_go_by_title_and_by_id_without_one() -> None:
    first, second = traits_of(two_kinds_of_shoppers())
    assert named(first, "item")[0] == "Green tea"
    assert named(second, "item") == ["nails"]


def test_shares_and_lifts_are_of_events_and_users_are_counted() -> None:
    first, second = traits_of(two_kinds_of_shoppers())
    tools = next(trait for trait in second if trait.name == "Tools")
    assert tools.share == pytest.approx(90 / 120)
    assert tools.lift == pytest.approx((90 / 120) / (90 / 210))
    assert tools.user_count == 30
    food = next(trait for trait in first if trait.name == "Food")
    assert food.share == pytest.approx(1.0)


def test_a_category_named_twice_for_an_item_counts_once() -> None:
    items = ITEMS.with_columns(category=pl.Series([["Food", "Food"], ["Food"], ["Tools"]]))
    tallies = tallies_of(log_of(two_kinds_of_shoppers()), items, CLUSTERS, False)
    food = next(trait for trait in traits_by_cluster(tallies, 2, 5)[0] if trait.name == "Food")
    assert food.share == pytest.approx(1.0)


def test_without_a_clock_there_is_no_time_of_day() -> None:
    assert not any(trait.kind == "time" for own in traits_of(two_kinds_of_shoppers(), has_clock=False) for trait in own)


def test_the_bound_lies_below_the_lift_and_above_one_and_orders_the_traits() -> None:
    for own in traits_of(two_kinds_of_shoppers()):
        assert own
        assert all(1 < trait.lift_low <= trait.lift for trait in own)
        strengths = [trait.share * (trait.lift_low - 1) ** 2 / trait.lift_low for trait in own]
        assert strengths == sorted(strengths, reverse=True)


def test_the_bound_is_that_of_users_drawn_again() -> None:
    """The error of the quotient of shares is the spread of its logarithm over resampled users, within a tenth."""
    rng = np.random.default_rng(0)
    teas, nails = rng.poisson(2, 200) + 1, rng.poisson(4, 200) + 1
    teas[:100] += rng.poisson(6, 100)
    events = [(row, "tea", "buy", 0) for row in range(200) for _ in range(teas[row])]
    events += [(row, "nails", "buy", 0) for row in range(200) for _ in range(nails[row])]
    found = next(trait for trait in traits_of(events, np.repeat([0, 1], 100))[0] if trait.kind == "item")
    part = (teas + nails)[:100].sum() / (teas + nails).sum()
    quotient, low = (lift * (1 - part) / (1 - part * lift) for lift in (found.lift, found.lift_low))
    quotient *= teas[100:].sum() / (teas[100:].sum() + teas.mean())  # one more of the others counts as having it
    degrees = teas[:100].sum() ** 2 / (teas[:100] ** 2).sum() - 1
    error = np.log(quotient / low) / t.isf(0.025 / 2, degrees)
    logs = []
    for _ in range(2_000):
        first, second = rng.integers(0, 100, 100), rng.integers(100, 200, 100)
        shares = [teas[rows].sum() / (teas[rows].sum() + nails[rows].sum()) for rows in (first, second)]
        logs.append(np.log(shares[0] / shares[1]))
    assert error == pytest.approx(np.std(logs), rel=0.1)


def test_segments_drawn_by_lot_have_no_traits() -> None:
    """Of 200 segments of some 50 users that differ from nobody, at most one in twenty says that it does."""
    rng = np.random.default_rng(1)
    users, items, kinds = 10_000, 2_000, 60
    length = rng.geometric(0.06, users)
    row = np.repeat(np.arange(users), length)
    taste = rng.integers(0, kinds, users)[row]
    chance = 1 / np.arange(1, items + 1)
    item = rng.choice(items, len(row), p=chance / chance.sum())
    item = np.where(rng.random(len(row)) < 0.5, taste + kinds * rng.integers(0, items // kinds, len(row)), item)
    frame = pl.LazyFrame({"row": row.astype(np.uint32), "item": item, "timestamp": rng.integers(0, 10**9, len(row))})
    events = frame.select("row", pl.format("i{}", "item").alias("item_id"), pl.lit("buy").alias("action"), "timestamp")
    catalogue = pl.DataFrame({"item_id": [f"i{number}" for number in range(items)]}).with_columns(
        pl.lit(None, pl.String).alias("title"),
        pl.Series("category", [[f"kind {number % kinds}"] for number in range(items)]),
    )
    tallies = tallies_of(events, catalogue, rng.integers(0, 200, users), True)
    told = traits_by_cluster(tallies, 200, 5)
    for kind in ("item", "category", "time"):
        assert sum(bool(named(own, kind)) for own in told) <= 10


def test_events_of_one_user_are_no_trait() -> None:
    events = [(row, "milk", "buy", 0) for row in range(40) for _ in range(5)] + [(0, "nails", "buy", 0)] * 500
    found = traits_of(events, np.repeat([0, 1], 20), min_users=1)
    assert "Tools" not in named(found[0], "category")
    assert "nails" not in named(found[0], "item")


@pytest.mark.parametrize(("buyers", "told"), [(4, False), (5, True)])
def test_names_with_too_few_users_are_no_traits(buyers: int, told: bool) -> None:
    """Nails, tools and asking for them are the business of five users of the first segment, or of nobody."""
    events = [(row, "milk", "buy", MORNING) for row in range(1_000) for _ in range(3)]
    events += [(row, "nails", "ask", MORNING) for row in range(buyers) for _ in range(30)]
    tallies = tallies_of(log_of(events), ITEMS, np.repeat([0, 1], [30, 970]), True)
    names = {trait.name for trait in traits_by_cluster(tallies, 2, 5)[0]}
    assert names == ({"nails", "Tools", "ask"} if told else set())
    assert [action.action for action in actions_by_cluster(tallies, 2, 5)[0]] == (["ask", "buy"] if told else ["buy"])


def test_what_nobody_else_had_by_chance_is_no_trait() -> None:
    """Five buyers of nails among 60 users are in one half of them once in 32 times."""
    events = [(row, "milk", "buy", MORNING) for row in range(60)]
    events += [(row, "nails", "buy", MORNING) for row in range(5)]
    assert not named(traits_of(events)[0], "item")


def test_shares_of_actions_do_not_give_away_the_one_that_is_missing() -> None:
    events = [(row, "milk", "buy", 0) for row in range(60)] + [(row, "milk", "ask", 0) for row in range(4)]
    events += [(row, "milk", "view", 0) for row in [*range(30), *range(20), *range(30, 34)]] * 2
    tallies = tallies_of(log_of(events), ITEMS, CLUSTERS, False)
    first, second = actions_by_cluster(tallies, 2, 5)
    assert [action.action for action in first] == ["view", "buy"]
    assert sum(action.share for action in first) == pytest.approx(1.0)
    view = next(trait for trait in traits_by_cluster(tallies, 2, 5)[0] if trait.name == "view")
    assert view.share == first[0].share
    [buy] = second
    assert (buy.action, buy.share) == ("buy", 1.0)
    assert buy.lift == pytest.approx(172 / 60)


def test_a_single_cluster_has_no_traits() -> None:
    assert traits_of(two_kinds_of_shoppers(), np.zeros(60, np.intp)) == [[]]
