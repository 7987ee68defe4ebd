"""K-means engines: what they find, how one is chosen, and that the calls fit the libraries."""

import ctypes
import importlib
import inspect
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score

from server.core.segments import normalised
from training import kmeans
from training.errors import ConfigError
from training.kmeans import Engine, assign, choose_engine, cuml_arguments, cuml_problem, fit_kmeans, sklearn_arguments

# Read from the signature and docstring of cuml.cluster.KMeans in the wheel cuml-cu12 26.10.0 (all keyword-only).
CUML_VERSION = "26.10.0"
CUML_PARAMETERS = {
    "n_clusters",
    "max_iter",
    "tol",
    "verbose",
    "random_state",
    "init",
    "n_init",
    "oversampling_factor",
    "max_samples_per_batch",
    "device_buffer_samples",
    "init_size",
    "output_type",
}
CUML_INITS = {"scalable-k-means++", "k-means||", "k-means++", "random"}


def engine_parameter(name: Engine) -> Any:
    problem = cuml_problem() if name == "cuml" else ""
    marks = [pytest.mark.gpu, pytest.mark.skipif(bool(problem), reason=problem)] if name == "cuml" else []
    return pytest.param(name, marks=marks)


engines = pytest.mark.parametrize("engine", [engine_parameter("sklearn"), engine_parameter("cuml")])


def planted(clusters: int = 4, size: int = 60, dim: int = 8) -> tuple[NDArray[np.float64], NDArray[np.intp]]:
    rng = np.random.default_rng(0)
    truth = np.repeat(np.arange(clusters), size)
    return normalised(np.eye(dim)[truth] + rng.normal(scale=0.05, size=(len(truth), dim))), truth


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
    points, _ = planted()
    first, second = (fit_kmeans(points, 3, engine=engine, seed=7) for _ in range(2))
    np.testing.assert_allclose(first.centroids, second.centroids, atol=1e-6)


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


@pytest.mark.parametrize("k", [0, 5])
def test_k_out_of_range_is_refused(k: int) -> None:
    with pytest.raises(ConfigError, match=f"{k} segments of 4 users"):
        fit_kmeans(np.eye(4), k)


def test_assignment_in_chunks_equals_assignment_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    points, _ = planted()
    narrow = points.astype(np.float32)
    whole = assign(narrow, narrow[:3])
    monkeypatch.setattr(kmeans, "_CHUNK_BYTES", 8 * 3 * 7)
    parts = assign(narrow, narrow[:3])
    np.testing.assert_array_equal(whole.first, parts.first)
    np.testing.assert_array_equal(whole.second_distance, parts.second_distance)


def test_our_arguments_are_parameters_of_sklearn() -> None:
    assert set(sklearn_arguments(2, 0, 1)) <= set(inspect.signature(KMeans).parameters)


def test_our_arguments_are_parameters_of_cuml() -> None:
    arguments = cuml_arguments(2, 0, 1)
    assert set(arguments) <= CUML_PARAMETERS, f"cuml {CUML_VERSION} has no such parameter"
    assert arguments["init"] in CUML_INITS, "cuml takes an unknown init without a word"


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


def test_auto_takes_sklearn_where_cuml_cannot_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kmeans, "cuml_problem", lambda: "no GPU here.")
    assert choose_engine("auto") == "sklearn"
    with pytest.raises(ConfigError, match="no GPU here"):
        choose_engine("cuml")
    with pytest.raises(ConfigError, match="no GPU here"):
        fit_kmeans(np.eye(4), 2, engine="cuml")


def test_auto_takes_cuml_where_it_can_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kmeans, "cuml_problem", lambda: "")
    assert choose_engine("auto") == "cuml"
