"""K-means by RAPIDS cuML: on one GPU, and by `cuml.dask` on the GPUs of a Dask cluster.

cuML tells how many iterations it took, not how far each one came: its history is empty.
"""

import ctypes
import importlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.errors import ConfigError
from training.kmeans import dask_engine
from training.kmeans.partitions import Partition
from training.kmeans.seeding import resized
from training.kmeans.settings import Found, KMeansSettings

_SAMPLE = 100_000
"""Rows that the variance of the points is told from."""


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


def cuml_dask_problem(load_driver: Callable[[str], Any] = ctypes.CDLL) -> str:
    """Why cuML cannot run over Dask on this machine; empty when it can."""
    if problem := cuml_problem(load_driver):
        return problem.replace("K-means engine cuml", "K-means engine cuml_dask")
    try:
        for name in ("cuml.dask.cluster", "dask_cuda"):
            importlib.import_module(name)
    except (ImportError, OSError) as error:
        return (
            f"K-means engine cuml_dask is not installed ({error}); install cuml-cu13[dask] and dask-cuda, or use cuml."
        )
    return ""


def with_its_tolerance(settings: KMeansSettings, points: NDArray[np.float32], k: int) -> KMeansSettings:
    """The same settings with the tolerance that makes cuML end where the other engines do, or a little later.

    cuML's is not relative to the variance of the points (N, D), which is told from one or two times `_SAMPLE` of them.
    It must be above 0, and a run also ends where inertia falls by no more than that share of itself: with k clusters of
    a size, squared moves that sum to a share `t` of the variance of a dimension lower inertia by some `t / (k * D)`.
    Moves as small as the rounding of float32 are none.
    """
    sample = points[:: max(1, len(points) // _SAMPLE)]
    rounding = k * points.shape[1] * float(np.finfo(np.float32).eps) ** 2
    asked = settings.tolerance * float(sample.var(axis=0, dtype=np.float64).mean()) / k
    return replace(settings, tolerance=max(asked, rounding))


def cuml_arguments(
    k: int, rows: int, settings: KMeansSettings, start: NDArray[np.float32] | None = None
) -> dict[str, Any]:
    """Our settings, with its tolerance, in the words of `cuml.cluster.KMeans`, for `rows` points.

    Its k-means++ for many points is called k-means||. With `rows_at_once` the points stay in the memory of the host,
    and so many are on the GPU at a time; k-means|| then begins from a random sample of that size.
    Raises `ConfigError` for a number of rows that no start could be made of.
    """
    if settings.rows_at_once is not None and settings.rows_at_once < k:
        raise ConfigError(
            f"rows_at_once = {settings.rows_at_once} is less than the {k} segments; raise it, or lower k."
        )
    return {
        "n_clusters": k,
        "init": _init(settings) if start is None else start,
        "n_init": settings.restarts if start is None else 1,
        "max_iter": settings.max_iterations,
        "tol": settings.tolerance,
        "random_state": settings.seed,
        "oversampling_factor": settings.oversampling,
        "device_buffer_samples": settings.rows_at_once or 0,
        "init_size": min(settings.rows_at_once or 0, rows),
        "output_type": "numpy",
    }


def cuml_dask_arguments(
    k: int, rows: int, settings: KMeansSettings, start: NDArray[np.float32] | None = None
) -> dict[str, Any]:
    """Our settings in the words of `cuml.dask.cluster.KMeans`, which sets the type of its output itself."""
    arguments = cuml_arguments(k, rows, settings, start)
    del arguments["output_type"]
    return arguments


def fit(
    points: NDArray[np.float32], k: int, settings: KMeansSettings, previous: NDArray[np.float32] | None = None
) -> Found:
    """The best of all restarts on one GPU; from `previous` centroids there is one."""
    start = None if previous is None else resized(points, previous, k, settings.seed)
    settings = with_its_tolerance(settings, points, k)
    arguments = cuml_arguments(k if start is None else len(start), len(points), settings, start)
    model = importlib.import_module("cuml.cluster").KMeans(**arguments).fit(points)
    return Found(model.cluster_centers_, float(model.inertia_), int(model.n_iter_))


def fit_parts(
    client: Any,
    parts: Sequence[Partition],
    k: int,
    settings: KMeansSettings,
    previous: NDArray[np.float32] | None = None,
) -> Found:
    """The same on the GPUs of a client's workers, each of which reads its own parts.

    With `rows_at_once` the parts stay in the memory of the hosts, otherwise they all lie on the GPUs.
    Raises ConfigError where a worker cannot load cuML: it would end, and the fit wait for it without end.
    """
    try:
        client.run(importlib.import_module, "cuml.cluster")
    except (ImportError, OSError) as error:
        raise ConfigError(
            f"A worker of K-means engine cuml_dask cannot load cuML ({error}); give the workers the environment of "
            "this process, LD_LIBRARY_PATH included, or use cuml."
        ) from error
    start = None
    if previous is not None:
        data = dask_engine.Partwise.over(client, parts)
        start = (dask_engine.resized(data, previous, k, settings) + data.moments.mean).astype(np.float32)
    settings = with_its_tolerance(settings, parts[0].first(_SAMPLE).read(), k)
    arguments = cuml_dask_arguments(k if start is None else len(start), sum(map(len, parts)), settings, start)
    points = blocks(parts, on_gpu=settings.rows_at_once is None)
    model = importlib.import_module("cuml.dask.cluster").KMeans(client=client, **arguments).fit(points)
    centroids = importlib.import_module("cupy").asnumpy(model.cluster_centers_)
    return Found(centroids, float(model.inertia_), int(model.n_iter_))


def blocks(parts: Sequence[Partition], on_gpu: bool) -> Any:
    """A Dask array (N, D) of float32 whose chunks are the parts, as NumPy or CuPy arrays."""
    dask, arrays = importlib.import_module("dask"), importlib.import_module("dask.array")
    library = importlib.import_module("cupy") if on_gpu else np
    width = parts[0].first(1).read().shape[1]
    meta = library.empty((0, 0), np.float32)
    read = dask.delayed(_read)
    chunks = [arrays.from_delayed(read(part, on_gpu), (len(part), width), meta=meta) for part in parts]
    return arrays.concatenate(chunks)


def _read(part: Partition, on_gpu: bool) -> Any:
    points = part.read()
    return importlib.import_module("cupy").asarray(points) if on_gpu else points


def gpu_cluster() -> Any:
    """A Dask cluster of this machine with a worker for each of its GPUs."""
    return importlib.import_module("dask_cuda").LocalCUDACluster()


def _init(settings: KMeansSettings) -> str:
    """cuML's name of a start; it takes an unknown one without a word."""
    return {"k-means++": "k-means||", "random": "random"}[settings.start]
