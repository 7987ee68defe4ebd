"""Items of segments: weights, half-life, smoothing and order, on logs whose right answer is obvious."""

import numpy as np
import polars as pl
import pytest
from numpy.typing import NDArray

from server.core.features import Features
from server.core.preprocessing import Action, Preprocessing
from training.data.sequences import EventLog
from training.ranking import segment_items as si
from training.ranking.segment_items import (
    Behaviour,
    Smoothing,
    behaviour_of,
    choose_smoothing,
    popularity,
    publishable,
    segment_items,
)

DAY_MS = 86_400_000
NO_FADING = Smoothing(half_life=1e9, prior=1e-6)


def preprocessing(has_clock: bool = True) -> Preprocessing:
    actions = (Action(name="purchase", weight=1.0), Action(name="return", weight=-1.0), Action(name="view", weight=0.5))
    return Preprocessing(max_length=8, actions=actions, has_clock=has_clock, exclude_seen=False)


def behaviour(events: list[tuple[int, int, int, int]], items: int = 3, has_clock: bool = True) -> Behaviour:
    """Events are (user row, item index, action index, day), each user's in one block."""
    log = indexed_log(events)
    return behaviour_of(log, log.features.offsets[1:], preprocessing(has_clock), items)


def indexed_log(events: list[tuple[int, int, int, int]]) -> EventLog:
    users, items, actions, days = (np.array(column, np.int32) for column in zip(*events, strict=True))
    offsets = np.searchsorted(users, np.arange(users.max() + 2))
    counts = np.zeros(len(offsets) - 1, np.int32)
    features = Features(
        items, actions, np.zeros(len(items), np.float32), np.ones(len(items), np.int32), offsets, counts
    )
    return EventLog(
        pl.Series([f"u{row}" for row in range(len(counts))]), features, days * np.int64(DAY_MS), offsets[1:]
    )


def lifts_of(log: Behaviour, table: pl.DataFrame, half_life: float = 1e9) -> dict[tuple[int, int], float]:
    """The probability of each item in each segment, divided by the item's global probability."""
    overall = popularity(log, half_life)
    return {
        (segment_id, index): float(np.exp(score) / overall[index - 1])
        for segment_id, index, score in table.select("segment_id", "item_index", "score").iter_rows()
    }


def items_of(frame: pl.DataFrame, segment_id: int) -> list[int]:
    return frame.filter(pl.col("segment_id") == segment_id)["item_index"].to_list()


def test_each_segment_gets_what_its_users_did() -> None:
    log = behaviour([(0, 1, 1, 0), (0, 1, 1, 1), (0, 2, 1, 1), (1, 3, 1, 1)])
    table = segment_items(log, np.array([0, 1]), [7, 4], NO_FADING)
    assert items_of(table, 7)[:2] == [1, 2]
    assert items_of(table, 4)[0] == 3
    assert table["segment_id"].unique(maintain_order=True).to_list() == [7, 4]
    assert table["item_index"].dtype == pl.Int32
    assert table["score"].dtype == pl.Float32
    assert table["score"][0] == pytest.approx(np.log(2 / 3), abs=1e-4)


def test_actions_weigh_and_returns_subtract() -> None:
    log = behaviour([(0, 1, 1, 0), (0, 1, 2, 0), (0, 2, 3, 0), (0, 3, 1, 0)])
    probability = np.exp(
        segment_items(log, np.zeros(1, np.intp), [1], NO_FADING).sort("item_index")["score"].to_numpy()
    )
    np.testing.assert_allclose(probability, [0, 1 / 3, 2 / 3], atol=1e-4)


def test_more_returns_than_purchases_count_as_nothing() -> None:
    log = behaviour([(0, 1, 2, 0), (0, 1, 2, 0), (0, 2, 1, 0)])
    global_popularity = popularity(log, 1e9)
    assert global_popularity.sum() == pytest.approx(1)
    assert (global_popularity > 0).all()
    np.testing.assert_allclose(global_popularity[0], si.UNIFORM_SHARE / 3)


def test_only_returns_make_all_items_equal() -> None:
    np.testing.assert_allclose(popularity(behaviour([(0, 1, 2, 0)]), 30.0), np.full(3, 1 / 3))


def test_an_event_a_half_life_ago_weighs_half() -> None:
    log = behaviour([(0, 1, 1, 0), (0, 2, 1, 30)])
    np.testing.assert_allclose(log.weights(30.0), [0.5, 1.0])


def test_without_a_clock_age_counts_a_users_own_events() -> None:
    log = behaviour([(0, 1, 1, 0), (0, 2, 1, 1), (1, 3, 1, 2)], has_clock=False)
    np.testing.assert_allclose(log.weights(1.0), [0.5, 1.0, 1.0])


def test_behaviour_ends_at_the_given_places() -> None:
    log = indexed_log([(0, 1, 1, 0), (0, 2, 1, 10), (1, 3, 1, 4), (1, 1, 1, 20)])
    cut = behaviour_of(log, np.array([1, 4]), preprocessing(), 3)
    assert cut.user_row.tolist() == [0, 1, 1]
    assert cut.item_row.tolist() == [0, 2, 0]
    assert cut.age.tolist() == [20, 16, 0]


def test_a_segment_of_few_events_is_drawn_to_global_popularity() -> None:
    log = behaviour([(0, 1, 1, 0)] * 50 + [(1, 2, 1, 0)])
    clusters = np.array([0, 1])
    loose = segment_items(log, clusters, [1, 2], Smoothing(1e9, 0.1))
    firm = segment_items(log, clusters, [1, 2], Smoothing(1e9, 1000.0))
    assert items_of(loose, 2)[0] == 2
    assert items_of(firm, 2)[0] == 1


