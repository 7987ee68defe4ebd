"""No segment below the least size."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from server.core.segments import nearest
from training.kmeans.settings import KMeansSettings
from training.segments.clusters import cluster, large_clusters


def around(angles: list[float], sizes: list[int]) -> NDArray[np.float32]:
    """Points on the circle, so many at each of the angles (degrees)."""
    radians = np.radians(np.repeat(angles, sizes)) + np.random.default_rng(0).normal(scale=0.01, size=sum(sizes))
    return np.column_stack([np.cos(radians), np.sin(radians)]).astype(np.float32)


def test_a_tiny_cluster_goes_to_its_nearest() -> None:
    points = around([0, 90, 110], [100, 100, 20])
    found = cluster(points, 3, "sklearn", KMeansSettings(), min_segment_size=50)
    assert found.merged_count == 1
    assert sorted(np.bincount(found.members.clusters)) == [100, 120]
    assert len(set(found.members.clusters[100:].tolist())) == 1
    distances = nearest(points, found.fit.centroids).first_distance
    np.testing.assert_allclose(found.members.distances, distances)
    assert found.fit.inertia == pytest.approx((distances**2).sum())


def test_two_tiny_ones_can_make_a_large_one() -> None:
    """The smaller goes first, into the other, which is large enough then."""
    found = cluster(around([0, 90, 110], [100, 30, 20]), 3, "sklearn", KMeansSettings(), min_segment_size=50)
    assert sorted(np.bincount(found.members.clusters)) == [50, 100]


def test_nobody_moves_where_all_are_large_enough() -> None:
    found = cluster(around([0, 90, 180], [60, 50, 70]), 3, "sklearn", KMeansSettings(), min_segment_size=50)
    assert found.merged_count == 0
    assert sorted(np.bincount(found.members.clusters)) == [50, 60, 70]


def test_a_log_below_the_least_size_has_one_segment() -> None:
    found = cluster(around([0, 90], [10, 20]), 2, "sklearn", KMeansSettings(), min_segment_size=50)
    assert len(found.fit.centroids) == 1


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 1000), st.integers(1, 12), st.integers(1, 80))
def test_whatever_is_kept_is_large_enough_or_alone(seed: int, count: int, min_size: int) -> None:
    rng = np.random.default_rng(seed)
    points = rng.normal(size=(150, 3)).astype(np.float32)
    centroids = rng.normal(size=(count, 3)).astype(np.float32)
    kept = large_clusters(points, nearest(points, centroids).first, centroids, min_size)
    sizes = np.bincount(nearest(points, centroids[kept]).first, minlength=len(kept))
    assert len(kept) == 1 or sizes.min() >= min_size
