"""K-means on the workers of a Dask cluster: Lloyd's algorithm as scikit-learn runs it.

Each worker holds a share of the points. In each iteration the workers receive the centroids and return sums.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import distributed
import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array
from sklearn.cluster import kmeans_plusplus
from sklearn.metrics import pairwise_distances_argmin_min

from training.kmeans.settings import EngineFit, KMeansSettings, allowed_shift, sample_of

_SHARE_ROWS = 100_000


@dataclass(frozen=True, slots=True)
class Sums:
    """Sum (K, D) and count (K,) of the points nearest to each centroid; `inertia` is the sum of squared distances."""

    totals: NDArray[np.float64]
    counts: NDArray[np.int64]
    inertia: float


def fit(points: NDArray[np.float32], k: int, settings: KMeansSettings, start: NDArray[np.float32] | None) -> EngineFit:
    """The best of all restarts; with `start` centroids (K, D) there is only one run.

    The first centroids are those of scikit-learn for the same seed; k-means++ reads at most a sample of the points.
    """
    random = np.random.RandomState(settings.seed)
    starts = (kmeans_plusplus(sample_of(points), k, random_state=random)[0] for _ in range(settings.restarts))
    with client_on(local_cluster) as client:
        shares = spread(client, points)
        runs = (
            _lloyd(client, shares, points, first, settings.max_iterations)
            for first in (starts if start is None else [start])
        )
        return min(runs, key=lambda run: run.inertia)


def local_cluster() -> Any:
    """A Dask cluster on this machine with one worker process per core."""
    cluster: Any = distributed.LocalCluster
    return cluster(threads_per_worker=1, dashboard_address="127.0.0.1:0")


@contextmanager
def client_on(cluster: Callable[[], Any]) -> Iterator[Any]:
    """The current Dask client; if there is none, a client on a new `cluster`, which is closed afterwards."""
    kind: Any = distributed.Client
    try:
        current = kind.current()
    except ValueError:
        with cluster() as started, kind(started) as client:
            yield client
        return
    yield current


def spread(client: Any, points: NDArray[np.float32]) -> list[Any]:
    """Futures of the points in shares of at most `_SHARE_ROWS`, in order, given to the workers in turn."""
    shares = max(min(len(points), sum(client.nthreads().values())), -(-len(points) // _SHARE_ROWS))
    return client.scatter(np.array_split(points, shares), hash=False)  # type: ignore[no-any-return]


def sums_of(points: NDArray[np.float32], centroids: NDArray[np.float32]) -> Sums:
    """The sums of one share of the points, (n, D); runs on a worker."""
    owners, distances = pairwise_distances_argmin_min(points, centroids)
    # `owns` is a sparse (n, K) matrix with a 1 at each point's centroid; its product with the points sums them.
    owns = csr_array((np.ones(len(points)), owners, np.arange(len(points) + 1)), shape=(len(points), len(centroids)))
    counts = np.bincount(owners, minlength=len(centroids))
    return Sums(owns.T @ points, counts, float((distances.astype(np.float64) ** 2).sum()))


def _lloyd(
    client: Any, shares: list[Any], points: NDArray[np.float32], centroids: NDArray[np.float32], max_iterations: int
) -> EngineFit:
    """Move the centroids (K, D) to the means of their points until they stop moving, at most `max_iterations` times."""
    allowed, shift, iterations = allowed_shift(points), np.inf, 0
    while shift > allowed and iterations < max_iterations:
        iterations += 1
        sums = _sums(client, shares, centroids)
        if not sums.counts.all():
            _fill_empty(sums, points, centroids)
        counts = sums.counts[:, None]
        means = np.divide(sums.totals, counts, out=centroids.astype(np.float64), where=counts > 0).astype(np.float32)
        shift = float(((means.astype(np.float64) - centroids) ** 2).sum())
        centroids = means
    return EngineFit(centroids, _sums(client, shares, centroids).inertia, iterations)


def _sums(client: Any, shares: list[Any], centroids: NDArray[np.float32]) -> Sums:
    """The sums of all shares, added in order, so that equal points give bit-equal sums."""
    centroids_on_workers = client.scatter(centroids, broadcast=True, hash=False)
    parts = client.gather(client.map(sums_of, shares, centroids=centroids_on_workers, pure=False))
    totals = np.sum([part.totals for part in parts], axis=0)
    counts = np.sum([part.counts for part in parts], axis=0)
    return Sums(totals, counts, sum(part.inertia for part in parts))


def _fill_empty(sums: Sums, points: NDArray[np.float32], centroids: NDArray[np.float32]) -> None:
    """Give each centroid without points one of the points farthest from their own centroid, as scikit-learn does."""
    owners, distances = pairwise_distances_argmin_min(points, centroids)
    empty = np.flatnonzero(sums.counts == 0)
    farthest = np.argsort(-distances, kind="stable")[: len(empty)]
    for target, row in zip(empty, farthest[distances[farthest] > 0], strict=False):
        sums.totals[owners[row]] -= points[row]
        sums.counts[owners[row]] -= 1
        sums.totals[target], sums.counts[target] = points[row], 1
