"""The ranking of the next visit, learned from planted habits."""

from dataclasses import replace

import numpy as np
import polars as pl
import pytest
from numpy.typing import NDArray

from server.core.features import Features
from server.core.next_visit import FEATURES
from server.core.preprocessing import Action, Preprocessing
from training.data.sequences import EventLog, last_visits
from training.data.split import Split
from training.kmeans.settings import KMeansSettings
from training.ranking.hybrid import HybridChoice, HybridTuner
from training.ranking.next_visit import Rows, learn

DAY_MS = 86_400_000
ITEMS, USERS, VISITS, SIZE = 200, 260, 8, 4


def habits() -> EventLog:
    """Visits of four items, a week apart: two out of three favourites of the user, and two popular ones by chance."""
    rng = np.random.default_rng(0)
    favourites = rng.integers(20, ITEMS, (USERS, 3))
    items = np.empty((USERS, VISITS, SIZE), np.int32)
    for user in range(USERS):
        for visit in range(VISITS):
            items[user, visit, :2] = rng.permutation(favourites[user])[:2]
            items[user, visit, 2:] = rng.choice(20, 2, replace=False)
    count = USERS * VISITS * SIZE
    ones = np.ones(count, np.int32)
    offsets = np.arange(USERS + 1) * VISITS * SIZE
    features = Features(items.ravel() + 1, ones, np.zeros(count, np.float32), ones, offsets, np.zeros(USERS, np.int32))
    times = np.tile(np.repeat(np.arange(VISITS) * 7 * DAY_MS, SIZE), USERS)
    users = pl.Series([f"u{user}" for user in range(USERS)])
    log = EventLog(users, features, times, features.ends, Split(by_visit=True))
    return replace(log, train_ends=last_visits(log).train_ends())


def preprocessing(exclude_seen: bool = False) -> Preprocessing:
    return Preprocessing(
        max_length=16, actions=(Action(name="buy", weight=1.0),), has_clock=True, exclude_seen=exclude_seen
    )


def nothing_known(features: Features) -> NDArray[np.float32]:
    """An encoder that says nothing about anybody."""
    return np.ones((len(features.lengths), 2), np.float32) + np.arange(len(features.lengths))[:, None] % 2


def tuner(log: EventLog, *, exclude_seen: bool = False) -> HybridTuner:
    vectors = np.random.default_rng(1).normal(size=(ITEMS, 2)).astype(np.float32)
    settings = KMeansSettings(restarts=1)
    return HybridTuner(log, preprocessing(exclude_seen), vectors, nothing_known, k=2, engine="sklearn", kmeans=settings)


@pytest.fixture(scope="module")
def choice() -> HybridChoice:
    return tuner(habits()).choose()


@pytest.mark.usefixtures("one_thread")
def test_habits_are_found_and_ranked_before_what_is_popular(choice: HybridChoice) -> None:
    assert choice.next_visit is not None
    figures = {f"{figure.method}_{figure.measure}": figure.value for figure in choice.figures}
    # Two of four items are favourites, in the first three places; popular items are a guess of 2 in 20.
    assert figures["hybrid_recall@10"] > 0.6
    assert figures["hybrid_ndcg@10"] > figures["popular_ndcg@10"] + 0.3
    assert "ranked beside new ones" in choice.notes[0]


def test_the_same_log_gives_the_same_ranking(choice: HybridChoice) -> None:
    again = tuner(habits()).choose()
    assert again.next_visit is not None
    assert choice.next_visit is not None
    assert again.next_visit.weights == choice.next_visit.weights
    assert again.figures == choice.figures


def test_a_log_without_repeats_or_with_few_visits_gets_no_ranking() -> None:
    log = habits()
    assert tuner(log).learns_next_visit
    assert not tuner(log, exclude_seen=True).learns_next_visit
    assert not tuner(replace(log, split=Split())).learns_next_visit
    few = log.subset(np.ones(len(log.timestamp), bool), np.arange(50), preprocessing())
    assert not tuner(few).learns_next_visit


def test_probabilities_are_calibrated() -> None:
    rng = np.random.default_rng(5)
    features = np.zeros((60_000, len(FEATURES)), np.float32)
    features[:, 0] = rng.random(len(features)) < 0.3
    chance = np.where(features[:, 0] > 0, 0.2, 0.01)
    positive = rng.random(len(features)) < chance
    model = learn(Rows(np.zeros(len(features), np.int64), np.zeros(len(features), np.intp), features), positive, 0)
    some = np.zeros((2, len(FEATURES)), np.float32)
    some[1, 0] = 1
    probability = 1 / (1 + np.exp(-model.log_odds(some)))
    np.testing.assert_allclose(probability, [0.01, 0.2], rtol=0.25)
