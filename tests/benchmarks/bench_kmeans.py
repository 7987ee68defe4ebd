"""K-means side by side on the same points: scikit-learn, `fit_kmeans` with each of its engines, and faiss as the peer.

With a GPU also by cuML: its points begin and its centroids end in the memory of the host.

    python -m tests.benchmarks.bench_kmeans --points 1000000

The points are a mixture of Gaussians around `--groups` directions, of length 1, in one `.npy` file of float32. Each
engine runs in a process of its own. Seconds are those of the fit alone, from points in memory to centroids; Dask's
start of its workers is in, and shown apart as `start`. Peak memory is the most that the process and its workers had
in memory at a time (proportional set size). Inertia is computed here, for all in the same way, and shown relative to
the best. All stop by tolerance but faiss, which has none and makes `--faiss-iterations`. Ends in one JSON line.
"""

import argparse
import json
import multiprocessing
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from numpy.typing import NDArray

from server.core.segments import normalised
from training.kmeans.engines import Engine, cuml_problem
from training.kmeans.fit import assign, fit_kmeans
from training.kmeans.settings import KMeansSettings

WRITTEN_AT_ONCE = 100_000
EVERY_SECONDS = 0.2

_Fitted = tuple[NDArray[np.floating], dict[str, Any]]
"""Centroids (K, D) and figures."""


