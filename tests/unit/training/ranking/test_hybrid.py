"""The mix of personal scores and segment items: chosen on validation, measured as the server ranks."""

from dataclasses import replace

import numpy as np
import polars as pl
import pytest
from numpy.typing import NDArray

from server.core.features import Features
from server.core.preprocessing import Action, Preprocessing
from training.data.sequences import EventLog
from training.kmeans.settings import KMeansSettings
from training.ranking.hybrid import ALONE, WEIGHTS, HybridChoice, HybridTuner, best_weight

ITEMS, GROUPS, USERS, LENGTH = 40, 2, 60, 12
DAY_MS = 86_400_000


def grouped_log(length: int = LENGTH, exclude_seen: bool = False) -> tuple[EventLog, Preprocessing]:
    """Users of even row act on the first 20 items, the others on the last 20; low items are the more popular."""
    rng = np.random.default_rng(0)
    rows = np.repeat(np.arange(USERS), length)
    half = ITEMS // GROUPS
    chance = 1 / np.arange(1, half + 1) / (1 / np.arange(1, half + 1)).sum()
    draws = [rng.choice(half, length, replace=not exclude_seen, p=chance) for _ in range(USERS)]
    items = (np.concatenate(draws) + half * (rows % GROUPS) + 1).astype(np.int32)
    offsets = np.arange(0, USERS * length + 1, length)
    ones = np.ones(len(items), np.int32)
    features = Features(items, ones, np.zeros(len(items), np.float32), ones, offsets, np.zeros(USERS, np.int32))
    times = np.tile(np.arange(length), USERS) * np.int64(DAY_MS)
    log = EventLog(
        pl.Series([f"u{row}" for row in range(USERS)]), features, times, np.maximum(offsets[1:] - 2, offsets[:-1])
    )
    actions = (Action(name="buy", weight=1.0),)
    return log, Preprocessing(max_length=8, actions=actions, has_clock=True, exclude_seen=exclude_seen)


def group_of(features: Features) -> NDArray[np.float32]:
    """Embeddings that hold the group of the newest item, and nothing else."""
    newest = features.item_index[features.offsets[1:] - 1]
    return np.eye(GROUPS, dtype=np.float32)[(newest - 1) // (ITEMS // GROUPS)]


def tuner(log: EventLog, preprocessing: Preprocessing, item_embeddings: NDArray[np.float32]) -> HybridTuner:
    return HybridTuner(log, preprocessing, item_embeddings, group_of, k=2, engine="sklearn", kmeans=KMeansSettings())


def by_strategy(choice: HybridChoice) -> dict[str, float]:
    return {f"{figure.method}_{figure.measure}": figure.value for figure in choice.figures}


def noise() -> NDArray[np.float32]:
    return np.random.default_rng(1).normal(size=(ITEMS, GROUPS)).astype(np.float32) * 20


def test_noise_in_personal_scores_gets_no_weight() -> None:
    choice = tuner(*grouped_log(), noise()).choose()
    assert choice.weight == 0.0
    figures = by_strategy(choice)
    assert figures["hybrid_ndcg@10"] == figures["segment_ndcg@10"]
    assert figures["segment_ndcg@10"] > figures["popular_ndcg@10"]
    assert figures["segment_ndcg@10"] > figures["personal_ndcg@10"]


def test_segments_without_publishable_items_equal_popularity() -> None:
    figures = by_strategy(replace(tuner(*grouped_log(), noise()), min_item_users=USERS).choose())
    assert figures["segment_ndcg@10"] == pytest.approx(figures["popular_ndcg@10"])


def test_figures_are_those_of_four_strategies_within_bounds() -> None:
    figures = by_strategy(tuner(*grouped_log(), noise()).choose())
    strategies = ("popular", "segment", "personal", "hybrid")
    assert set(figures) == {f"{strategy}_{name}@10" for strategy in strategies for name in ("ndcg", "hr")}
    assert all(0 <= value <= 1 for value in figures.values())


def test_segment_figures_equal_those_counted_by_hand() -> None:
    """A hit is a test item among the ten items that were most frequent in the group before."""
    log, preprocessing = grouped_log()
    figures = by_strategy(tuner(log, preprocessing, noise()).choose())
    table = log.features.item_index.reshape(USERS, LENGTH)
    hits = 0
    for group in range(GROUPS):
        earlier, targets = table[group::GROUPS, :-1], table[group::GROUPS, -1]
        age = LENGTH - 2 - np.arange(LENGTH - 1)
        smoothing = tuner(log, preprocessing, noise()).choose().smoothing
        weights = np.broadcast_to(0.5 ** (age / smoothing.half_life), earlier.shape)
        counts = np.bincount(earlier.ravel(), weights.ravel(), ITEMS + 1)
        hits += int(np.isin(targets, np.argsort(-counts)[:10]).sum())
    assert figures["segment_hr@10"] == pytest.approx(hits / USERS, abs=0.05)


def test_seen_items_are_left_out_where_the_release_does() -> None:
    """Of the 20 items of a group 11 are seen; the target is among the 9 left, so it is always in the first 10."""
    log, preprocessing = grouped_log(exclude_seen=True)
    table = log.features.item_index.reshape(USERS, LENGTH)
    assert not (table[:, -1:] == table[:, :-1]).any()
    figures = by_strategy(tuner(log, preprocessing, noise()).choose())
    assert figures["segment_hr@10"] == 1.0


def test_short_histories_leave_personal_scores_alone() -> None:
    choice = tuner(*grouped_log(length=3), noise()).choose()
    assert choice.weight == ALONE
    assert choice.figures == ()
    assert "too short" in choice.notes[0]


def test_a_mix_must_beat_personal_scores_beyond_chance() -> None:
    rng = np.random.default_rng(0)
    alone = rng.random(400)
    assert best_weight({ALONE: alone, 0.75: alone + 0.1}) == 0.75
    assert best_weight({ALONE: alone, 0.75: alone + 0.001 + rng.normal(size=400)}) == ALONE
    assert best_weight({ALONE: alone, 0.5: alone, 0.0: alone - 0.1}) == ALONE


def test_a_hybrid_that_is_personal_says_so() -> None:
    log, preprocessing = grouped_log()
    choice = tuner(log, preprocessing, np.zeros((ITEMS, GROUPS), np.float32)).choose()
    choice = replace(choice, trend=None)
    personal = replace(choice, weight=ALONE)
    assert "the hybrid is the personal ranking" in personal.notes[0]
    assert not replace(choice, weight=0.5).notes


def test_the_weight_is_one_of_the_candidates() -> None:
    log, preprocessing = grouped_log()
    assert tuner(log, preprocessing, np.zeros((ITEMS, GROUPS), np.float32)).choose().weight in WEIGHTS
