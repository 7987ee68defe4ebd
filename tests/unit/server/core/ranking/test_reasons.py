"""Reasons: parts that sum to the score, terms that are those of the strategy, and exact Shapley values."""

from dataclasses import replace
from itertools import pairwise, permutations

import numpy as np
import polars as pl
import pytest
from numpy.typing import NDArray

from server.core.history import Event, history_of
from server.core.next_visit import FEATURES, ITEM_STATISTICS, AverageItem, NextVisitModel
from server.core.own_items import NEVER, OWN_FEATURES
from server.core.ranking.query import Part, Query, Ranked, Strategy, Subject
from server.core.ranking.rank import past_events, rank
from server.core.ranking.shapley import next_visit_parts
from server.core.release import TREND, Release
from server.core.repository.read import read_release
from tests.support.releases import item_id, tiny_release

DAY_MS = 86_400_000
USERS = 200


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Release:
    """Fifty items with a trend, and a ranking of the next visit drawn at random."""
    plain = read_release(tiny_release(tmp_path_factory.mktemp("repository")))
    rng = np.random.default_rng(0)
    count = len(plain.item_ids)
    columns = [pl.Series(name, rng.normal(-4, 1, count).astype(np.float32)) for name in ITEM_STATISTICS]
    columns.append(pl.Series(TREND, rng.normal(size=count).astype(np.float32)))
    return replace(plain, items=plain.items.with_columns(columns), next_visit=network(rng))


def network(rng: np.random.Generator) -> NextVisitModel:
    """Two averaged networks of two hidden layers."""
    sizes = [len(FEATURES), 8, 4, 1]
    weights = [rng.normal(scale=0.5, size=(2, *pair)) for pair in pairwise(sizes)]
    biases = [rng.normal(size=(2, size)) for size in sizes[1:]]
    return NextVisitModel(
        features=FEATURES,
        weights=tuple(one.tolist() for one in weights),
        biases=tuple(one.tolist() for one in biases),
    )


def users(release: Release) -> list[Subject]:
    """Users between the groups, with histories of one to ten events; the last has none."""
    rng = np.random.default_rng(1)
    subjects = []
    for number in range(USERS - 1):
        events = [
            Event(item_id(int(row)), "view", timestamp=day * DAY_MS)
            for day, row in enumerate(rng.integers(1, 51, 1 + number % 10))
        ]
        embedding = rng.normal(size=(release.manifest.embedding_dim,)).astype(np.float32)
        subjects.append(Subject(embedding, 1 + number % 4, past_events(release, history_of(events))))
    return [*subjects, Subject(None, 0, past_events(release, history_of([])))]


def releases(release: Release) -> dict[str, Release]:
    """The ways in which a release ranks."""
    mixed = replace(release, next_visit=None)
    no_trend = replace(mixed, items=mixed.items.drop(TREND))
    return {"next visit": release, "mix": mixed, "mix without trend": no_trend}


def answers(release: Release, query: Query) -> list[list[Ranked]]:
    return [ranking.items for ranking in rank(release, query, users(release))]


@pytest.mark.parametrize("name", ["next visit", "mix", "mix without trend"])
@pytest.mark.parametrize("strategy", list(Strategy))
def test_parts_sum_to_the_score_and_the_reason_is_the_largest(release: Release, strategy: Strategy, name: str) -> None:
    for items in answers(releases(release)[name], Query(10, strategy, explain=True)):
        assert items
        for item in items:
            assert item.explanation is not None
            base, parts, history_items = item.explanation
            assert history_items == ()
            assert base + sum(parts.values()) == pytest.approx(item.score, abs=1e-5)
            assert parts[item.reason] == max(parts.values())


def test_without_explain_the_reasons_are_the_same_and_nothing_is_told(release: Release) -> None:
    plain, told = (answers(release, Query(10, explain=explain)) for explain in (False, True))
    assert [[item._replace(explanation=None) for item in items] for items in told] == plain