def main() -> None:
    """Run the benchmark, or one engine of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--k", type=int, default=64)
    parser.add_argument("--groups", type=int, default=100)
    parser.add_argument("--restarts", type=int, default=1)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--faiss-iterations", type=int, default=50)
    here = [engine for engine in ENGINES if engine != "cuml" or not cuml_problem()]
    parser.add_argument("--engines", nargs="+", choices=list(ENGINES), default=here)
    parser.add_argument("--engine", choices=list(ENGINES), help=argparse.SUPPRESS)
    parser.add_argument("--directory", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.engine:
        fit_alone(options)
    else:
        compare(options)


def compare(options: argparse.Namespace) -> None:
    """Run each engine in a process of its own, and print what came out."""
    from tests.benchmarks.common import show  # not above: torch would weigh on each engine, and on Dask's workers

    with tempfile.TemporaryDirectory() as name:
        options.directory = Path(name)
        # Elsewhere, so that this process is small.
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            pool.apply(write_points, (options.directory / "points.npy", options.points, options.dim, options.groups))
        told = {engine: measured(engine, options) for engine in options.engines}
    best = min(figures["inertia"] for figures in told.values())
    rows = []
    for engine, figures in told.items():
        figures["relative_inertia"] = round(figures["inertia"] / best, 5)
        cells = (figures["seconds"], figures["start_seconds"], figures["iterations"], figures["peak_mib"])
        rows.append((engine, *cells, f"{figures['relative_inertia']:.4f}"))
    asked = {name: getattr(options, name) for name in ("points", "dim", "k", "groups", "restarts")}
    show(
        f"K-means of {options.points:,} × {options.dim}, k = {options.k}",
        ("engine", "seconds", "start", "iterations", "peak MiB", "inertia ÷ best"),
        rows,
        {"benchmark": "kmeans", **asked, "workers": options.workers, "engines": told},
    )


def write_points(path: Path, points: int, dim: int, groups: int) -> None:
    """Write a mixture of Gaussians (N, D) of length 1."""
    rng = np.random.default_rng(0)
    centers = normalised(rng.normal(size=(groups, dim)))
    array = np.lib.format.open_memmap(path, "w+", np.float32, (points, dim))
    for start in range(0, points, WRITTEN_AT_ONCE):
        rows = min(WRITTEN_AT_ONCE, points - start)
        noise = rng.normal(scale=0.8 / dim**0.5, size=(rows, dim))
        array[start : start + rows] = normalised(centers[rng.integers(0, groups, rows)] + noise)
    array.flush()


def measured(engine: str, options: argparse.Namespace) -> dict[str, Any]:
    """Seconds, iterations, peak MiB and inertia of one engine."""
    command = [sys.executable, "-m", "tests.benchmarks.bench_kmeans", *sys.argv[1:]]
    command += ["--engine", engine, "--directory", str(options.directory)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    peak = Peak(process.pid)
    output, _ = process.communicate()
    peak_mib = peak.end()
    if process.returncode:
        sys.exit(f"`{' '.join(command)}` failed.")
    figures: dict[str, Any] = json.loads(output.splitlines()[-1])
    centroids = np.load(options.directory / f"{engine}.npy", allow_pickle=False)
    points = np.load(options.directory / "points.npy", mmap_mode="r", allow_pickle=False)
    inertia = float((assign(points, centroids).first_distance ** 2).sum())
    return figures | {"peak_mib": peak_mib, "inertia": round(inertia, 1)}


class Peak:
    """The most memory that a process and its children have at a time, looked at again and again in a thread."""

    def __init__(self, pid: int) -> None:
        self._process = psutil.Process(pid)
        self._ended = threading.Event()
        self._bytes = 0
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()

    def end(self) -> int:
        """Stop looking; MiB."""
        self._ended.set()
        self._thread.join()
        return self._bytes >> 20

    def _watch(self) -> None:
        while not self._ended.wait(EVERY_SECONDS):
            total = 0
            with suppress(psutil.Error):
                for process in [self._process, *self._process.children(recursive=True)]:
                    with suppress(psutil.Error):
                        total += process.memory_full_info().pss
            self._bytes = max(self._bytes, total)


def fit_alone(options: argparse.Namespace) -> None:
    """Fit with one engine in this process; its figures are the last line, its centroids lie beside the points."""
    path = options.directory / "points.npy"
    centroids, figures = ENGINES[options.engine](path, options)
    np.save(options.directory / f"{options.engine}.npy", centroids.astype(np.float32))
    print(json.dumps(figures))


def with_sklearn(path: Path, options: argparse.Namespace) -> _Fitted:
    """As its users call it."""
    from sklearn.cluster import KMeans

    points = np.load(path, allow_pickle=False)
    start = time.perf_counter()
    model = KMeans(options.k, n_init=options.restarts, random_state=0).fit(points)
    return model.cluster_centers_, _figures(start, int(model.n_iter_))


def with_engine(engine: Engine, path: Path, options: argparse.Namespace, started: float = 0.0) -> _Fitted:
    """`fit_kmeans`, with its labels and inertia. A fit of a few points loads the libraries first, and opens a GPU."""
    points = np.load(path, allow_pickle=False)
    fit_kmeans(points[: 2 * options.k], options.k, engine=engine, settings=KMeansSettings(restarts=1))
    start = time.perf_counter() - started
    result = fit_kmeans(points, options.k, engine=engine, settings=KMeansSettings(restarts=options.restarts))
    return result.centroids, _figures(start, result.iterations, started)


def with_dask(path: Path, options: argparse.Namespace) -> _Fitted:
    """`fit_kmeans` on a cluster of `--workers` processes."""
    import distributed

    kinds: Any = distributed
    start = time.perf_counter()
    with (
        kinds.LocalCluster(n_workers=options.workers, threads_per_worker=1, dashboard_address=None) as cluster,
        kinds.Client(cluster),
    ):
        return with_engine("dask", path, options, started=time.perf_counter() - start)


def with_faiss(path: Path, options: argparse.Namespace) -> _Fitted:
    """On all points: by default faiss takes a sample of them."""
    import faiss

    points = np.load(path, allow_pickle=False)
    shape = {"max_points_per_centroid": -(-len(points) // options.k), "min_points_per_centroid": 1}
    start = time.perf_counter()
    model = faiss.Kmeans(
        points.shape[1], options.k, niter=options.faiss_iterations, nredo=options.restarts, seed=1, **shape
    )
    model.train(points)
    return np.asarray(model.centroids), _figures(start, options.faiss_iterations)


def _figures(start: float, iterations: int, started: float = 0.0) -> dict[str, Any]:
    seconds = time.perf_counter() - start
    return {"seconds": round(seconds, 2), "start_seconds": round(started, 2), "iterations": iterations}


ENGINES: dict[str, Callable[[Path, argparse.Namespace], _Fitted]] = {
    "sklearn": with_sklearn,
    "fit_kmeans": partial(with_engine, "sklearn"),
    "cuml": partial(with_engine, "cuml"),
    "dask": with_dask,
    "faiss": with_faiss,
}


if __name__ == "__main__":
    main()
