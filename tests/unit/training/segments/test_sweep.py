"""The choice of k: candidates, measures, and the rule."""

import json
import math
from collections.abc import Sequence

import numpy as np
import polars as pl
import pytest
import torch
from numpy.typing import NDArray
from sklearn.metrics import silhouette_score

from server.core.features import Features
from server.core.segments import normalised
from training.cli.options import parse_k
from training.data.sequences import EventLog, HeldOut, seen_pairs
from training.errors import ConfigError
from training.metrics import target_ranks
from training.segments.measures import (
    ClusterAssignment,
    ClusterEvaluator,
    Fitter,
    SegmentStability,
    ValidationUsers,
    assign_clusters,
    halves_agree,
    lift,
    stability,
)
from training.segments.quality import Targets, popularity_ranks, popularity_targets
from training.segments.sweep import KLimits, KRow, KSweep, candidates, checked_range, choose_k, sweep
from training.segments.vector_sets import VectorSets


def blobs(groups: int, each: int = 60, spread: float = 0.2, dim: int = 16, seed: int = 0) -> NDArray[np.float32]:
    """Points of length 1 around `groups` directions at right angles; point n belongs to group n % groups."""
    rng = np.random.default_rng(seed)
    points = np.eye(dim)[np.arange(groups * each) % groups] + rng.normal(scale=spread, size=(groups * each, dim))
    return normalised(points).astype(np.float32)


def row(k: int, stability: float, lift: float, silhouette: float = 0.1) -> KRow:
    rest = dict.fromkeys(("inertia", "mean_distance", "davies_bouldin", "calinski_harabasz", "halves", "hr"), 1.0)
    errors = {"silhouette_error": 0.0, "lift_error": 0.1}
    return KRow(k=k, smallest=9, stability=stability, lift=lift, silhouette=silhouette, **rest, **errors)


def log_of(histories: Sequence[NDArray[np.int32]], users: list[str]) -> EventLog:
    """Item indexes by user, all of one action."""
    offsets = np.cumsum([0, *map(len, histories)])
    item = np.concatenate(histories)
    ones = np.ones(len(item), np.int32)
    features = Features(item, ones, ones.astype(np.float32), ones, offsets, np.zeros(len(users), np.int32))
    return EventLog(pl.Series(users), features, np.arange(len(item)), offsets[1:])


def random_log(users: int = 50, items: int = 30, seed: int = 0) -> tuple[EventLog, Targets]:
    """Each user has 6 to 12 distinct items, and the last one is the target."""
    rng = np.random.default_rng(seed)
    histories = [(rng.permutation(items)[: rng.integers(6, 13)] + 1).astype(np.int32) for _ in range(users)]
    log = log_of(histories, list(map(str, range(users))))
    ends = log.features.offsets[1:] - 1
    held = HeldOut(np.arange(users), ends, log.features.item_index[ends])
    return log, popularity_targets(log, held, np.array([False, True]), items)


@pytest.mark.parametrize(
    ("k_range", "users", "size", "expected"),
    [
        ((2, 32), 10**6, 50, [2, 3, 4, 5, 6, 7, 8, 10, 13, 17, 22, 28]),
        ((2, 32), 300, 50, [2, 3, 4, 5, 6]),
        ((2, 32), 100, 1, [2, 3, 4, 5, 6, 7, 8, 10]),
        ((5, 5), 10**6, 50, [5]),
        ((8, 16), 300, 50, []),
    ],
)
def test_ks_are_inside_the_range_and_leave_room_for_segments(
    k_range: tuple[int, int], users: int, size: int, expected: list[int]
) -> None:
    assert candidates(k_range, users, size) == expected


@pytest.mark.parametrize("leave_out_seen", [True, False])
def test_ranks_are_those_of_ranking_each_user_by_itself(leave_out_seen: bool) -> None:
    log, targets = random_log()
    clusters = np.random.default_rng(1).integers(0, 3, 50)
    counts = np.zeros((3, 30), np.float32)
    np.add.at(counts, (clusters[targets.past_user], targets.past_item), 1.0)
    scores = torch.from_numpy(counts[clusters])
    if leave_out_seen:
        scores[seen_pairs(log, targets.held)] = -torch.inf
    expected = target_ranks(scores, torch.from_numpy(targets.held.targets.astype(np.int64) - 1))
    np.testing.assert_array_equal(popularity_ranks(targets, clusters, leave_out_seen), expected)


def test_a_sampled_silhouette_is_within_its_error_of_the_exact_one() -> None:
    """At the planted number, and beyond it, where a sample without correction is two standard errors too low."""
    points = blobs(6, each=400, spread=0.35)
    for k in (6, 15):
        clusters = assign_clusters(points, Fitter().fit(points, k).centroids)
        exact = silhouette_score(points, clusters.clusters)
        metrics = [ClusterEvaluator(points, Fitter(seed=seed), sample=400).evaluate(clusters) for seed in range(20)]
        assert all(0 < metric.silhouette_error < 0.02 for metric in metrics)
        assert np.mean([abs(metric.silhouette - exact) <= 2 * metric.silhouette_error for metric in metrics]) >= 0.85
    whole = ClusterEvaluator(points, Fitter(), sample=len(points)).evaluate(clusters)
    assert whole.silhouette == pytest.approx(exact, abs=1e-4)
    assert whole.silhouette_error == 0


def test_one_cluster_has_no_silhouette() -> None:
    points = blobs(1)
    metric = ClusterEvaluator(points, Fitter()).evaluate(ClusterAssignment(np.zeros(60, np.intp), np.ones(60)))
    assert (metric.inertia, metric.mean_distance) == (60.0, 1.0)
    assert all(math.isnan(value) for value in (metric.silhouette, metric.davies_bouldin, metric.calinski_harabasz))


