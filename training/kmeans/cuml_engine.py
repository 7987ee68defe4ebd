"""K-means by RAPIDS cuML: on one GPU, or by `cuml.dask` on the GPUs of a Dask cluster.

cuML needs a GPU to be loaded, so its modules are imported where they run.
"""

import importlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.errors import ConfigError
from training.kmeans.settings import Found, KMeansSettings, allowed_shift


def fit(points: NDArray[np.float32], k: int, settings: KMeansSettings, start: NDArray[np.float32] | None) -> Found:
    """The best of all restarts on one GPU; one where there are centroids (K, D) to start from."""
    arguments = cuml_arguments(points, k, settings, start)
    model = importlib.import_module("cuml.cluster").KMeans(**arguments, output_type="numpy").fit(points)
    return Found(model.cluster_centers_, float(model.inertia_), int(model.n_iter_))


def fit_over_dask(
    points: NDArray[np.float32], k: int, settings: KMeansSettings, start: NDArray[np.float32] | None
) -> Found:
    """The same on the GPUs of the current Dask client's workers, or of this machine where there is no client."""
    from training.kmeans.dask_engine import client_on

    with client_on(gpu_cluster) as client:
        require_cuml(client)
        kind, cupy = importlib.import_module("cuml.dask.cluster").KMeans, importlib.import_module("cupy")
        arguments = cuml_arguments(points, k, settings, start)
        model = kind(client=client, **arguments).fit(dask_array(client, points, cupy))
        return Found(cupy.asnumpy(model.cluster_centers_), float(model.inertia_), int(model.n_iter_))


def gpu_cluster() -> Any:
    """A Dask cluster of this machine with a worker for each of its GPUs."""
    return importlib.import_module("dask_cuda").LocalCUDACluster()


def require_cuml(client: Any) -> None:
    """Raise ConfigError where a worker cannot load cuML: the worker would end, and the fit wait for it without end."""
    try:
        client.run(importlib.import_module, "cuml.cluster")
    except (ImportError, OSError) as error:
        raise ConfigError(
            f"A worker of K-means engine cuml_dask cannot load cuML ({error}); give the workers the environment of "
            "this process, LD_LIBRARY_PATH included, or use cuml."
        ) from error


def dask_array(client: Any, points: NDArray[np.float32], library: Any) -> Any:
    """A Dask array (N, D) with a chunk on each worker, of arrays of `library`: CuPy's lie on the GPU."""
    dask, arrays = importlib.import_module("dask"), importlib.import_module("dask.array")
    shares = np.array_split(points, min(len(points), len(client.nthreads())))
    moved, meta = dask.delayed(library.asarray), library.empty((0, 0), np.float32)
    held = zip(client.scatter(shares, hash=False), shares, strict=True)
    return arrays.concatenate([arrays.from_delayed(moved(future), share.shape, meta=meta) for future, share in held])


def cuml_arguments(
    points: NDArray[np.float32], k: int, settings: KMeansSettings, start: NDArray[np.float32] | None
) -> dict[str, Any]:
    """Our settings in the words of both of cuML's KMeans, whose k-means++ for many points is called k-means||."""
    return {
        "n_clusters": k,
        "init": "k-means||" if start is None else start,
        "n_init": settings.restarts if start is None else 1,
        "max_iter": settings.max_iterations,
        "tol": cuml_tolerance(points, k),
        "random_state": settings.seed,
    }


def cuml_tolerance(points: NDArray[np.float32], k: int) -> float:
    """The tolerance that makes cuML end where the other engines do, or a little later.

    cuML's is absolute and must be above 0, and a run also ends where inertia falls by no more than that share of
    itself: with k clusters of a size, squared moves that sum to a share `t` of the variance of a dimension lower
    inertia by some `t / (k * D)`. Moves as small as the rounding of float32 are none.
    """
    rounding: float = k * points.shape[1] * float(np.finfo(np.float32).eps) ** 2
    return max(allowed_shift(points) / k, rounding)