def test_lists_are_cut_at_the_top(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(si, "TOP_ITEMS", 2)
    log = behaviour([(0, 1, 1, 0), (0, 3, 1, 0)])
    assert items_of(segment_items(log, np.zeros(1, np.intp), [1], NO_FADING), 1) == [1, 3]


def shared_log(buyers: int) -> tuple[Behaviour, NDArray[np.intp]]:
    """Ten users of each of two clusters buy item 1; `buyers` users of the first cluster buy item 2 three times."""
    events = [(user, item, 1, 0) for user in range(20) for item in [1] + [2] * 3 * (user < buyers)]
    return behaviour(events), np.repeat([0, 1], 10)


@pytest.mark.parametrize(("buyers", "is_publishable"), [(4, False), (5, True)])
def test_an_item_of_too_few_users_has_a_count_of_zero(buyers: int, is_publishable: bool) -> None:
    log, clusters = shared_log(buyers)
    smoothing = Smoothing(1e9, 1.0)
    table = segment_items(log, clusters, [1, 2], smoothing, min_users=5)
    lifts = lifts_of(log, table)
    assert (items_of(table, 1)[0] == 2) == is_publishable
    assert (lifts[1, 2] > 1) == is_publishable
    if not is_publishable:
        assert lifts[1, 2] == pytest.approx(lifts[1, 3]) == pytest.approx(lifts[2, 2])


def test_users_of_other_segments_and_those_who_returned_it_do_not_help() -> None:
    events = [(user, 1, 1, 0) for user in range(20)] + [
        (user, 2, 1, 0) for user in (0, 1, 2, 3, 10, 11) for _ in range(3 if user < 4 else 1)
    ]
    events += [(user, 2, 2, 0) for user in (5, 6)]
    log = behaviour(sorted(events))
    lifts = lifts_of(log, segment_items(log, np.repeat([0, 1], 10), [1, 2], Smoothing(1e9, 1.0), min_users=5))
    assert lifts[1, 2] < 1
    assert lifts[2, 2] < 1


def test_a_segment_that_is_too_small_gets_what_is_popular() -> None:
    log, clusters = shared_log(8)
    table = segment_items(log, clusters, [1, 2], Smoothing(1e9, 1.0), min_users=1, min_size=11)
    assert list(lifts_of(log, table).values()) == pytest.approx([1.0] * 6)
    assert items_of(table, 1) == items_of(table, 2)


def test_publishable_events_leave_out_users_without_a_cluster() -> None:
    log, clusters = shared_log(8)
    clusters[:4] = -1
    allowed = publishable(log, clusters, 5)
    assert set(allowed.user_row.tolist()) == set(range(4, 20))
    assert set(allowed.item_row.tolist()) == {0}


def test_a_list_is_full_where_few_items_are_publishable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(si, "TOP_ITEMS", 3)
    log, clusters = shared_log(1)
    table = segment_items(log, clusters, [1, 2], Smoothing(1e9, 1.0), min_users=5)
    assert table.group_by("segment_id").len()["len"].to_list() == [3, 3]


def test_the_prior_is_chosen_on_publishable_events() -> None:
    """Twenty users who continue with the other item call for a large prior, unless their events are not publishable."""
    events = [(user, user % 2 + 1, 1, 0) for user in range(40) for _ in range(5)]
    clusters, users = np.arange(40) % 2, np.arange(40)
    targets = users, 1 - users % 2
    assert choose_smoothing(behaviour(events), clusters, 2, targets, [30.0], 20).prior == max(si.PRIORS)
    assert choose_smoothing(behaviour(events), clusters, 2, targets, [30.0], 21).prior < max(si.PRIORS)


def test_an_empty_cluster_gets_what_is_popular() -> None:
    log = behaviour([(0, 2, 1, 0)])
    assert items_of(segment_items(log, np.zeros(1, np.intp), [1, 2], NO_FADING), 2)[0] == 2


def shifting_log() -> tuple[Behaviour, tuple[NDArray[np.intp], NDArray[np.intp]]]:
    """All users liked item 1 for a year and item 2 in the last week; their targets are item 2."""
    events = [(user, 1, 1, day) for user in range(4) for day in range(0, 350, 5)] + [(4, 2, 1, 365)] * 20
    log = behaviour(events)
    return log, (np.arange(4), np.full(4, 1))


def test_fading_is_chosen_by_what_came_next() -> None:
    log, targets = shifting_log()
    chosen = choose_smoothing(log, np.zeros(5, np.intp), 1, targets, si.HALF_LIVES_DAYS)
    assert chosen.half_life == 7.0


def test_the_prior_is_small_where_segments_differ_and_large_where_they_do_not() -> None:
    events = [(user, user % 2 + 1, 1, 0) for user in range(40) for _ in range(5)]
    clusters, users = np.arange(40) % 2, np.arange(40)
    differ = choose_smoothing(behaviour(events), clusters, 2, (users, users % 2), [30.0])
    alike = choose_smoothing(behaviour(events), clusters, 2, (users, 1 - users % 2), [30.0])
    assert differ.prior == min(si.PRIORS)
    assert alike.prior == max(si.PRIORS)


def test_without_targets_the_middle_prior_is_taken() -> None:
    none = np.empty(0, np.intp)
    chosen = choose_smoothing(behaviour([(0, 1, 1, 0)]), np.zeros(1, np.intp), 1, (none, none), (7.0, 30.0))
    assert chosen == Smoothing(30.0, si.PRIORS[2])
