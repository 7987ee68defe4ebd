from dataclasses import replace

import numpy as np
import polars as pl
import pytest

from server.core.history import Event, history_of
from server.core.own_items import PastEvents
from server.core.ranking.query import Part, Query, Ranked, Strategy, Subject
from server.core.ranking.rank import past_events, rank
from server.core.release import TREND, Release
from server.core.repository.read import read_release
from tests.support.releases import item_id, tiny_release


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Release:
    return read_release(tiny_release(tmp_path_factory.mktemp("repository")))


def subject(release: Release, group: int = 0, seen: tuple[int, ...] = ()) -> Subject:
    """Somebody in the middle of a group's items."""
    embedding = release.item_embeddings[group::4].mean(0)
    return Subject(embedding, group + 1, past(release, seen))


def past(release: Release, seen: tuple[int, ...] = ()) -> PastEvents:
    """Views of items, a day apart."""
    events = [Event(release.item_ids[row], "view", timestamp=day * 86_400_000) for day, row in enumerate(seen)]
    return past_events(release, history_of(events))


def ranked(release: Release, query: Query, user: Subject) -> list[Ranked]:
    return rank(release, query, [user])[0].items


def rows(items: list[Ranked]) -> list[int]:
    return [item.row for item in items]


def test_personal_is_the_exact_order_of_inner_products(release: Release) -> None:
    user = subject(release)
    items = ranked(release, Query(20, Strategy.PERSONAL), user)
    assert user.embedding is not None
    expected = np.argsort(-(release.item_embeddings @ user.embedding), kind="stable")[:20]
    assert rows(items) == expected.tolist()
    assert {item.reason for item in items} == {Part.ENCODER}


def test_segment_gives_the_segments_items(release: Release) -> None:
    items = ranked(release, Query(5, Strategy.SEGMENT), subject(release, 2))
    assert rows(items) == (release.segment_items[3].item_index[:5] - 1).tolist()
    assert {item.reason for item in items} <= {Part.SEGMENT, Part.POPULARITY}


def test_a_segment_with_too_few_items_is_filled_with_popular_items(release: Release) -> None:
    listed = len(release.segment_items[1].item_index)
    items = ranked(release, Query(50, Strategy.SEGMENT), subject(release))
    assert len(rows(items)) == len(set(rows(items))) == 50
    assert Part.SEGMENT in {item.reason for item in items[:listed]}
    assert {item.reason for item in items[listed:]} == {Part.POPULARITY}


def test_popular_is_the_order_of_popularity(release: Release) -> None:
    items = ranked(release, Query(50, Strategy.POPULAR), subject(release))
    assert rows(items) == np.argsort(-release.popularity, kind="stable").tolist()


@pytest.mark.parametrize("strategy", list(Strategy))
def test_a_user_without_history_gets_popular_items(release: Release, strategy: Strategy) -> None:
    items = ranked(release, Query(5, strategy), Subject(None, 0, past(release)))
    assert rows(items) == release.popular_rows[:5].tolist()
    assert {item.reason for item in items} == {Part.POPULARITY}


def test_hybrid_mixes_logits_and_log_probabilities_by_the_releases_weight(release: Release) -> None:
    user = subject(release, 1)
    assert user.embedding is not None
    listed = release.segment_items[2]
    expected = np.minimum(release.popularity, listed.score[-1])
    expected[listed.item_index - 1] = listed.score
    expected = 0.5 * expected + 0.5 * (release.item_embeddings @ user.embedding)
    items = ranked(release, Query(10), user)
    assert rows(items) == np.argsort(-expected, kind="stable")[:10].tolist()
    np.testing.assert_allclose([item.score for item in items], np.sort(expected)[::-1][:10], rtol=1e-5)


@pytest.fixture(scope="module")
def trending(release: Release) -> Release:
    """The same release with items 7 and 9 in demand just now."""
    trend = np.zeros(len(release.item_ids), np.float32)
    trend[[7, 9]] = 30.0, 20.0
    return replace(release, items=release.items.with_columns(pl.Series(TREND, trend)))


