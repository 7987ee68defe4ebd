"""K-means behind one small interface: scikit-learn, Dask over parts of the data, RAPIDS cuML on one GPU or on many.

An engine only finds centroids. Labels and inertia are computed here, by the function that the server uses, so that
they mean the same whichever engine ran.
"""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from server.core.segments import Nearest, nearest
from training.errors import ConfigError
from training.kmeans import cuml_engine, dask_engine
from training.kmeans.partitions import Partition, partition_shape
from training.kmeans.settings import Found, KMeansSettings

Engine = Literal["sklearn", "dask", "cuml", "cuml_dask"]

_CHUNK_BYTES = 8 << 20
_DEFAULTS = KMeansSettings()

_Fit = Callable[[NDArray[np.float32], int, KMeansSettings, NDArray[np.float32] | None], Found]
_FitParts = Callable[[Any, Sequence[Partition], int, KMeansSettings, NDArray[np.float32] | None], Found]


@dataclass(frozen=True, slots=True)
class KMeansResult:
    """K centroids float32 (K, D), the centroid index of each point intp (N,), from 0, and how well they fit.

    `inertia` is the sum of squared Euclidean distances to the nearest centroid; smaller is better. `iterations` is
    that of the best restart. `history` is its inertia at the start and after each iteration, and ends in `inertia`;
    `shifts` is how far each iteration moved the centroids, as a sum of squares. scikit-learn does not tell `shifts`,
    and cuML neither: these are empty then.
    """

    engine: Engine
    centroids: NDArray[np.float32]
    labels: NDArray[np.intp]
    inertia: float
    iterations: int
    history: tuple[float, ...] = ()
    shifts: tuple[float, ...] = ()


def fit_kmeans(
    points: NDArray[np.floating],
    k: int,
    *,
    engine: Engine = "sklearn",
    settings: KMeansSettings = _DEFAULTS,
    previous: NDArray[np.floating] | None = None,
    seed: int | None = None,
    restarts: int | None = None,
) -> KMeansResult:
    """Cluster points (N, D), already of length 1. Centroids without points are dropped, so K is `k` at most.

    `previous` (P, D) are centroids to begin with, which a start of that name needs. `seed` and `restarts`, where given,
    stand for those of `settings`. Dask's workers read the points from a file in the directory for temporary files,
    which those on other machines must share; `fit_files` is for points that lie in files already.
    Raises `ConfigError` when `k` is larger than N, the start has no fitting centroids, or the engine cannot run here.
    """
    given: dict[str, Any] = {"seed": seed, "restarts": restarts}
    settings = replace(settings, **{name: value for name, value in given.items() if value is not None})
    start = _checked(points.shape, k, engine, settings, previous)
    data = np.ascontiguousarray(points, np.float32)
    if engine in ("dask", "cuml_dask"):
        found = _fit_filed(data, k, engine, settings, start)
    else:
        found = _in_memory(engine)(data, k, settings, start)
    placed = assign(data, found.centroids.astype(np.float32))
    return _result(engine, found, placed.first, float((placed.first_distance**2).sum()))


def fit_files(
    paths: Sequence[Path],
    k: int,
    *,
    engine: Engine = "dask",
    settings: KMeansSettings = _DEFAULTS,
    previous: NDArray[np.floating] | None = None,
) -> KMeansResult:
    """As `fit_kmeans`, for points in `.npy` or Parquet files, in their order: workers read them, this process never.

    Raises also LogError for files that hold no points, or points of several dimensions.
    """
    if engine not in ("dask", "cuml_dask"):
        raise ConfigError(f"K-means engine {engine} needs all points in memory; files are read by dask and cuml_dask.")
    start = _checked(partition_shape(paths), k, engine, settings, previous)
    with dask_engine.client_on(_cluster(engine)) as client:
        parts = dask_engine.parts_for(client, paths, settings)
        found = _over_parts(engine)(client, parts, k, settings, start)
        told = client.gather(client.map(_assigned, parts, centroids=found.centroids.astype(np.float32), pure=False))
    return _result(engine, found, np.concatenate([labels for labels, _ in told]), sum(part for _, part in told))


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


