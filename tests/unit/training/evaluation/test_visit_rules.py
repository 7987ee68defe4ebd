"""Each rule on three histories, with lists computed by hand."""

from functools import partial

import numpy as np
import pytest
from scipy import sparse

from training.evaluation.visit_rules import (
    OWN_FADING,
    RECENT_POPULARITY,
    GraphSettings,
    Past,
    Rule,
    TifuSettings,
    graph,
    item_knn,
    largest,
    own_fading,
    own_frequent,
    popularity,
    rules,
    tifu_knn,
)

DAY_MS = 86_400_000
ITEMS = "abcde"


def past_of(histories: list[list[str]], asked: list[int], has_clock: bool = True) -> Past:
    """Visits ten days apart, the newest of each user ten days before the user is asked for."""
    visits = [(user, visit, place) for user, one in enumerate(histories) for place, visit in enumerate(one)]
    events = [(user, item, number, place) for number, (user, visit, place) in enumerate(visits) for item in visit]
    user, item, number, place = zip(*events, strict=True)
    asked_at = [10 * DAY_MS * len(histories[row]) for row in asked]
    return Past(
        np.array(user),
        np.array([ITEMS.index(one) for one in item]),
        np.array(number),
        np.array(place) * 10 * DAY_MS,
        np.array(asked, np.intp),
        np.array(asked_at),
        len(histories),
        len(ITEMS),
        has_clock,
    )


PAST = past_of([["ab", "a", "c"], ["a", "c", "a"], ["d", "e"]], [0])


def scores(rule: Rule, user: int = 0) -> dict[str, float]:
    row = rule(slice(user, user + 1)).toarray()[0]
    return {item: float(score) for item, score in zip(ITEMS, row, strict=True) if score > 0}


def test_popularity_counts_events() -> None:
    assert scores(popularity(PAST)) == {"a": 4, "b": 1, "c": 2, "d": 1, "e": 1}


def test_popularity_of_the_last_days_counts_from_the_newest_event() -> None:
    assert scores(popularity(PAST, days=7)) == {"a": 1, "c": 1}
    assert scores(popularity(PAST, days=10.1)) == {"a": 2, "c": 2, "e": 1}


def test_own_most_frequent_counts_visits_and_then_looks_at_the_later_one() -> None:
    found = scores(own_frequent(PAST))
    assert sorted(found, key=found.__getitem__, reverse=True) == [*"acb"]
    assert {item: round(score) for item, score in found.items()} == {"a": 2, "c": 1, "b": 1}


@pytest.mark.parametrize(("half_life", "expected"), [(10, {"a": 0.375, "b": 0.125, "c": 0.5})])
def test_own_fading_halves_an_event_for_every_half_life(half_life: float, expected: dict[str, float]) -> None:
    assert scores(own_fading(PAST, half_life)) == pytest.approx(expected)


def test_item_knn_sums_cosines_to_own_items() -> None:
    """The cosine of a and c is 1, that of each with b is 1 / √2."""
    root = 2**-0.5
    assert scores(item_knn(PAST)) == pytest.approx({"a": 2 + root, "b": 1 + 2 * root, "c": 2 + root})


def test_tifu_knn_mixes_faded_frequencies_with_those_of_the_nearest_user() -> None:
    """Ann's vector is a 1/4, b 1/12, c 1/3; Ben, who is nearest, has a 5/12, c 1/6."""
    rule = tifu_knn(PAST, TifuSettings(groups=1, within=0.5, between=1.0, neighbours=1, own=0.5))
    assert scores(rule) == pytest.approx({"a": 1 / 3, "b": 1 / 24, "c": 1 / 4})


def test_tifu_knn_fades_by_group_of_visits() -> None:
    """Two groups, of the newest two visits and of the oldest one; groups have the size of the largest."""
    rule = tifu_knn(PAST, TifuSettings(groups=2, within=1.0, between=0.5, neighbours=1, own=1.0))
    assert scores(rule) == pytest.approx({"a": 0.25 + 0.125, "b": 0.125, "c": 0.25})


def test_the_graph_rule_walks_from_the_last_visit() -> None:
    """After c always came a; after a came c twice and a once."""
    assert scores(graph(PAST, GraphSettings(visits=1, steps=1, damping=0.5))) == {"a": 1}
    two_steps = graph(PAST, GraphSettings(visits=1, steps=2, damping=0.5))
    assert scores(two_steps) == pytest.approx({"a": 1 + 1 / 6, "c": 1 / 3})
    two_visits = graph(PAST, GraphSettings(visits=2, steps=1, damping=0.5))
    assert scores(two_visits) == pytest.approx({"a": 1 + 1 / 6, "c": 1 / 3})


@pytest.mark.parametrize("make", [own_frequent, partial(own_fading, half_life=10), item_knn])
def test_a_rule_scores_the_users_of_the_slice(make: partial[Rule]) -> None:
    both = past_of([["ab", "a", "c"], ["a", "c", "a"], ["d", "e"]], [0, 2])
    assert scores(make(both)) == pytest.approx(scores(make(PAST)))
    assert set(scores(make(both), 1)) == {"d", "e"}


def test_a_user_alone_has_no_nearest_users() -> None:
    alone = past_of([["ab", "a"]], [0])
    rule = tifu_knn(alone, TifuSettings(groups=1, within=1.0, between=1.0, neighbours=9, own=0.5))
    assert scores(rule) == pytest.approx({"a": 0.5, "b": 0.25})


def test_without_a_clock_no_rule_looks_at_times() -> None:
    assert {RECENT_POPULARITY, OWN_FADING} <= set(rules(PAST))
    without = past_of([["ab", "a"]], [0], has_clock=False)
    assert set(rules(PAST)) - set(rules(without)) == {RECENT_POPULARITY, OWN_FADING}


def test_the_largest_entries_of_each_row() -> None:
    matrix = sparse.csr_matrix(np.array([[3.0, 1.0, 2.0], [0.0, 5.0, 0.0]]))
    np.testing.assert_array_equal(largest(matrix, 2).toarray(), [[3, 0, 2], [0, 5, 0]])