def test_the_trend_is_added_to_personal_scores(release: Release, trending: Release) -> None:
    user = subject(release)
    assert user.embedding is not None
    expected = release.item_embeddings @ user.embedding
    expected[[7, 9]] += 30.0, 20.0
    items = ranked(trending, Query(20, Strategy.PERSONAL), user)
    assert rows(items) == np.argsort(-expected, kind="stable")[:20].tolist()
    assert rows(items)[:2] == [7, 9]
    np.testing.assert_allclose([item.score for item in items], expected[rows(items)], rtol=1e-5)
    few = Query(2, Strategy.PERSONAL, candidate_item_ids=(item_id(1), item_id(10), item_id(8)))
    assert rows(ranked(trending, few, user)) == [7, 9]
    hybrid, plain = ranked(trending, Query(50), user), ranked(release, Query(50), user)
    before = {item.row: item.score for item in plain}
    gained = {item.row: item.score - before[item.row] for item in hybrid}
    assert gained == pytest.approx({row: {7: 15.0, 9: 10.0}.get(row, 0.0) for row in range(50)}, abs=1e-4)


@pytest.mark.parametrize("strategy", [Strategy.SEGMENT, Strategy.POPULAR])
def test_the_trend_changes_no_other_strategy(release: Release, trending: Release, strategy: Strategy) -> None:
    user = subject(release)
    assert ranked(trending, Query(50, strategy), user) == ranked(release, Query(50, strategy), user)


@pytest.mark.parametrize("strategy", list(Strategy))
def test_seen_items_are_excluded_on_request_and_marked_otherwise(release: Release, strategy: Strategy) -> None:
    user = subject(release, seen=(0, 4, 8))
    without = ranked(release, Query(50, strategy, exclude_seen=True), user)
    assert set(rows(without)) == set(range(50)) - {0, 4, 8}
    everything = ranked(release, Query(50, strategy, exclude_seen=False), user)
    assert {item.row for item in everything if item.seen} == {0, 4, 8}


@pytest.mark.parametrize("strategy", list(Strategy))
def test_every_strategy_applies_the_filters(release: Release, strategy: Strategy) -> None:
    query = Query(
        50,
        strategy,
        exclude_item_ids=(item_id(1), "unknown"),
        exclude_categories=("category-2",),
        include_categories=("category-1", "category-2", "unknown"),
    )
    expected = set(range(0, 50, 4)) - {0}
    assert set(rows(ranked(release, query, subject(release)))) == expected
    allowed = query.filters.mask(release)
    assert allowed is not None
    assert set(np.flatnonzero(allowed).tolist()) == expected


@pytest.mark.parametrize("share", [0.99, 0.5, 0.02, 0.0])
def test_a_filtered_search_finds_what_sorting_all_allowed_items_finds(trending: Release, share: float) -> None:
    rng = np.random.default_rng(0)
    allowed = rng.random(len(trending.item_ids)) < share
    embeddings = rng.normal(size=(5, trending.item_embeddings.shape[1])).astype(np.float32)
    candidates = np.flatnonzero(allowed)
    best = np.argsort(-trending.personal_scores(embeddings, candidates), axis=1)[:, :10]
    assert trending.search(embeddings, 10, allowed).tolist() == candidates[best].tolist()


@pytest.mark.parametrize("strategy", list(Strategy))
def test_only_the_callers_candidates_are_ranked(release: Release, strategy: Strategy) -> None:
    query = Query(10, strategy, candidate_item_ids=(item_id(7), item_id(30), "unknown"))
    assert set(rows(ranked(release, query, subject(release)))) == {6, 29}


@pytest.mark.parametrize("strategy", list(Strategy))
def test_filters_that_no_item_passes_give_an_empty_list(release: Release, strategy: Strategy) -> None:
    assert ranked(release, Query(10, strategy, candidate_item_ids=("unknown",)), subject(release)) == []


def test_diversity_spreads_over_the_groups(release: Release) -> None:
    user = subject(release)
    plain = ranked(release, Query(8, Strategy.PERSONAL), user)
    varied = ranked(release, Query(8, Strategy.PERSONAL, diversity=0.9), user)
    assert {row % 4 for row in rows(plain)} == {0}
    assert len({row % 4 for row in rows(varied)}) > 1
    assert rows(varied)[0] == rows(plain)[0]


def test_users_are_ranked_together_as_each_user_alone(release: Release) -> None:
    many = [subject(release, group, (group,)) for group in range(4)] + [Subject(None, 0, past(release))]
    for strategy in Strategy:
        query = Query(12, strategy, exclude_seen=True)
        together = [ranking.items for ranking in rank(release, query, many)]
        assert together == [ranked(release, query, user) for user in many]
