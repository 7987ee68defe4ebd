"""K-means over Dask: what scikit-learn finds, from shares of the points."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.cluster import KMeans

from server.core.segments import normalised
from training.kmeans import dask_engine
from training.kmeans.dask_engine import client_on, spread, sums_of
from training.kmeans.fit import fit_kmeans


def cloud(rows: int = 600, dim: int = 6) -> NDArray[np.float32]:
    return normalised(np.random.default_rng(1).normal(size=(rows, dim)) + 0.5).astype(np.float32)


def test_from_the_same_start_it_is_sklearn(dask_client: Any) -> None:
    points = cloud(2_000, 16)
    start = points[:20]
    theirs = KMeans(20, init=start, n_init=1).fit(points)
    ours = fit_kmeans(points, 20, engine="dask", previous=start)
    np.testing.assert_allclose(ours.centroids, theirs.cluster_centers_, atol=1e-5)
    np.testing.assert_array_equal(ours.labels, theirs.labels_)
    assert ours.iterations == theirs.n_iter_
    assert ours.inertia == pytest.approx(theirs.inertia_, rel=1e-5)


def test_centroids_that_lost_their_points_go_where_sklearn_puts_them(dask_client: Any) -> None:
    points = cloud()
    start = np.concatenate([points[:4], np.full((2, 6), 9, np.float32)])
    theirs = KMeans(6, init=start, n_init=1).fit(points)
    ours = fit_kmeans(points, 6, engine="dask", previous=start)
    np.testing.assert_allclose(ours.centroids, theirs.cluster_centers_, atol=1e-5)


def test_shares_of_any_size_give_the_same(dask_client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    points = cloud()
    whole = fit_kmeans(points, 5, engine="dask", previous=points[:5])
    monkeypatch.setattr(dask_engine, "_SHARE_ROWS", 70)
    parts = fit_kmeans(points, 5, engine="dask", previous=points[:5])
    np.testing.assert_allclose(parts.centroids, whole.centroids, atol=1e-6)


def test_points_close_together_far_from_zero_lose_no_digits(dask_client: Any) -> None:
    points = cloud() / 100 + np.float32(10)
    start = points[:5]
    ours, theirs = (fit_kmeans(points, 5, engine=engine, previous=start) for engine in ("dask", "sklearn"))
    np.testing.assert_allclose(ours.centroids, theirs.centroids, atol=1e-5)


def test_sums_are_those_of_each_centroids_points() -> None:
    points = np.array([[0, 1], [0, 3], [8, 0]], np.float32)
    sums = sums_of(points, np.array([[9, 0], [0, 1], [-9, -9]], np.float32))
    np.testing.assert_array_equal(sums.totals, [[8, 0], [0, 4], [0, 0]])
    np.testing.assert_array_equal(sums.counts, [1, 2, 0])
    assert sums.inertia == pytest.approx(1 + 0 + 4)


def test_shares_are_in_order_and_of_limited_size(dask_client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    points = cloud(601)
    each = dask_client.gather(spread(dask_client, points))
    assert [len(share) for share in each] == [301, 300], "one for each of the two workers"
    np.testing.assert_array_equal(np.concatenate(each), points)
    monkeypatch.setattr(dask_engine, "_SHARE_ROWS", 250)
    assert [len(share) for share in dask_client.gather(spread(dask_client, points))] == [201, 200, 200]
    assert len(spread(dask_client, points[:1])) == 1


def test_the_client_of_the_caller_is_taken_and_left_running(dask_client: Any) -> None:
    with client_on(lambda: pytest.fail("a cluster was started")) as client:
        assert client is dask_client
    assert dask_client.status == "running"
