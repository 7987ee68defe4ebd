"""K-means: settings → first centroids → engine → result.

An engine only finds centroids. Labels and inertia are computed here, by the function that the server uses, so that
they mean the same whichever engine ran.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from server.core.segments import Nearest, nearest
from training.errors import ConfigError
from training.kmeans.engines import Engine
from training.kmeans.seeding import resized
from training.kmeans.settings import Found, KMeansSettings

_CHUNK_BYTES = 8 << 20
_DEFAULTS = KMeansSettings()

_Fit = Callable[[NDArray[np.float32], int, KMeansSettings, NDArray[np.float32] | None], Found]


@dataclass(frozen=True, slots=True)
class KMeansResult:
    """K centroids float32 (K, D), the centroid index of each point intp (N,), from 0, and how well they fit.

    `inertia` is the sum of squared Euclidean distances to the nearest centroid; smaller is better. `iterations` is
    the number of iterations of the best restart.
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
    """Cluster points (N, D), already of length 1. Centroids without points are dropped, so K is `k` at most.

    Restarts begin with k-means++, and the best is kept. With `previous` centroids (P, D) there is one start: from
    them, made `k`. `choose_engine` says whether an engine can run here.
    Raises `ConfigError` when `k` is larger than N, or the previous centroids do not fit the points.
    """
    _check(points, k, previous)
    data = np.ascontiguousarray(points, np.float32)
    start = None if previous is None else resized(data, np.ascontiguousarray(previous, np.float32), k, settings.seed)
    found = _fit_of(engine)(data, k if start is None else len(start), settings, start)
    placed = assign(data, found.centroids.astype(np.float32))
    # Centroids without points are left out, and labels are numbered 0 … K - 1 without them.
    used, labels = np.unique(placed.first, return_inverse=True)
    centroids = np.ascontiguousarray(found.centroids[used], np.float32)
    return KMeansResult(centroids, labels.astype(np.intp), float((placed.first_distance**2).sum()), found.iterations)


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


def _check(points: NDArray[np.floating], k: int, previous: NDArray[np.floating] | None) -> None:
    if not 1 <= k <= len(points):
        raise ConfigError(f"Cannot make {k} segments of {len(points)} users; lower `k`.")
    if previous is not None and previous.shape[1] != points.shape[1]:
        raise ConfigError(
            f"K-means cannot start from previous centroids: they have {previous.shape[1]} dimensions, and users have "
            f"{points.shape[1]}; set start to k-means++."
        )


def _fit_of(engine: Engine) -> _Fit:
    """The engine's fit; the libraries of an engine are loaded only where it runs."""
    if engine == "sklearn":
        from training.kmeans import sklearn_engine

        return sklearn_engine.fit
    if engine == "dask":
        from training.kmeans import dask_engine

        return dask_engine.fit
    from training.kmeans import cuml_engine

    return cuml_engine.fit if engine == "cuml" else cuml_engine.fit_over_dask