def test_parts_of_a_mix_are_its_terms(release: Release) -> None:
    mixed = releases(release)["mix"]
    [user] = users(release)[:1]
    assert user.embedding is not None
    assert mixed.trend is not None
    listed = dict(zip((mixed.segment_items[1].item_index - 1).tolist(), mixed.segment_items[1].score, strict=True))
    share = np.exp(mixed.popularity)
    personal = mixed.item_embeddings @ user.embedding
    [ranking] = rank(mixed, Query(50, explain=True), [user])
    for item in ranking.items:
        assert item.explanation is not None
        parts, row = item.explanation.parts, item.row
        segment = listed.get(row, min(mixed.popularity[row], mixed.segment_items[1].score[-1]))
        assert parts[Part.ENCODER] == pytest.approx(0.5 * (personal[row] - share @ personal / share.sum()), abs=1e-4)
        assert parts[Part.SEGMENT] == pytest.approx(0.5 * (segment - mixed.popularity[row]), abs=1e-4)
        assert parts[Part.TREND] == pytest.approx(0.5 * mixed.trend[row], abs=1e-5)


def test_next_visit_parts_are_the_mean_over_all_orders() -> None:
    rng = np.random.default_rng(2)
    model, average = network(rng), AverageItem(-3.5, np.zeros(4), np.array([-1.0, -2.0], np.float32))
    features = rng.normal(-2, 1, (6, len(FEATURES))).astype(np.float32)
    features[:, FEATURES.index("own")] = 1
    features[3:, : len(OWN_FEATURES)] = NEVER
    encoder = rng.normal(size=6)
    base, values, is_there = next_visit_parts(model, average, features, encoder)
    expected = np.array([by_orders(model, average, row, move) for row, move in zip(features, encoder, strict=True)])
    np.testing.assert_allclose(np.column_stack([base, values]), expected, atol=1e-4)
    assert is_there[:, Part.OWN_HISTORY.value].tolist() == [True] * 3 + [False] * 3
    assert not values[3:, Part.OWN_HISTORY.value].any()


def by_orders(
    model: NextVisitModel, average: AverageItem, row: NDArray[np.float32], encoder: float
) -> NDArray[np.float64]:
    """The base and the value of each part, from all orders in which the features can get their values."""

    def score(known: frozenset[Part]) -> float:
        value = {name: float(row[FEATURES.index(name)]) for name in FEATURES}
        level = value["popularity"] if Part.POPULARITY in known else average.popularity
        changed = {"popularity": level}
        for name in ("popularity_7_days", "popularity_30_days"):
            changed[name] = level + (value[name] - value["popularity"]) * (Part.TREND in known)
        changed["segment"] = level + (value["segment"] - value["popularity"]) * (Part.SEGMENT in known)
        if Part.POPULARITY not in known:
            changed |= dict(zip(("repeat_share", "repeat_rate"), average.repeats.tolist(), strict=True))
        if Part.ENCODER not in known:
            changed["personal"] = value["personal"] - encoder
        if Part.OWN_HISTORY not in known:
            changed |= dict(zip(OWN_FEATURES, NEVER.tolist(), strict=True))
        features = row[None].copy()
        for name, number in changed.items():
            features[0, FEATURES.index(name)] = number
        return float(-np.logaddexp(0.0, -float(model.log_odds(features)[0])))

    of_models = [part for part in Part if part is not Part.RULE]
    sums, orders = dict.fromkeys(of_models, 0.0), list(permutations(of_models))
    for order in orders:
        for place, part in enumerate(order):
            sums[part] += score(frozenset(order[: place + 1])) - score(frozenset(order[:place]))
    return np.array([score(frozenset()), *(sums[part] / len(orders) for part in of_models)])


@pytest.mark.parametrize(
    ("weight", "used"), [(1.0, Strategy.PERSONAL), (0.0, Strategy.SEGMENT), (0.5, Strategy.HYBRID)]
)
def test_a_hybrid_with_one_side_only_says_which(release: Release, weight: float, used: Strategy) -> None:
    mixed = releases(release)["mix"]
    one_sided = replace(mixed, manifest=mixed.manifest.model_copy(update={"hybrid_weight": weight}))
    rankings = rank(one_sided, Query(10), users(release))
    assert {ranking.strategy for ranking in rankings[:-1]} == {used}
    assert rankings[-1].strategy is Strategy.POPULAR
    expected = rank(one_sided, Query(10, used), users(release))
    assert [ranking.items for ranking in rankings] == [ranking.items for ranking in expected]
    if used is Strategy.PERSONAL:
        reasons = {item.reason for ranking in rankings[:-1] for item in ranking.items}
        assert reasons == {Part.ENCODER, Part.TREND}
