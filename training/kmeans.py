"""K-means behind one small interface: scikit-learn on CPUs, RAPIDS cuML on a GPU.

An engine only finds centroids. Labels and inertia are computed here, by the function that the server uses, so that
they mean the same whichever engine ran.
"""

import ctypes
import importlib
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from server.core.segments import Nearest, nearest
from training.errors import ConfigError

Engine = Literal["sklearn", "cuml"]

MAX_ITERATIONS = 300
TOLERANCE = 1e-4
_CHUNK_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class KMeansResult:
    """K centroids float32 (K, D), the centroid index of each point intp (N,), from 0, and how well they fit.

    `inertia` is the sum of squared Euclidean distances to the nearest centroid; smaller is better. `iterations` is
    that of the best restart.
    """

    engine: Engine
    centroids: NDArray[np.float32]
    labels: NDArray[np.intp]
    inertia: float
    iterations: int


def fit_kmeans(
    points: NDArray[np.floating],
    k: int,
    *,
    engine: Engine = "sklearn",
    seed: int = 0,
    restarts: int = 10,
    previous: NDArray[np.float32] | None = None,
) -> KMeansResult:
    """Cluster points (N, D), already of length 1. Centroids without points are dropped, so K is `k` at most.

    `previous` (k, D) are centroids to start from, once, instead of restarts.
    Raises `ConfigError` when `k` is larger than N, or the engine cannot run here.
    """
    if not 1 <= k <= len(points):
        raise ConfigError(f"Cannot make {k} segments of {len(points)} users; lower `k`.")
    if engine == "cuml" and (problem := cuml_problem()):
        raise ConfigError(problem)
    data = np.ascontiguousarray(points, np.float32)
    arguments = _ARGUMENTS[engine](k, seed, restarts)
    if previous is not None:
        arguments |= {"init": np.ascontiguousarray(previous, np.float32), "n_init": 1}
    found, iterations = _ENGINES[engine](data, arguments)
    centroids = _with_points(data, found)
    assigned = assign(data, centroids)
    return KMeansResult(engine, centroids, assigned.first, float((assigned.first_distance**2).sum()), iterations)


def assign(points: NDArray[np.float32], centroids: NDArray[np.float32]) -> Nearest:
    """As `server.core.segments.nearest`, in chunks that keep memory small however many points there are."""
    rows = max(1, _CHUNK_BYTES // (8 * len(centroids)))
    parts = [nearest(points[start : start + rows], centroids) for start in range(0, max(len(points), 1), rows)]
    return Nearest(
        np.concatenate([part.first for part in parts]),
        np.concatenate([part.first_distance for part in parts]),
        np.concatenate([part.second for part in parts]),
        np.concatenate([part.second_distance for part in parts]),
    )


def choose_engine(asked: Literal["auto", "sklearn", "cuml"]) -> Engine:
    """The engine to use: `auto` takes cuML where it can run. Raises `ConfigError` for a named one that cannot."""
    if asked == "sklearn":
        return asked
    problem = cuml_problem()
    if asked == "cuml" and problem:
        raise ConfigError(problem)
    return "sklearn" if problem else "cuml"


def cuml_problem(load_driver: Callable[[str], Any] = ctypes.CDLL) -> str:
    """Why cuML cannot run on this machine; empty when it can.

    The driver is asked first: cuML imports without a GPU and fails only in `fit`.
    """
    try:
        driver = load_driver("libcuda.so.1")
    except OSError:
        return "K-means engine cuml needs an NVIDIA GPU, and there is no driver (libcuda.so.1) here; use sklearn."
    count = ctypes.c_int(0)
    if status := driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)):
        return f"K-means engine cuml needs an NVIDIA GPU, and the driver answers with error {status}; use sklearn."
    if not count.value:
        return "K-means engine cuml needs an NVIDIA GPU, and the driver sees none; use sklearn."
    try:
        usable = importlib.import_module("cupy").cuda.is_available()
        importlib.import_module("cuml.cluster")
    except (ImportError, OSError) as error:
        return f"K-means engine cuml is not installed ({error}); install segrec[gpu] apart, or use sklearn."
    return "" if usable else "K-means engine cuml needs a GPU that CuPy can use, and it finds none; use sklearn."


def sklearn_arguments(k: int, seed: int, restarts: int) -> dict[str, Any]:
    """Our settings in the words of `sklearn.cluster.KMeans`."""
    return {
        "n_clusters": k,
        "init": "k-means++",
        "n_init": restarts,
        "max_iter": MAX_ITERATIONS,
        "tol": TOLERANCE,
        "random_state": seed,
    }


def cuml_arguments(k: int, seed: int, restarts: int) -> dict[str, Any]:
    """Our settings in the words of `cuml.cluster.KMeans`, whose k-means++ for many points is called k-means||."""
    return {
        "n_clusters": k,
        "init": "k-means||",
        "n_init": restarts,
        "max_iter": MAX_ITERATIONS,
        "tol": TOLERANCE,
        "random_state": seed,
        "oversampling_factor": 2.0,
        "output_type": "numpy",
    }


def _fit_sklearn(points: NDArray[np.float32], arguments: Mapping[str, Any]) -> tuple[NDArray[np.float32], int]:
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings():
        # Fewer distinct points than clusters: the empty ones are dropped, and the result shows it.
        warnings.simplefilter("ignore", ConvergenceWarning)
        model = KMeans(**arguments).fit(points)
    return model.cluster_centers_, int(model.n_iter_)


def _fit_cuml(points: NDArray[np.float32], arguments: Mapping[str, Any]) -> tuple[NDArray[np.float32], int]:
    model = importlib.import_module("cuml.cluster").KMeans(**arguments).fit(points)
    return model.cluster_centers_, int(model.n_iter_)


_ARGUMENTS: Mapping[Engine, Callable[[int, int, int], dict[str, Any]]] = {
    "sklearn": sklearn_arguments,
    "cuml": cuml_arguments,
}
_ENGINES: Mapping[Engine, Callable[[NDArray[np.float32], Mapping[str, Any]], tuple[NDArray[np.float32], int]]] = {
    "sklearn": _fit_sklearn,
    "cuml": _fit_cuml,
}


def _with_points(points: NDArray[np.float32], centroids: NDArray[np.floating]) -> NDArray[np.float32]:
    """The centroids that are nearest to at least one point."""
    narrow = np.ascontiguousarray(centroids, np.float32)
    return narrow[np.unique(assign(points, narrow).first)]