def choose_engine(asked: Literal["auto", "sklearn", "dask", "cuml", "cuml_dask"]) -> Engine:
    """The engine to use: `auto` takes cuML where it can run. Raises `ConfigError` for a named one that cannot."""
    if asked == "auto":
        return "cuml" if not cuml_engine.cuml_problem() else "sklearn"
    if problem := _problem(asked):
        raise ConfigError(problem)
    return asked


def on_one_machine(engine: Engine) -> Engine:
    """The engine on the same hardware for points that one process holds anyway, such as a sample."""
    return {"dask": "sklearn", "cuml_dask": "cuml"}.get(engine, engine)  # type: ignore[return-value]


def _problem(engine: Engine) -> str:
    """Why an engine cannot run here; empty when it can."""
    if engine == "sklearn":
        return ""
    if engine == "cuml":
        return cuml_engine.cuml_problem()
    return dask_engine.dask_problem() if engine == "dask" else cuml_engine.cuml_dask_problem()


def _checked(
    shape: tuple[int, ...], k: int, engine: Engine, settings: KMeansSettings, previous: NDArray[np.floating] | None
) -> NDArray[np.float32] | None:
    """The centroids to begin with, if the settings ask for earlier ones."""
    if not 1 <= k <= shape[0]:
        raise ConfigError(f"Cannot make {k} segments of {shape[0]} users; lower `k`.")
    if problem := _problem(engine):
        raise ConfigError(problem)
    if previous is None and settings.start != "previous":
        return None
    if previous is None or not len(previous):
        raise ConfigError("K-means cannot start from previous centroids: there are none; set start to k-means++.")
    if previous.shape[1] != shape[1]:
        raise ConfigError(
            f"K-means cannot start from previous centroids: they have {previous.shape[1]} dimensions, and users have "
            f"{shape[1]}; set start to k-means++."
        )
    return np.ascontiguousarray(previous, np.float32)


def _in_memory(engine: Engine) -> _Fit:
    if engine == "cuml":
        return cuml_engine.fit
    from training.kmeans import sklearn_engine

    return sklearn_engine.fit


def _over_parts(engine: Engine) -> _FitParts:
    return dask_engine.fit if engine == "dask" else cuml_engine.fit_parts


def _cluster(engine: Engine) -> Callable[[], Any]:
    return dask_engine.local_cluster if engine == "dask" else cuml_engine.gpu_cluster


def _fit_filed(
    points: NDArray[np.float32], k: int, engine: Engine, settings: KMeansSettings, start: NDArray[np.float32] | None
) -> Found:
    """Write the points down for the workers to read."""
    with tempfile.TemporaryDirectory(prefix="segrec-kmeans-") as directory:
        path = Path(directory) / "points.npy"
        np.save(path, points)
        with dask_engine.client_on(_cluster(engine)) as client:
            return _over_parts(engine)(client, dask_engine.parts_for(client, [path], settings), k, settings, start)


def _assigned(part: Partition, centroids: NDArray[np.float32]) -> tuple[NDArray[np.intp], float]:
    """Labels and inertia of a part."""
    placed = assign(part.read(), centroids)
    return placed.first, float((placed.first_distance**2).sum())


def _result(engine: Engine, found: Found, labels: NDArray[np.intp], inertia: float) -> KMeansResult:
    """Without the centroids that have no points."""
    used, dense = np.unique(labels, return_inverse=True)
    centroids = np.ascontiguousarray(found.centroids[used], np.float32)
    history = (*found.history, inertia) if found.history else ()
    return KMeansResult(engine, centroids, dense.astype(np.intp), inertia, found.iterations, history, found.shifts)
