"""K-means engines: what they find, how one is chosen, and that the calls fit the libraries."""

import ctypes
import importlib
import inspect
import sys
import threading
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score

from server.core.segments import normalised
from training.config import SegmentSettings
from training.errors import ConfigError
from training.kmeans import cuml_engine, dask_engine, fit
from training.kmeans.cuml_engine import (
    cuml_arguments,
    cuml_dask_arguments,
    cuml_dask_problem,
    cuml_problem,
    with_its_tolerance,
)
from training.kmeans.fit import Engine, assign, choose_engine, fit_files, fit_kmeans, on_one_machine
from training.kmeans.settings import KMeansSettings, fixed_k
from training.kmeans.sklearn_engine import sklearn_arguments


def engine_parameter(name: Engine, problem: str = "") -> Any:
    marks = [pytest.mark.gpu, pytest.mark.skipif(bool(problem), reason=problem)] if "cuml" in name else []
    return pytest.param(name, marks=marks)


TELLING: list[Any] = [engine_parameter("sklearn"), engine_parameter("dask")]
"""Engines that tell the inertia of each iteration."""

ALL = [*TELLING, engine_parameter("cuml", cuml_problem()), engine_parameter("cuml_dask", cuml_dask_problem())]
engines = pytest.mark.parametrize("engine", ALL)
starts = pytest.mark.parametrize("start", ["k-means++", "random"])


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


def warm(**changes: Any) -> KMeansSettings:
    return KMeansSettings(start="previous", **changes)


@engines
@starts
def test_planted_clusters_are_found(engine: Engine, start: Any) -> None:
    points, truth = planted()
    result = fit_kmeans(points, 4, engine=engine, settings=KMeansSettings(start=start))
    assert adjusted_rand_score(truth, result.labels) == 1.0
    assert result.engine == engine
    assert result.centroids.shape == (4, 8)
    assert result.centroids.dtype == np.float32
    assert result.iterations >= 1
    by_hand = ((points - result.centroids[result.labels]) ** 2).sum()
    assert result.inertia == pytest.approx(by_hand, rel=1e-5)


@engines
@starts
def test_same_seed_gives_the_same_centroids(engine: Engine, start: Any) -> None:
    settings = KMeansSettings(start=start, seed=7, restarts=2)
    first, second = (fit_kmeans(cloud(), 5, engine=engine, settings=settings) for _ in range(2))
    np.testing.assert_allclose(first.centroids, second.centroids, atol=1e-6)


@pytest.mark.parametrize("engine", TELLING)
def test_another_seed_begins_elsewhere(engine: Engine) -> None:
    first, second = (fit_kmeans(cloud(), 5, engine=engine, seed=seed, restarts=1) for seed in (1, 2))
    assert first.history[0] != second.history[0]


@engines
def test_more_restarts_are_never_worse(engine: Engine) -> None:
    settings = KMeansSettings(start="random", max_iterations=4)
    one, many = (fit_kmeans(cloud(), 40, engine=engine, settings=settings, restarts=count) for count in (1, 4))
    assert many.inertia <= one.inertia * (1 + 1e-6)


@pytest.mark.parametrize("engine", TELLING)
def test_history_falls_to_the_inertia(engine: Engine) -> None:
    result = fit_kmeans(cloud(), 5, engine=engine, restarts=3)
    assert len(result.history) == result.iterations + 1
    assert result.history[-1] == result.inertia
    assert all(
        later <= earlier * (1 + 1e-6) for earlier, later in zip(result.history, result.history[1:], strict=False)
    )
    assert result.history[-1] < 0.99 * result.history[0]


@pytest.mark.parametrize("engine", TELLING)
def test_iterations_are_limited(engine: Engine) -> None:
    result = fit_kmeans(cloud(), 12, engine=engine, settings=KMeansSettings(max_iterations=2, restarts=1))
    assert result.iterations == 2
    assert len(result.history) == 3


@engines
def test_a_loose_tolerance_ends_early(engine: Engine) -> None:
    strict, loose = (
        fit_kmeans(cloud(), 12, engine=engine, settings=KMeansSettings(tolerance=tolerance, restarts=1))
        for tolerance in (0.0, 0.5)
    )
    assert loose.iterations < strict.iterations


@engines
def test_a_fit_can_start_from_centroids_that_are_there(engine: Engine) -> None:
    """They keep the order that they were given in."""
    points, truth = planted(3)
    starts = np.stack([points[truth == blob][0] for blob in (2, 0, 1)]).astype(np.float32)
    result = fit_kmeans(points, 3, engine=engine, previous=starts)
    means = [points[truth == blob].mean(0) for blob in (2, 0, 1)]
    np.testing.assert_allclose(result.centroids, means, atol=1e-5)


@engines
def test_fewer_distinct_points_than_clusters_gives_fewer_clusters(engine: Engine) -> None:
    points = np.repeat(np.eye(4)[:2], 10, axis=0)
    result = fit_kmeans(points, 3, engine=engine)
    assert len(result.centroids) == 2
    assert set(result.labels.tolist()) == {0, 1}
    assert result.inertia == pytest.approx(0, abs=1e-6)


