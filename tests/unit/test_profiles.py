"""Traits and labels on logs whose right answer is obvious."""

import numpy as np
import polars as pl
import pytest

from server.core.profiles import Trait
from training.profiles import Members, facts_of, in_words, labels_of, profiles_of, silhouettes_of, traits_by_cluster

HOUR_MS = 3_600_000
MORNING, EVENING = 8 * HOUR_MS, 20 * HOUR_MS


def log_of(events: list[tuple[int, str, str, int]]) -> pl.LazyFrame:
    """Events are (user row, item id, action, milliseconds)."""
    rows, items, actions, times = (list(column) for column in zip(*events, strict=True))
    return pl.LazyFrame(
        {"row": pl.Series(rows, dtype=pl.UInt32), "item_id": items, "action": actions, "timestamp": times}
    )


ITEMS = pl.DataFrame(
    {
        "item_id": ["tea", "milk", "nails"],
        "title": ["Green tea", None, ""],
        "category": [["Food", "Drinks"], ["Food"], ["Tools"]],
    }
)


def two_kinds_of_shoppers() -> pl.LazyFrame:
    """Users 0 to 29 buy tea and milk in the morning, 30 to 59 look at nails in the evening; all buy some milk."""
    eaters = [(row, item, "buy", MORNING) for row in range(30) for item in ("tea", "tea", "milk")]
    makers = [(row, "nails", "view", EVENING) for row in range(30, 60) for _ in range(3)]
    return log_of(eaters + makers + [(row, "milk", "buy", EVENING) for row in range(30, 60)])


CLUSTERS = np.repeat([0, 1], 30)


def traits(has_clock: bool = True) -> list[list[Trait]]:
    return traits_by_cluster(facts_of(two_kinds_of_shoppers(), ITEMS, has_clock), CLUSTERS, 2)


def named(traits: list[Trait], kind: str) -> list[str]:
    return [trait.name for trait in traits if trait.kind == kind]


def test_traits_are_what_a_segment_does_more_than_everyone() -> None:
    first, second = traits()
    assert named(first, "category") == ["Drinks", "Food"]
    assert named(second, "category") == ["Tools"]
    assert named(first, "action") == ["buy"]
    assert named(second, "action") == ["view"]
    assert named(first, "time") == ["6–12 h UTC"]
    assert named(second, "time") == ["18–24 h UTC"]


def test_items_go_by_title_and_by_id_without_one() -> None:
    first, second = traits()
    assert named(first, "item")[0] == "Green tea"
    assert named(second, "item") == ["nails"]


def test_shares_and_lifts_are_of_events() -> None:
    tools = next(trait for trait in traits()[1] if trait.name == "Tools")
    assert tools.share == pytest.approx(90 / 120)
    assert tools.lift == pytest.approx((90 / 120) / (90 / 210))
    food = next(trait for trait in traits()[0] if trait.name == "Food")
    assert food.share == pytest.approx(1.0)


def test_traits_are_strongest_first() -> None:
    for own in traits():
        strengths = [trait.share * (trait.lift - 1) ** 2 / trait.lift for trait in own]
        assert strengths == sorted(strengths, reverse=True)


def test_without_a_clock_there_is_no_time_of_day() -> None:
    assert not any(trait.kind == "time" for own in traits(has_clock=False) for trait in own)


def test_what_one_user_does_is_no_trait() -> None:
    events = [(row, "milk", "buy", 0) for row in range(40) for _ in range(5)] + [(0, "nails", "buy", 0)] * 500
    found = traits_by_cluster(facts_of(log_of(events), ITEMS, False), np.repeat([0, 1], 20), 2)
    assert "Tools" not in named(found[0], "category")


def trait(kind: str, name: str, share: float = 0.5, lift: float = 2.0) -> Trait:
    return Trait(kind=kind, name=name, share=share, lift=lift)


@pytest.mark.parametrize(
    ("own", "label"),
    [
        ([], "All-round"),
        ([trait("category", "BABY FOODS"), trait("category", "Diapers")], "Baby foods · Diapers"),
        ([trait("time", "6–12 h UTC"), trait("category", "Beer"), trait("category", "Wine")], "Beer · Wine"),
        ([trait("action", "view"), trait("item", "Alien (1979)")], "Alien (1979) · view"),
        ([trait("action", "view")], "view"),
    ],
)
def test_labels_say_what_sets_apart(own: list[Trait], label: str) -> None:
    assert labels_of([own]) == [label]


def test_labels_differ_by_more_traits_and_then_by_number() -> None:
    common = [trait("category", "Beer"), trait("category", "Wine")]
    assert labels_of([[*common, trait("category", "Nuts")], [*common, trait("category", "Crisps")]]) == [
        "Beer · Wine · Nuts",
        "Beer · Wine · Crisps",
    ]
    assert labels_of([common, common, []]) == ["Beer · Wine (1)", "Beer · Wine (2)", "All-round"]


def test_words_are_not_shouted() -> None:
    assert in_words("FRZN  MEAT/MEAT DINNERS") == "Frzn meat/meat dinners"
    assert in_words("Sci-Fi") == "Sci-Fi"
    assert in_words("饮料") == "饮料"


def test_profiles_count_users_and_shares() -> None:
    points = np.repeat(np.eye(3)[:2], [30, 10], axis=0)
    members = Members(np.repeat([0, 1], [30, 10]), np.repeat([0.5, 0.25], [30, 10]), points)
    first, second = profiles_of(members, [4, 2], [[], [trait("category", "Beer")]], seed=0)
    assert (first.segment_id, first.user_count, first.share, first.label) == (4, 30, 0.75, "All-round")
    assert (second.segment_id, second.mean_distance, second.label) == (2, 0.25, "Beer")
    assert first.silhouette == pytest.approx(1.0)
    assert first.history == ()


def test_one_cluster_has_no_silhouette() -> None:
    members = Members(np.zeros(10, np.intp), np.zeros(10), np.random.default_rng(0).normal(size=(10, 3)))
    assert silhouettes_of(members, 1, seed=0).tolist() == [0.0]
