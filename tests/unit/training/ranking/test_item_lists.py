"""Lists of items that describe segments, on users whose choices are planted."""

import numpy as np
import polars as pl
import pytest
from numpy.typing import NDArray

from server.core.profiles import SegmentItem
from training.ranking import item_lists as module
from training.ranking.item_lists import ItemLists, item_lists, list_overlap
from training.ranking.segment_items import Behaviour

CLUSTERS = np.repeat([0, 1, 2], 100)


def behaviour(choices: dict[str, list[int]], weight: float = 1.0, events: int = 1) -> tuple[Behaviour, pl.Series]:
    """Each item with the rows of the users who chose it, each by `events` events; and the item ids."""
    users = np.concatenate([np.repeat(np.array(rows, np.intp), events) for rows in choices.values()])
    items = np.repeat(np.arange(len(choices)), [len(rows) * events for rows in choices.values()])
    weights = np.full(len(users), weight)
    return Behaviour(users, items, weights, np.zeros(len(users)), len(choices)), pl.Series(list(choices))


def planted() -> dict[str, list[int]]:
    """Three segments of 100 users.

    80 of each chose bananas. 60 of the first segment and 10 of each other chose tea; 40 of the second segment chose
    fish, and nobody else did. The choices of 200 items are random.
    """
    rng = np.random.default_rng(0)
    chance = {f"chance-{item}": np.flatnonzero(rng.random(300) < 0.05).tolist() for item in range(200)}
    return chance | {
        "bananas": [user for user in range(300) if user % 100 < 80],
        "tea": [*range(60), *range(100, 110), *range(200, 210)],
        "fish": [*range(100, 140)],
    }


def lists(choices: dict[str, list[int]], *limits: int, clusters: NDArray[np.intp] = CLUSTERS) -> list[ItemLists]:
    log, item_ids = behaviour(choices)
    return item_lists(log, clusters, int(clusters.max()) + 1, item_ids, *limits)


def names(items: tuple[SegmentItem, ...]) -> list[str]:
    return [item.item_id for item in items]


def test_what_all_choose_alike_leads_by_share_and_is_not_particular() -> None:
    found = lists(planted())
    assert [names(one.top)[0] for one in found] == ["bananas"] * 3
    assert [names(one.particular) for one in found] == [["tea"], ["fish"], []]


def test_figures_are_shares_of_users() -> None:
    first, second, _ = lists(planted())
    bananas, tea = first.top[:2]
    assert (bananas.user_share, bananas.lift) == (0.8, pytest.approx(1.0))
    assert (tea.item_id, tea.user_share, tea.lift) == ("tea", 0.6, pytest.approx(60 / 100 / (80 / 300)))
    assert first.particular == (tea,)
    assert 1 < tea.lift_low < tea.lift
    [fish] = second.particular
    assert (fish.user_share, fish.lift) == (0.4, pytest.approx(3.0))
    assert 2 < fish.lift_low < 3


@pytest.mark.parametrize(("users", "alone"), [(3, []), (5, ["rare"])])
def test_an_item_of_a_few_users_does_not_lead_by_chance(users: int, alone: list[str]) -> None:
    """All of them are in the first segment, so that the lift is as large as it can be.

    Five users are no accident for the only item, but for one of 200 items they are.
    """
    rare = {"rare": list(range(users))}
    [item] = lists(rare)[0].top
    assert item.lift == pytest.approx(3.0)
    assert names(lists(rare)[0].particular) == alone
    assert names(lists(planted() | rare)[0].particular) == ["tea"]


@pytest.mark.parametrize("seed", range(5))
def test_choices_at_random_make_no_item_particular(seed: int) -> None:
    rng = np.random.default_rng(seed)
    rates = rng.choice([0.01, 0.03, 0.1, 0.5], 500)
    choices = {f"i{item}": np.flatnonzero(rng.random(300) < rate).tolist() for item, rate in enumerate(rates)}
    assert [one.particular for one in lists(choices)] == [()] * 3


def test_the_bound_is_exact() -> None:
    """With one candidate and n users, all in one of two equal segments, the bound is 2 × 0.025^(1/n)."""
    [item] = lists({"a": [0, 1, 2, 3, 4, 5, 6, 7]}, clusters=np.repeat([0, 1], 10))[0].particular
    assert item.lift_low == pytest.approx(2 * 0.025 ** (1 / 8))


def test_users_count_once_and_returns_do_not_count() -> None:
    log, ids = behaviour({"a": [0, 1], "b": [0]}, events=7)
    [found] = item_lists(log, np.zeros(4, np.intp), 1, ids)
    assert [(item.item_id, item.user_share) for item in found.top] == [("a", 0.5), ("b", 0.25)]
    log, ids = behaviour({"a": [0, 1]}, weight=-1.0)
    assert item_lists(log, np.zeros(4, np.intp), 1, ids) == [ItemLists()]


@pytest.mark.parametrize(("min_users", "shown"), [(40, True), (41, False)])
def test_items_of_too_few_users_are_in_no_list(min_users: int, shown: bool) -> None:
    second = lists(planted(), min_users)[1]
    assert ("fish" in names(second.top)) == ("fish" in names(second.particular)) == shown
    assert names(lists(planted(), 100)[1].top) == []


def test_a_segment_that_is_too_small_has_no_lists() -> None:
    clusters = np.repeat([0, 1], [210, 90])
    large, small = lists(planted(), 1, 91, clusters=clusters)
    assert large.top
    assert small == ItemLists()


def test_the_only_segment_is_particular_about_nothing() -> None:
    [only] = lists(planted(), clusters=np.zeros(300, np.intp))
    assert names(only.top)[0] == "bananas"
    assert only.top[0].lift == pytest.approx(1.0)
    assert only.particular == ()


def test_lists_are_cut_and_equal_figures_are_in_order_of_ids(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LONGEST_LIST", 2)
    [found] = lists({"c": [0, 1], "b": [0, 1], "a": [0, 1]}, clusters=np.zeros(2, np.intp))
    assert names(found.top) == ["a", "b"]


def listed(*item_ids: str) -> list[SegmentItem]:
    return [SegmentItem(item_id=item_id, user_share=0.5, lift=1, lift_low=0.5) for item_id in item_ids]


def test_overlap_is_the_share_in_common_over_all_pairs() -> None:
    overlap = list_overlap([listed("a", "b", "c", "d"), listed("d", "a"), listed("x"), []])
    assert overlap is not None
    assert overlap.mean == pytest.approx((2 / 4 + 0 + 0) / 3)
    assert overlap.largest == pytest.approx(0.5)
    assert list_overlap([listed("a", "b"), listed("b", "a")]) == module.ListOverlap(mean=1, largest=1)


def test_fewer_than_two_lists_have_no_overlap() -> None:
    assert list_overlap([listed("a"), []]) is None
    assert list_overlap([]) is None
