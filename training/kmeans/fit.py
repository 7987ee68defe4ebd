"""K-means: settings → first centroids → engine → result.

An engine only finds centroids. Labels and inertia are computed here, with the server's own function, so they mean
the same for every engine.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from server.core.segments import Nearest, nearest
from training.errors import ConfigError
from training.kmeans.engines import Engine
from training.kmeans.seeding import resized
from training.kmeans.settings import EngineFit, KMeansSettings

_CHUNK_BYTES = 8 << 20
_DEFAULTS = KMeansSettings()

_FitFunction = Callable[[NDArray[np.float32], int, KMeansSettings, NDArray[np.float32] | None], EngineFit]


@dataclass(frozen=True, slots=True)
class KMeansResult:
    """K centroids, float32 (K, D), and for each point the index of its centroid, intp (N,), from 0.

    `inertia` is the sum of squared Euclidean distances to the nearest centroid; smaller is better. `iterations`
    counts the iterations of the best restart.
    """

    centroids: NDArray[np.float32]
    labels: NDArray[np.intp]
    inertia: float
    iterations: int


def fit_kmeans(
    points: NDArray[np.floating],
    k: int,
    *,
    engine: Engine = "sklearn",
    settings: KMeansSettings = _DEFAULTS,
    previous: NDArray[np.floating] | None = None,
) -> KMeansResult:
    """Cluster points (N, D) of length 1. Centroids without points are dropped, so K is at most `k`.

    Each restart begins with k-means++; the restart with the smallest inertia wins. With `previous` centroids (P, D)
    there is a single start from these, with centroids added or left out until there are `k` (`resized`).
    Raises ConfigError if `k` is larger than N, or if the previous centroids have other dimensions than the points.
    """
    _check(points, k, previous)
    data = np.ascontiguousarray(points, np.float32)
    start = None if previous is None else resized(data, np.ascontiguousarray(previous, np.float32), k, settings.seed)
    fitted = _fit_function(engine)(data, k if start is None else len(start), settings, start)
    assigned = assign(data, fitted.centroids.astype(np.float32))
    # Drop centroids without points; renumber the labels 0 … K - 1.
    used, labels = np.unique(assigned.first, return_inverse=True)
    centroids = np.ascontiguousarray(fitted.centroids[used], np.float32)
    return KMeansResult(centroids, labels.astype(np.intp), float((assigned.first_distance**2).sum()), fitted.iterations)


def assign(points: NDArray[np.float32], centroids: NDArray[np.float32]) -> Nearest:
    """As `server.core.segments.nearest`, in chunks, so that memory does not grow with the number of points."""
    rows = max(1, _CHUNK_BYTES // (8 * len(centroids)))
    parts = [nearest(points[start : start + rows], centroids) for start in range(0, max(len(points), 1), rows)]
    return Nearest(
        np.concatenate([part.first for part in parts]),
        np.concatenate([part.first_distance for part in parts]),
        np.concatenate([part.second for part in parts]),
        np.concatenate([part.second_distance for part in parts]),
    )


def _check(points: NDArray[np.floating], k: int, previous: NDArray[np.floating] | None) -> None:
    if not 1 <= k <= len(points):
        raise ConfigError(f"Cannot split {len(points)} users into {k} segments; lower `k`.")
    if previous is not None and previous.shape[1] != points.shape[1]:
        raise ConfigError(
            f"K-means cannot start from previous centroids: they have {previous.shape[1]} dimensions, and users have "
            f"{points.shape[1]}; set `start` to k-means++."
        )


def _fit_function(engine: Engine) -> _FitFunction:
    """The engine's `fit`; imports only the libraries of this engine."""
    if engine == "sklearn":
        from training.kmeans import sklearn_engine

        return sklearn_engine.fit
    if engine == "dask":
        from training.kmeans import dask_engine

        return dask_engine.fit
    from training.kmeans import cuml_engine

    return cuml_engine.fit if engine == "cuml" else cuml_engine.fit_over_dask