def test_planted_groups_are_stable_and_cutting_them_up_is_not() -> None:
    points = blobs(4)
    assert stability(points, 4, Fitter()) == 1.0
    assert stability(points, 12, Fitter()) < 0.75
    noise = np.random.default_rng(0).normal(size=(240, 16)).astype(np.float32)
    assert stability(normalised(noise).astype(np.float32), 8, Fitter()) < 0.5


def test_lift_is_that_of_the_groups_items() -> None:
    """Three groups of six items: each user has five items of one group, and the sixth is the target.

    Segment popularity always hits the target. All items are equally frequent, so the ten globally most popular items
    that the user has not seen are those of the first two groups: users of the third group never hit.
    """
    users = 36
    group, missing_index = np.arange(users) % 3, np.arange(users) // 3 % 6
    items = np.array([[*(item for item in range(6) if item != missing), missing] for missing in missing_index])
    log = log_of(list((items + 6 * group[:, None] + 1).astype(np.int32)), list(map(str, range(users))))
    ends = log.features.offsets[1:] - 1
    held = HeldOut(np.arange(users), ends, log.features.item_index[ends])
    validation_users = ValidationUsers(
        np.eye(3, dtype=np.float32)[group], popularity_targets(log, held, np.array([False, True]), 18), True
    )
    result = lift(validation_users, 3, Fitter())
    assert result.hr == 1.0
    assert result.lift == pytest.approx(1.5)
    assert result.error == pytest.approx(np.sqrt(1 / 3 * 2 / 3 / users) * 1.5)


def test_halves_of_the_same_users_agree_as_far_as_they_do() -> None:
    points = blobs(3)
    centroids = Fitter().fit(points, 3).centroids
    assert halves_agree((points, points), centroids) == 1.0
    shuffled = np.random.default_rng(0).permutation(points)
    assert abs(halves_agree((points, shuffled), centroids)) < 0.1


def test_notes_warn_only_below_the_bounds() -> None:
    assert SegmentStability(0.9, 0.6).notes() == []
    assert SegmentStability(0.9, math.nan).notes() == []
    [unstable] = SegmentStability(0.31, 0.6).notes()
    assert "0.31" in unstable
    [short] = SegmentStability(0.9, 0.04).notes()
    assert "Histories are too short" in short
    assert "0.04" in short


def test_the_largest_gain_times_stability_is_chosen_and_explained() -> None:
    k, reason = choose_k([row(2, 1.0, 1.2), row(3, 0.9, 1.5), row(8, 0.4, 1.9)])
    assert k == 3
    assert reason.startswith("3 segments")
    for figure in ("1.50", "0.90", "0.45", "from 2 to 8"):
        assert figure in reason


def test_of_equal_gains_the_smaller_k_is_chosen() -> None:
    assert choose_k([row(2, 0.5, 1.4), row(3, 0.5, 1.4)])[0] == 2


def test_without_gain_the_silhouette_decides() -> None:
    rows = [row(2, 0.9, math.nan, 0.1), row(3, 0.9, math.nan, 0.4)]
    k, reason = choose_k(rows)
    assert k == 3
    assert "no user has a validation target" in reason
    k, reason = choose_k([row(2, 0.9, 0.8, 0.2), row(3, 0.9, 0.7, 0.1)])
    assert k == 2
    assert "no k predicts better" in reason
    assert choose_k([row(2, 0.9, math.nan, math.nan)])[0] == 2


@pytest.mark.parametrize("groups", [3, 5, 8])
def test_planted_groups_are_found_by_silhouette(groups: int) -> None:
    result = sweep(VectorSets(blobs(groups), None, None), KLimits((2, 32), 20), Fitter())
    assert result.chosen == groups
    assert result.asked == 0


def test_too_few_users_for_the_range_are_explained() -> None:
    result = sweep(VectorSets(blobs(2, each=30), None, None), KLimits((2, 32), 50), Fitter())
    assert (result.chosen, result.rows) == (1, ())
    assert "60 users" in result.reason


def test_unknown_figures_are_null_in_the_file() -> None:
    swept = KSweep(of="now", users=9, asked=0, rows=(row(2, 0.9, math.nan),), chosen=2, reason="So.")
    text = swept.model_dump_json()
    assert json.loads(text)["rows"][0]["lift"] is None
    back = KSweep.model_validate_json(text)
    assert math.isnan(back.rows[0].lift)
    assert back.rows[0].stability == 0.9


def test_a_sweep_warns_if_the_chosen_k_is_unstable() -> None:
    rows = (row(2, 0.9, 1.1), row(3, 0.4, 1.5))
    sweeps = [KSweep(of="", users=9, asked=9, rows=rows, chosen=k, reason="So.") for k in (2, 3)]
    assert [len(swept.stability_notes()) for swept in sweeps] == [0, 1]


def test_k_is_a_number_or_auto() -> None:
    assert (parse_k(None), parse_k("auto"), parse_k("12")) == (None, "auto", 12)
    for wrong in ("1", "many", "-3", "2.5", ""):
        with pytest.raises(ConfigError, match="from 2 on, or `auto`"):
            parse_k(wrong)


def test_a_range_rises_from_2() -> None:
    assert checked_range(None) is None
    assert checked_range((2, 9)) == (2, 9)
    for wrong in ((1, 9), (9, 2)):
        with pytest.raises(ConfigError, match="--k-range"):
            checked_range(wrong)