@engines
def test_a_warm_start_goes_on_from_its_centroids(engine: Engine) -> None:
    earlier = fit_kmeans(cloud(), 5, engine=engine, restarts=1)
    again = fit_kmeans(cloud(), 5, engine=engine, settings=warm(seed=99), previous=earlier.centroids)
    np.testing.assert_allclose(again.centroids, earlier.centroids, atol=0.02)
    assert again.iterations <= 3
    np.testing.assert_array_equal(again.labels == earlier.labels, True)


@engines
def test_a_warm_start_adds_centroids_where_points_are_far(engine: Engine) -> None:
    points, truth = planted()
    result = fit_kmeans(points, 4, engine=engine, settings=warm(), previous=np.eye(8)[:2])
    assert adjusted_rand_score(truth, result.labels) == 1.0


@engines
def test_a_warm_start_leaves_out_what_has_the_fewest_points(engine: Engine) -> None:
    points, truth = planted()
    result = fit_kmeans(points, 4, engine=engine, settings=warm(), previous=np.eye(8)[[7, 0, 1, 6, 2, 3]])
    np.testing.assert_array_equal(result.labels, truth)


@engines
def test_a_warm_start_needs_centroids_of_the_same_kind(engine: Engine) -> None:
    with pytest.raises(ConfigError, match="there are none"):
        fit_kmeans(cloud(), 5, engine=engine, settings=warm())
    with pytest.raises(ConfigError, match="they have 8 dimensions, and users have 6"):
        fit_kmeans(cloud(), 5, engine=engine, settings=warm(), previous=np.eye(8))


@engines
@pytest.mark.parametrize("k", [0, 5])
def test_k_out_of_range_is_refused(engine: Engine, k: int) -> None:
    with pytest.raises(ConfigError, match=f"{k} segments of 4 users"):
        fit_kmeans(np.eye(4), k, engine=engine)


@engines
def test_all_engines_end_in_the_same_place(engine: Engine) -> None:
    start = cloud()[:12]
    ours, theirs = (
        fit_kmeans(cloud(), 12, engine=name, settings=warm(), previous=start) for name in (engine, "sklearn")
    )
    assert ours.inertia == pytest.approx(theirs.inertia, rel=1e-3)
    assert np.mean(ours.labels == theirs.labels) > 0.98


@pytest.mark.parametrize("tolerance", [0.0, 1e-4, 0.1])
def test_the_tolerance_of_cuml_is_above_0_and_ends_no_run_earlier(tolerance: float) -> None:
    points, k = cloud(), 12
    its = with_its_tolerance(KMeansSettings(tolerance=tolerance), points, k).tolerance
    inertia = fit_kmeans(points, k, restarts=1).inertia
    moves = tolerance * points.var(axis=0).mean()
    assert 0 < its <= max(moves, 1e-11)
    assert its <= max(len(points) / k * moves / inertia, 1e-11), "the share of inertia that such moves save"


@pytest.mark.gpu
@pytest.mark.skipif(bool(cuml_problem()), reason=cuml_problem())
def test_a_gpu_clusters_more_than_it_holds() -> None:
    points, truth = planted(size=500)
    result = fit_kmeans(points, 4, engine="cuml", settings=KMeansSettings(rows_at_once=300))
    assert adjusted_rand_score(truth, result.labels) == 1.0


@starts
def test_restarts_are_those_of_sklearn(start: Any) -> None:
    theirs = KMeans(12, init=start, n_init=4, random_state=3).fit(cloud())
    ours = fit_kmeans(cloud(), 12, settings=KMeansSettings(start=start, restarts=4, seed=3))
    np.testing.assert_allclose(ours.centroids, theirs.cluster_centers_, atol=1e-6)
    assert ours.iterations == theirs.n_iter_


