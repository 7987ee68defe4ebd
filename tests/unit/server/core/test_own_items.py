"""What a user had before, counted by hand."""

import numpy as np
import pytest

from server.core.own_items import DAY_MS, NEVER, OWN_FEATURES, USER_FEATURES, Behaviour, OwnItems, PastEvents, own_items
from server.core.visits import visit_starts

ITEMS = 10


def past(*events: tuple[int, float, float]) -> PastEvents:
    """Events (item row, day, weight), in time order."""
    time = np.array([round(day * DAY_MS) for _, day, _ in events], np.int64)
    return PastEvents(
        np.array([item for item, _, _ in events], np.int64),
        np.array([weight for _, _, weight in events], np.float32),
        time,
        visit_starts(np.zeros(len(time), np.int64), time, 0),
    )


def own(*users: PastEvents, has_clock: bool = True) -> OwnItems:
    return own_items(Behaviour.of(users, has_clock), ITEMS)


BUYER = past((3, 0, 1), (7, 0, 1), (3, 0, 1), (3, 10, 1), (5, 16, 2))


def feature(items: OwnItems, user: int, item: int, name: str) -> float:
    return float(items.features_of(user, np.array([item]))[0, OWN_FEATURES.index(name)])


def test_an_item_counts_once_a_visit() -> None:
    items = own(BUYER)
    assert items.items_of(0).tolist() == [3, 5, 7]
    assert items.visits.tolist() == [2, 1, 1]
    assert items.chances.tolist() == [2, 0, 2]
    assert feature(items, 0, 3, "share_of_visits") == pytest.approx(2 / 3)


def test_ages_and_rhythm_count_from_the_newest_event() -> None:
    items = own(BUYER)
    assert feature(items, 0, 3, "days_since_last") == pytest.approx(np.log1p(6))
    assert feature(items, 0, 3, "visits_since_last") == pytest.approx(np.log1p(2))
    assert feature(items, 0, 3, "days_since_first") == pytest.approx(np.log1p(16))
    assert feature(items, 0, 3, "gap_days") == pytest.approx(np.log1p(10))
    assert feature(items, 0, 3, "due_days") == pytest.approx(0.6)
    assert feature(items, 0, 7, "gap_days") == -1
    assert feature(items, 0, 3, "fading_30_days") == pytest.approx(np.log1p(2 ** (-16 / 30) + 2 ** (-6 / 30)))
    assert feature(items, 0, 5, "last_weight") == 2
    late = own(past(*[(item, day + 500, 1) for item, day in ((3, 0), (7, 0), (3, 10), (5, 16))]))
    early = own(past(*[(item, day, 1) for item, day in ((3, 0), (7, 0), (3, 10), (5, 16))]))
    np.testing.assert_array_equal(late.features, early.features)


def test_returns_are_no_wish_for_an_item_but_make_up_a_visit() -> None:
    items = own(past((3, 0, 1), (4, 5, -1), (3, 5, -1)))
    assert items.items_of(0).tolist() == [3]
    assert feature(items, 0, 3, "visits_since_last") == pytest.approx(np.log1p(2))


def test_items_that_a_user_never_had_have_the_values_of_never() -> None:
    np.testing.assert_array_equal(own(BUYER).features_of(0, np.array([0, 9])), [NEVER, NEVER])
    np.testing.assert_array_equal(own(past(), BUYER).features_of(0, np.array([3])), [NEVER])


def test_users_together_are_as_each_alone() -> None:
    others = past(), past((3, 2, 1)), BUYER, past((1, 1, 1), (1, 2, 1), (2, 2, 1)), past()
    together = own(*others)
    for user, one in enumerate(others):
        alone = own(one)
        np.testing.assert_array_equal(together.items_of(user), alone.items_of(0))
        rows = np.arange(ITEMS)
        np.testing.assert_array_equal(together.features_of(user, rows), alone.features_of(0, rows))
        np.testing.assert_array_equal(together.users[user], alone.users[0])


def test_the_users_own_figures() -> None:
    figures = dict(zip(USER_FEATURES, own(BUYER).users[0].tolist(), strict=True))
    assert figures["visits"] == pytest.approx(np.log1p(3))
    assert figures["visit_size"] == pytest.approx(np.log(4 / 3))
    assert figures["repeat_share"] == pytest.approx(1 / 4)
    assert figures["days"] == pytest.approx(np.log1p(16))


def test_without_a_clock_all_days_are_zero() -> None:
    items = own(BUYER, has_clock=False)
    assert feature(items, 0, 3, "days_since_first") == 0
    assert feature(items, 0, 3, "visits_since_last") == pytest.approx(np.log1p(2))
