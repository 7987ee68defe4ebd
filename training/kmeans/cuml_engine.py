"""K-means by RAPIDS cuML: on one GPU, or by `cuml.dask` on the GPUs of a Dask cluster.

cuML cannot be loaded without a GPU, so its modules are imported inside the functions that use them.
"""

import importlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.errors import ConfigError
from training.kmeans.settings import EngineFit, KMeansSettings, allowed_shift


def fit(points: NDArray[np.float32], k: int, settings: KMeansSettings, start: NDArray[np.float32] | None) -> EngineFit:
    """The best of all restarts on one GPU; with `start` centroids (K, D) there is only one run."""
    arguments = cuml_arguments(points, k, settings, start)
    model = importlib.import_module("cuml.cluster").KMeans(**arguments, output_type="numpy").fit(points)
    return EngineFit(model.cluster_centers_, float(model.inertia_), int(model.n_iter_))


def fit_over_dask(
    points: NDArray[np.float32], k: int, settings: KMeansSettings, start: NDArray[np.float32] | None
) -> EngineFit:
    """Like `fit`, on the GPUs of the current Dask client's workers, or of this machine if there is no client."""
    from training.kmeans.dask_engine import client_on

    with client_on(gpu_cluster) as client:
        require_cuml(client)
        kind, cupy = importlib.import_module("cuml.dask.cluster").KMeans, importlib.import_module("cupy")
        arguments = cuml_arguments(points, k, settings, start)
        model = kind(client=client, **arguments).fit(dask_array(client, points, cupy))
        return EngineFit(cupy.asnumpy(model.cluster_centers_), float(model.inertia_), int(model.n_iter_))


def gpu_cluster() -> Any:
    """A Dask cluster of this machine with a worker for each of its GPUs."""
    return importlib.import_module("dask_cuda").LocalCUDACluster()


def require_cuml(client: Any) -> None:
    """Raise ConfigError if a worker cannot load cuML: that worker would exit, and the fit would wait for it forever."""
    try:
        client.run(importlib.import_module, "cuml.cluster")
    except (ImportError, OSError) as error:
        raise ConfigError(
            f"A worker of K-means engine cuml_dask cannot load cuML ({error}); give the workers the environment of "
            "this process, LD_LIBRARY_PATH included, or use cuml."
        ) from error


def dask_array(client: Any, points: NDArray[np.float32], library: Any) -> Any:
    """A Dask array (N, D) with a chunk on each worker. `library` is the array module: CuPy's arrays are on the GPU."""
    dask, arrays = importlib.import_module("dask"), importlib.import_module("dask.array")
    shares = np.array_split(points, min(len(points), len(client.nthreads())))
    moved, meta = dask.delayed(library.asarray), library.empty((0, 0), np.float32)
    futures = zip(client.scatter(shares, hash=False), shares, strict=True)
    return arrays.concatenate([arrays.from_delayed(moved(future), share.shape, meta=meta) for future, share in futures])


def cuml_arguments(
    points: NDArray[np.float32], k: int, settings: KMeansSettings, start: NDArray[np.float32] | None
) -> dict[str, Any]:
    """Our settings as arguments of both of cuML's KMeans classes, where k-means++ is called `k-means||`."""
    return {
        "n_clusters": k,
        "init": "k-means||" if start is None else start,
        "n_init": settings.restarts if start is None else 1,
        "max_iter": settings.max_iterations,
        "tol": cuml_tolerance(points, k),
        "random_state": settings.seed,
    }


def cuml_tolerance(points: NDArray[np.float32], k: int) -> float:
    """The tolerance with which cuML ends where the other engines end, or a little later.

    cuML's tolerance is absolute and must be above 0. A cuML run also ends once inertia falls by no more than this
    share of its value. With k clusters of equal size, squared moves that sum to a share `t` of one dimension's variance
    lower inertia by about `t / (k * D)`. The lower bound is the rounding of float32.
    """
    rounding: float = k * points.shape[1] * float(np.finfo(np.float32).eps) ** 2
    return max(allowed_shift(points) / k, rounding)