def test_what_others_print_meanwhile_is_not_lost(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fit(self: KMeans, points: NDArray[np.float32]) -> KMeans:
        other = threading.Thread(target=lambda: print("another thread", file=sys.stdout))
        other.start()
        other.join()
        return real(self, points)

    real = KMeans.fit
    monkeypatch.setattr(KMeans, "fit", fit)
    fit_kmeans(cloud(), 3, restarts=1)
    assert capsys.readouterr().out == "another thread\n"


def test_assignment_in_chunks_equals_assignment_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    points, _ = planted()
    narrow = points.astype(np.float32)
    whole = assign(narrow, narrow[:3])
    monkeypatch.setattr(fit, "_CHUNK_BYTES", 8 * 3 * 7)
    parts = assign(narrow, narrow[:3])
    np.testing.assert_array_equal(whole.first, parts.first)
    np.testing.assert_array_equal(whole.second_distance, parts.second_distance)


def test_settings_are_those_of_the_configuration() -> None:
    segment = SegmentSettings(restarts=3, tolerance=0.01, rows_at_once=7, start="random", seed=5)
    assert KMeansSettings.of(segment) == KMeansSettings("random", 3, 300, 0.01, 2.0, 7, 5)
    assert KMeansSettings.of(SegmentSettings()) == KMeansSettings()
    assert (fixed_k(SegmentSettings(k=3)), fixed_k(SegmentSettings(k="auto"))) == (3, SegmentSettings().k)


def test_our_arguments_are_parameters_of_sklearn() -> None:
    arguments = sklearn_arguments(2, KMeansSettings(), None, np.random.RandomState(0))
    assert set(arguments) <= set(inspect.signature(KMeans).parameters)


def test_settings_in_the_words_of_cuml() -> None:
    settings = KMeansSettings("k-means++", 3, 50, 0.01, 4.0, None, 5)
    arguments = cuml_arguments(2, 100, settings)
    assert arguments == {
        "n_clusters": 2,
        "init": "k-means||",
        "n_init": 3,
        "max_iter": 50,
        "tol": 0.01,
        "random_state": 5,
        "oversampling_factor": 4.0,
        "device_buffer_samples": 0,
        "init_size": 0,
        "output_type": "numpy",
    }
    assert cuml_arguments(2, 100, KMeansSettings(start="random"))["init"] == "random"
    del arguments["output_type"]
    assert cuml_dask_arguments(2, 100, settings) == arguments


def test_cuml_holds_as_many_rows_as_are_asked_for() -> None:
    arguments = cuml_arguments(2, 100, KMeansSettings(rows_at_once=40))
    assert (arguments["device_buffer_samples"], arguments["init_size"]) == (40, 40)
    assert cuml_arguments(2, 100, KMeansSettings(rows_at_once=4000))["init_size"] == 100
    with pytest.raises(ConfigError, match="rows_at_once = 40 is less than the 41 segments"):
        cuml_arguments(41, 100, KMeansSettings(rows_at_once=40))


def test_cuml_starts_once_from_given_centroids() -> None:
    arguments = cuml_arguments(4, 100, warm(), np.eye(4, dtype=np.float32))
    assert arguments["n_init"] == 1
    np.testing.assert_array_equal(arguments["init"], np.eye(4))


class Driver:
    """A stand-in for libcuda: what `cuInit` returns, and how many devices it counts."""

    def __init__(self, status: int, devices: int) -> None:
        self.status = status
        self.devices = devices

    def cuInit(self, flags: int) -> int:  # noqa: N802
        return self.status

    def cuDeviceGetCount(self, count: Any) -> int:  # noqa: N802
        ctypes.cast(count, ctypes.POINTER(ctypes.c_int))[0] = self.devices
        return 0


def missing(name: str) -> Driver:
    raise OSError(f"{name}: cannot open shared object file")


@pytest.mark.parametrize(
    ("load", "why"),
    [
        (missing, "no driver"),
        (lambda name: Driver(100, 0), "error 100"),
        (lambda name: Driver(0, 0), "sees none"),
    ],
)
def test_the_driver_says_why_cuml_cannot_run(load: Any, why: str) -> None:
    assert why in cuml_problem(load)


def test_a_gpu_without_the_library_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_module(name: str) -> None:
        raise ImportError(f"No module named '{name}'")

    monkeypatch.setattr(importlib, "import_module", no_module)
    assert "not installed (No module named 'cupy')" in cuml_problem(lambda name: Driver(0, 1))


def test_cuml_over_dask_names_itself_and_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    assert cuml_dask_problem(missing).startswith("K-means engine cuml_dask needs an NVIDIA GPU")
    monkeypatch.setattr(cuml_engine, "cuml_problem", lambda load: "")
    assert "cuml_dask is not installed (No module named 'cuml')" in cuml_dask_problem()


def test_auto_takes_sklearn_where_cuml_cannot_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuml_engine, "cuml_problem", lambda: "no GPU here.")
    assert choose_engine("auto") == "sklearn"
    with pytest.raises(ConfigError, match="no GPU here"):
        choose_engine("cuml")
    with pytest.raises(ConfigError, match="no GPU here"):
        fit_kmeans(np.eye(4), 2, engine="cuml")


def test_auto_takes_cuml_where_it_can_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuml_engine, "cuml_problem", lambda: "")
    assert choose_engine("auto") == "cuml"
    assert choose_engine("cuml") == "cuml"


def test_an_engine_that_is_named_is_taken_or_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose_engine("sklearn") == "sklearn"
    assert choose_engine("dask") == "dask"
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "install segrec[dask]" in dask_engine.dask_problem()
    with pytest.raises(ConfigError, match=r"install segrec\[dask\]"):
        choose_engine("dask")
    monkeypatch.setattr(cuml_engine, "cuml_dask_problem", lambda: "no GPUs here.")
    with pytest.raises(ConfigError, match="no GPUs here"):
        choose_engine("cuml_dask")


def test_a_sample_stays_on_one_machine() -> None:
    names: list[Engine] = ["sklearn", "dask", "cuml", "cuml_dask"]
    assert [on_one_machine(name) for name in names] == ["sklearn", "sklearn", "cuml", "cuml"]


def test_files_are_for_engines_that_read_them() -> None:
    with pytest.raises(ConfigError, match="sklearn needs all points in memory"):
        fit_files([], 2, engine="sklearn")
