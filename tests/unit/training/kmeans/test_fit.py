"""K-means: what every engine finds, and what its result holds."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score

from server.core.segments import normalised
from training.config import SegmentSettings
from training.errors import ConfigError
from training.kmeans import fit
from training.kmeans.engines import Engine, cuml_dask_problem, cuml_problem
from training.kmeans.fit import assign, fit_kmeans
from training.kmeans.settings import KMeansSettings, allowed_shift, fixed_k, sample_of


def on_gpu(name: Engine, problem: str) -> Any:
    return pytest.param(name, marks=[pytest.mark.gpu, pytest.mark.skipif(bool(problem), reason=problem)])


ON_CPU: list[Any] = ["sklearn", "dask"]
ALL = [*ON_CPU, on_gpu("cuml", cuml_problem()), on_gpu("cuml_dask", cuml_dask_problem())]
engines = pytest.mark.parametrize("engine", ALL)


@pytest.fixture(autouse=True)
def cluster(request: pytest.FixtureRequest) -> None:
    """Dask's tests share one cluster; cuML's bring one with GPUs."""
    if "dask" in request.node.name and "cuml" not in request.node.name:
        request.getfixturevalue("dask_client")


def planted(clusters: int = 4, size: int = 60, dim: int = 8) -> tuple[NDArray[np.float64], NDArray[np.intp]]:
    rng = np.random.default_rng(0)
    truth = np.repeat(np.arange(clusters), size)
    return normalised(np.eye(dim)[truth] + rng.normal(scale=0.05, size=(len(truth), dim))), truth


def cloud(rows: int = 600, dim: int = 6) -> NDArray[np.float32]:
    """Points without clusters: K-means takes many iterations."""
    return normalised(np.random.default_rng(1).normal(size=(rows, dim)) + 0.5).astype(np.float32)


@engines
def test_planted_clusters_are_found(engine: Engine) -> None:
    points, truth = planted()
    result = fit_kmeans(points, 4, engine=engine)
    assert adjusted_rand_score(truth, result.labels) == 1.0
    assert result.centroids.shape == (4, 8)
    assert result.centroids.dtype == np.float32
    assert result.iterations >= 1
    by_hand = ((points - result.centroids[result.labels]) ** 2).sum()
    assert result.inertia == pytest.approx(by_hand, rel=1e-5)


@engines
def test_same_seed_gives_the_same_centroids(engine: Engine) -> None:
    settings = KMeansSettings(seed=7, restarts=2)
    first, second = (fit_kmeans(cloud(), 5, engine=engine, settings=settings) for _ in range(2))
    np.testing.assert_allclose(first.centroids, second.centroids, atol=1e-6)


@pytest.mark.parametrize("engine", ON_CPU)
def test_another_seed_begins_elsewhere(engine: Engine) -> None:
    first, second = (
        fit_kmeans(cloud(), 5, engine=engine, settings=KMeansSettings(restarts=1, max_iterations=1, seed=seed))
        for seed in (1, 2)
    )
    assert first.inertia != pytest.approx(second.inertia, rel=1e-3)


@engines
def test_more_restarts_are_never_worse(engine: Engine) -> None:
    one, many = (
        fit_kmeans(cloud(), 40, engine=engine, settings=KMeansSettings(restarts=restarts, max_iterations=4))
        for restarts in (1, 4)
    )
    assert many.inertia <= one.inertia * (1 + 1e-6)


@pytest.mark.parametrize("engine", ON_CPU)
def test_restarts_are_those_of_sklearn(engine: Engine) -> None:
    theirs = KMeans(12, n_init=4, random_state=3).fit(cloud())
    ours = fit_kmeans(cloud(), 12, engine=engine, settings=KMeansSettings(restarts=4, seed=3))
    np.testing.assert_allclose(ours.centroids, theirs.cluster_centers_, atol=1e-6)
    assert ours.iterations == theirs.n_iter_


@engines
def test_iterations_are_limited(engine: Engine) -> None:
    result = fit_kmeans(cloud(), 12, engine=engine, settings=KMeansSettings(max_iterations=2, restarts=1))
    assert result.iterations == 2


@engines
def test_fewer_distinct_points_than_clusters_gives_fewer_clusters(engine: Engine) -> None:
    points = np.repeat(np.eye(4)[:2], 10, axis=0)
    result = fit_kmeans(points, 3, engine=engine)
    assert len(result.centroids) == 2
    assert set(result.labels.tolist()) == {0, 1}
    assert result.inertia == pytest.approx(0, abs=1e-6)


@engines
def test_a_warm_start_keeps_the_order_of_its_centroids(engine: Engine) -> None:
    points, truth = planted(3)
    starts = np.stack([points[truth == blob][0] for blob in (2, 0, 1)])
    result = fit_kmeans(points, 3, engine=engine, previous=starts)
    means = [points[truth == blob].mean(0) for blob in (2, 0, 1)]
    np.testing.assert_allclose(result.centroids, means, atol=1e-5)


@engines
def test_a_warm_start_goes_on_from_its_centroids(engine: Engine) -> None:
    earlier = fit_kmeans(cloud(), 5, engine=engine, settings=KMeansSettings(restarts=1))
    again = fit_kmeans(cloud(), 5, engine=engine, settings=KMeansSettings(seed=99), previous=earlier.centroids)
    np.testing.assert_allclose(again.centroids, earlier.centroids, atol=0.02)
    assert again.iterations <= 3
    np.testing.assert_array_equal(again.labels, earlier.labels)


@engines
def test_a_warm_start_adds_centroids_where_points_are_far(engine: Engine) -> None:
    points, truth = planted()
    result = fit_kmeans(points, 4, engine=engine, previous=np.eye(8)[:2])
    assert adjusted_rand_score(truth, result.labels) == 1.0


@engines
def test_a_warm_start_leaves_out_centroids_with_the_fewest_points(engine: Engine) -> None:
    points, truth = planted()
    result = fit_kmeans(points, 4, engine=engine, previous=np.eye(8)[[7, 0, 1, 6, 2, 3]])
    np.testing.assert_array_equal(result.labels, truth)


@engines
def test_all_engines_end_in_the_same_place(engine: Engine) -> None:
    start = cloud()[:12]
    ours, theirs = (fit_kmeans(cloud(), 12, engine=name, previous=start) for name in (engine, "sklearn"))
    assert ours.inertia == pytest.approx(theirs.inertia, rel=1e-3)
    assert np.mean(ours.labels == theirs.labels) > 0.98


@pytest.mark.parametrize("k", [0, 5])
def test_k_out_of_range_is_refused(k: int) -> None:
    with pytest.raises(ConfigError, match=f"Cannot split 4 users into {k} segments"):
        fit_kmeans(np.eye(4), k)


def test_previous_centroids_of_other_dimensions_are_refused() -> None:
    with pytest.raises(ConfigError, match="they have 8 dimensions, and users have 6"):
        fit_kmeans(cloud(), 5, previous=np.eye(8))


def test_assignment_in_chunks_equals_assignment_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    points, _ = planted()
    narrow = points.astype(np.float32)
    whole = assign(narrow, narrow[:3])
    monkeypatch.setattr(fit, "_CHUNK_BYTES", 8 * 3 * 7)
    parts = assign(narrow, narrow[:3])
    np.testing.assert_array_equal(whole.first, parts.first)
    np.testing.assert_array_equal(whole.second_distance, parts.second_distance)


def test_settings_are_those_of_the_configuration() -> None:
    segment = SegmentSettings(restarts=3, max_iterations=20, seed=5)
    assert KMeansSettings.of(segment) == KMeansSettings(restarts=3, max_iterations=20, seed=5)
    assert KMeansSettings.of(SegmentSettings()) == KMeansSettings()
    assert (fixed_k(SegmentSettings(k=3)), fixed_k(SegmentSettings(k="auto"))) == (3, SegmentSettings().k)


def test_the_allowed_shift_is_that_of_sklearn() -> None:
    assert allowed_shift(cloud()) == pytest.approx(1e-4 * cloud().var(axis=0).mean(), rel=1e-5)


def test_a_sample_is_spread_over_all_points() -> None:
    rows = np.arange(450_000, dtype=np.float32).reshape(-1, 1)
    assert len(sample_of(rows[:199_999])) == 199_999
    sample = sample_of(rows)
    assert (len(sample), sample[-1, 0]) == (112_500, 449_996)
