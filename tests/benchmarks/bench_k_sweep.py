"""The sweep over k at scale: seconds and memory, and what sampling costs in exactness.

    OMP_NUM_THREADS=1 python -m tests.benchmarks.bench_k_sweep --users 1000000 --dim 64

Points of length 1 around 8 centres, as `--k auto` sees them, 2 to 32 segments tried. Centroids are fitted on a sample
and everybody is placed; silhouette and stability are of samples. The exact silhouette is computed beside where users
are few enough. Lift and halves, which are bounded by samples of their own, need a log and are left out. Ends in one
JSON line.
"""

import argparse
import resource
import time

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import silhouette_score

from tests.benchmarks.common import show
from training.segments.measures import Fitter, assign_clusters
from training.segments.sweep import KLimits, sweep
from training.segments.vector_sets import VectorSets

GROUPS = 8
SPREAD = 0.2
EXACT_USERS = 20_000
"""Up to so many users the exact silhouette is computed too."""

MOST_GIB = 4.0


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=64)
    options = parser.parse_args()
    points = grouped_points(options.users, options.dim)
    fitter = Fitter()
    start = time.perf_counter()
    cpu = time.process_time()
    found = sweep(VectorSets(points, None, None), KLimits((2, 32), 50), fitter)
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    rows = [
        (row.k, f"{row.silhouette:.4f} ± {row.silhouette_error:.4f}", exact(points, row.k, fitter), row.stability)
        for row in found.rows
    ]
    title = f"{options.users:,} × {options.dim}: {seconds:.0f} s, {cpu_seconds:.0f} of processor, peak {peak:.2f} GiB"
    figures = {"users": options.users, "dim": options.dim, "seconds": seconds, "cpu_seconds": cpu_seconds}
    measured = {"benchmark": "k_sweep", **figures, "peak_gib": peak, "within": peak <= MOST_GIB, "k": found.chosen}
    show(f"{title}; chosen {found.chosen}", ("k", "silhouette", "exact", "stability"), rows, measured)


def grouped_points(users: int, dim: int) -> NDArray[np.float32]:
    """Points (users, dim) of length 1 in `GROUPS` groups, made in place: memory is what is measured here."""
    rng = np.random.default_rng(0)
    points = rng.standard_normal((users, dim), np.float32)
    points *= SPREAD
    points[np.arange(users), np.arange(users) % GROUPS] += 1.0
    points /= np.sqrt(np.einsum("ij,ij->i", points, points))[:, None]
    return points


def exact(points: NDArray[np.float32], k: int, fitter: Fitter) -> str:
    """The silhouette of all points, where that can be had."""
    if len(points) > EXACT_USERS:
        return "–"
    return f"{silhouette_score(points, assign_clusters(points, fitter.fit(points, k).centroids).clusters):.4f}"


if __name__ == "__main__":
    main()
