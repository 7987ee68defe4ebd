"""Ranking metrics on scores whose ranks can be told by eye."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from training.metrics import (
    bootstrap_interval,
    coverage,
    metrics_by_user,
    ndcg_each,
    novelty,
    ranking_metrics,
    set_metrics,
    target_ranks,
)


def test_ranks_count_what_scores_higher() -> None:
    scores = torch.tensor([[0.1, 0.9, 0.5], [3.0, 2.0, 1.0]])
    assert target_ranks(scores, torch.tensor([2, 0])).tolist() == [1, 0]


def test_of_equal_scores_the_lower_row_comes_first() -> None:
    scores = torch.ones(3, 4)
    assert target_ranks(scores, torch.tensor([0, 2, 3])).tolist() == [0, 2, 3]


@given(st.lists(st.integers(-2, 2), min_size=1, max_size=30), st.data())
def test_ranks_are_places_in_a_stable_sort(scores: list[int], data: st.DataObject) -> None:
    target = data.draw(st.integers(0, len(scores) - 1))
    order = sorted(range(len(scores)), key=lambda item: -scores[item])
    assert target_ranks(torch.tensor([scores]).float(), torch.tensor([target])).item() == order.index(target)


@pytest.mark.parametrize("row", [[-math.inf, 1.0, 2.0], [math.nan] * 3, [0.0, math.nan, math.nan]])
def test_a_target_left_out_or_among_nan_does_not_win(row: list[float]) -> None:
    assert target_ranks(torch.tensor([row]), torch.tensor([0])).item() >= 2


def test_figures_from_ranks() -> None:
    figures = ranking_metrics(np.array([0, 2, 9, 30]), cutoffs=(1, 10))
    assert figures["hr@1"] == 0.25
    assert figures["hr@10"] == 0.75
    assert figures["ndcg@10"] == pytest.approx((1 + 1 / 2 + 1 / math.log2(11)) / 4)
    assert figures["mrr@10"] == pytest.approx((1 + 1 / 3 + 1 / 10) / 4)
    assert figures["mrr@1"] == 0.25


def test_novelty_is_the_mean_of_bits() -> None:
    assert novelty(torch.tensor([[0, 1], [0, 2]]), np.array([4, 2, 0, 1])) == pytest.approx((1 + 2 + 1 + 3) / 4)


def test_coverage_counts_items_once() -> None:
    assert coverage(torch.tensor([[0, 1], [1, 2]]), item_count=6) == 0.5


def test_the_interval_is_that_of_drawing_user_by_user() -> None:
    """Of 1,000 users 300 score 1: the mean's standard error is sqrt(.3 * .7 / 1000) = .0145."""
    low, high = bootstrap_interval(np.repeat([1.0, 0.0], [300, 700]), seed=0)
    assert (low, high) == pytest.approx((0.3 - 1.96 * 0.0145, 0.3 + 1.96 * 0.0145), abs=0.004)
    assert bootstrap_interval(np.zeros(9), seed=0) == (0.0, 0.0)


def test_the_interval_holds_the_mean_and_narrows_with_users() -> None:
    rng = np.random.default_rng(0)
    few, many = (ndcg_each(rng.integers(0, 20, count), 10) for count in (50, 5000))
    spans = []
    for each in (few, many):
        low, high = bootstrap_interval(each, seed=1)
        assert low < each.mean() < high
        spans.append(high - low)
    assert spans[1] < spans[0] / 5
    assert bootstrap_interval(few, seed=1) == bootstrap_interval(few, seed=1)


def test_figures_of_sets() -> None:
    """The best list of one place for three targets has one hit, whose gain is 1."""
    hits = np.array([[True, False, True], [False, True, False], [False, False, False]])
    sizes = np.array([3, 1, 2])
    one, three = (set_metrics(hits, sizes, k) for k in (1, 3))
    assert one["ndcg"].tolist() == [1.0, 0.0, 0.0]
    gains = 1 / np.log2([2, 3, 4])
    np.testing.assert_allclose(three["ndcg"], [(gains[0] + gains[2]) / gains.sum(), gains[1], 0.0])
    np.testing.assert_allclose(three["recall"], [2 / 3, 1.0, 0.0])
    assert three["hr"].tolist() == [1.0, 1.0, 0.0]


def test_figures_by_user_are_those_of_the_set() -> None:
    """The first user has eleven targets, ten of them in the first ten places."""
    ranks, users = np.array([*range(10), 50, 4]), np.array([0] * 11 + [1])
    found = metrics_by_user(ranks, users, 10)
    np.testing.assert_allclose(found["ndcg"], [1.0, 1 / np.log2(6)])
    assert found["hr"].tolist() == [1.0, 1.0]
