"""The learned ranking: its network, its candidates, and what the server does with it."""

from dataclasses import replace

import numpy as np
import polars as pl
import pytest

from server.core.history import Event, history_of
from server.core.next_visit import (
    FEATURES,
    ITEM_STATISTICS,
    ItemTables,
    NextVisitModel,
    Person,
    SegmentList,
    candidate_rows,
    features_of,
)
from server.core.own_items import Behaviour, own_items
from server.core.ranking import rank as ranked
from server.core.ranking.query import Part, Query, Ranked, Strategy, Subject
from server.core.ranking.rank import past_events
from server.core.release import Release
from server.core.repository.read import read_release
from tests.support.releases import item_id, ranking_of, tiny_release

DAY_MS = 86_400_000


def with_ranking(release: Release, model: NextVisitModel) -> Release:
    """The release with this ranking; all item statistics are 0."""
    statistics = [pl.lit(0.0, pl.Float32).alias(name) for name in ITEM_STATISTICS]
    return replace(release, items=release.items.with_columns(statistics), next_visit=model)


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Release:
    return read_release(tiny_release(tmp_path_factory.mktemp("repository")))


def subject(release: Release, *numbers: int) -> Subject:
    """Somebody who viewed these items, one a day, oldest first."""
    history = history_of(Event(item_id(number), "view", timestamp=day * DAY_MS) for day, number in enumerate(numbers))
    return Subject(release.item_embeddings[0::4].mean(0), 1, past_events(release, history))


def rank(release: Release, query: Query, users: list[Subject]) -> list[list[Ranked]]:
    return [ranking.items for ranking in ranked.rank(release, query, users)]


def test_networks_are_averaged_and_rectified() -> None:
    size = len(FEATURES)
    first = np.zeros((2, size, 1))
    first[0, 0], first[1, 0] = 1.0, -1.0
    model = NextVisitModel(
        features=FEATURES,
        weights=(first.tolist(), [[[2.0]], [[4.0]]]),
        biases=([[0.0], [0.0]], [[1.0], [1.0]]),
    )
    rows = np.zeros((2, size), np.float32)
    rows[:, 0] = 3, -3
    assert model.log_odds(rows).tolist() == [(7 + 1) / 2, (1 + 13) / 2]


def test_a_model_of_other_features_or_sizes_is_refused() -> None:
    good = ranking_of().model_dump()
    with pytest.raises(ValueError, match="other features"):
        NextVisitModel(**good | {"features": FEATURES[1:]})
    with pytest.raises(ValueError, match="do not fit together"):
        NextVisitModel(**good | {"biases": ([[0.0, 1.0]],)})


def test_candidates_are_own_items_and_the_best_of_each_source(release: Release) -> None:
    tables = ItemTables(
        np.eye(400, 4, dtype=np.float32), -np.arange(400, dtype=np.float32), np.zeros((400, 4), np.float32)
    )
    user = subject(release, 48, 50)
    own = own_items(Behaviour.of([user.past], True), 400)
    segment = SegmentList(np.arange(390, 250, -1), np.linspace(-1, -5, 140, dtype=np.float32))
    rows = candidate_rows(tables, own, Person(0, np.ones(4, np.float32), np.array([397, 399]), segment))
    assert {47, 49, 397, 399, 390, 291, 0, 99} <= set(rows.tolist())
    assert not {290, 251, 150, 398} & set(rows.tolist())


def test_features_have_their_names_places(release: Release) -> None:
    tables = replace(release.item_tables, statistics=np.full((50, len(ITEM_STATISTICS)), 0.25, np.float32))
    user = subject(release, 5)
    own = own_items(Behaviour.of([user.past], True), 50)
    assert user.embedding is not None
    pool = np.arange(50)
    person = Person(0, user.embedding, pool, SegmentList(np.array([2]), np.array([-0.5], np.float32)))
    found = features_of(tables, own, person, np.array([2, 4]))
    column = {name: found[:, place] for place, name in enumerate(FEATURES)}
    assert column["own"].tolist() == [0, 1]
    assert column["repeat_rate"].tolist() == [0.25, 0.25]
    np.testing.assert_allclose(column["popularity"], release.popularity[[2, 4]])
    assert column["segment"][0] == -0.5
    scores = release.item_embeddings @ user.embedding
    np.testing.assert_allclose(column["personal"], (scores - np.log(np.exp(scores).sum()))[[2, 4]], rtol=1e-4)


def test_what_repeats_is_named_so_and_a_new_event_changes_the_next_answer(release: Release) -> None:
    ranking = with_ranking(release, ranking_of(own=5.0, visits_with_item=1.0, popularity=0.1))
    [first] = rank(ranking, Query(3), [subject(release, 11, 30, 11)])
    assert [(item.row, item.reason) for item in first[:2]] == [(10, Part.OWN_HISTORY), (29, Part.OWN_HISTORY)]
    assert first[2].reason is not Part.OWN_HISTORY
    assert first[0].score > first[1].score > first[2].score
    assert first[0].seen
    assert not first[2].seen
    [then] = rank(ranking, Query(3), [subject(release, 11, 30, 11, 30, 30, 30)])
    assert [item.row for item in then[:2]] == [29, 10]


def test_an_own_item_that_is_there_for_another_reason_is_not_named_again(release: Release) -> None:
    ranking = with_ranking(release, ranking_of(own=-0.01, popularity=10.0))
    best = int(release.popular_rows[0])
    [items] = rank(ranking, Query(1), [subject(release, best + 1)])
    assert items[0].row == best
    assert items[0].reason is not Part.OWN_HISTORY


def test_new_items_only_and_filters_hold(release: Release) -> None:
    ranking = with_ranking(release, ranking_of(own=5.0, popularity=0.1))
    [items] = rank(ranking, Query(50, exclude_seen=True), [subject(release, 11, 30)])
    assert not {10, 29} & {item.row for item in items}
    wanted = tuple(item_id(number) for number in (30, 31, 32))
    [items] = rank(ranking, Query(10, candidate_item_ids=wanted), [subject(release, 11, 30)])
    assert {item.row for item in items} == {29, 30, 31}
    assert items[0].row == 29


def test_users_together_are_as_each_alone_and_without_embedding_popular(release: Release) -> None:
    ranking = with_ranking(release, ranking_of(own=1.0, personal=0.3, segment=0.5, visits=0.1))
    many = [subject(release, 3), Subject(None, 0, past_events(release, history_of([]))), subject(release, 9, 9, 4)]
    together = rank(ranking, Query(10), many)
    for alone, one in zip(together, many, strict=True):
        [expected] = rank(ranking, Query(10), [one])
        assert [item.row for item in alone] == [item.row for item in expected]
    assert {item.reason for item in together[1]} == {Part.POPULARITY}


def test_other_strategies_do_not_use_it(release: Release) -> None:
    ranking = with_ranking(release, ranking_of(own=5.0))
    for strategy in (Strategy.PERSONAL, Strategy.SEGMENT, Strategy.POPULAR):
        assert rank(ranking, Query(5, strategy), [subject(release, 11)]) == rank(
            release, Query(5, strategy), [subject(release, 11)]
        )
