"""K-means over the parts of data that no one machine need hold: exact Lloyd iterations by Dask.

Each worker reads its part from the file, and answers with sums: a worker holds a part at a time, and what travels is
centroids. It starts with k-means|| (Bahmani et al. 2012, "Scalable K-Means++"). From the same centroids it gives
what scikit-learn gives: the same stop, and the same new place for a centroid that lost its points.
"""

import importlib
import importlib.util
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.kmeans.partitions import Partition, partition_shape, parts_of
from training.kmeans.partwise import Moments, Near, Sums, draw, farthest, moments, nearer, rows_at, sums, weights
from training.kmeans.seeding import fullest, plus_plus
from training.kmeans.settings import Found, KMeansSettings

ROUNDS = 5
"""Rounds of k-means||; the paper finds five to be enough."""


def dask_problem() -> str:
    """Why Dask cannot run here; empty when it can."""
    if all(importlib.util.find_spec(name) for name in ("dask", "distributed")):
        return ""
    return "K-means engine dask is not installed; install segrec[dask], or use sklearn."


def local_cluster() -> Any:
    """A cluster of this machine, with a worker process for each of its cores."""
    return importlib.import_module("distributed").LocalCluster(threads_per_worker=1, dashboard_address=None)


@contextmanager
def client_on(cluster: Callable[[], Any] = local_cluster) -> Iterator[Any]:
    """The current Dask client, if there is one; otherwise one on a new `cluster`, which ends with it."""
    kind = importlib.import_module("distributed").Client
    try:
        current = kind.current()
    except ValueError:
        with cluster() as started, kind(started) as client:
            yield client
        return
    yield current


def parts_for(client: Any, paths: Sequence[Path], settings: KMeansSettings) -> tuple[Partition, ...]:
    """The rows of all files in parts of `rows_at_once`; left out, each of the client's workers has one."""
    share = -(-partition_shape(paths)[0] // max(1, sum(client.nthreads().values())))
    return parts_of(paths, settings.rows_at_once or share)


@dataclass(frozen=True, slots=True)
class Partwise:
    """Parts, and the client whose workers read them. All centroids in here are relative to `moments.mean`."""

    client: Any
    parts: Sequence[Partition]
    moments: Moments

    @classmethod
    def over(cls, client: Any, parts: Sequence[Partition]) -> "Partwise":
        """Read all parts once, for their mean and variance."""
        return cls(client, parts, Moments.joined(client.gather(client.map(moments, parts, pure=False))))

    def ask(self, work: Callable[..., Any], *columns: Sequence[Any], **same: Any) -> list[Any]:
        """Futures of `work(part, mean, …)`: an entry of each of the `columns` a part, and the `same` for all."""
        means = [self.moments.mean] * len(self.parts)
        return self.client.map(work, self.parts, means, *columns, pure=False, **same)  # type: ignore[no-any-return]

    def told(self, work: Callable[..., Any], *columns: Sequence[Any], **same: Any) -> list[Any]:
        """As `ask`, with the answers."""
        return self.client.gather(self.ask(work, *columns, **same))  # type: ignore[no-any-return]

    def shared(self, array: NDArray[np.floating]) -> Any:
        """The array as float32, on every worker."""
        return self.client.scatter(array.astype(np.float32), broadcast=True, hash=False)

    def rows(self, places: NDArray[np.integer]) -> NDArray[np.float64]:
        """The points (n, D) at places in 0 … N - 1, which are in order."""
        ends = np.cumsum([len(part) for part in self.parts])
        owners = np.searchsorted(ends, places, side="right")
        firsts = ends - [len(part) for part in self.parts]
        wanted = [places[owners == index] - firsts[index] for index in range(len(self.parts))]
        return np.concatenate(self.told(rows_at, wanted))


def fit(
    client: Any,
    parts: Sequence[Partition],
    k: int,
    settings: KMeansSettings,
    previous: NDArray[np.float32] | None = None,
) -> Found:
    """The best of all restarts; from `previous` centroids there is one."""
    data = Partwise.over(client, parts)
    if previous is not None:
        return lloyd(data, resized(data, previous, k, settings), settings)
    runs = (lloyd(data, _start(data, k, settings, restart), settings) for restart in range(settings.restarts))
    return min(runs, key=lambda found: found.inertia)


def lloyd(data: Partwise, start: NDArray[np.float64], settings: KMeansSettings) -> Found:
    """Lloyd's iterations from centroids (K, D) relative to the mean, until they rest or are at most so many."""
    allowed = settings.tolerance * data.moments.variance
    centroids, history, shifts = start, list[float](), list[float]()
    for _ in range(settings.max_iterations):
        found = _sums(data, centroids)
        moved = found.means(centroids)
        history.append(found.inertia)
        shifts.append(float(((moved - centroids) ** 2).sum()))
        centroids = moved
        if shifts[-1] <= allowed:
            break
    inertia = history[-1] if not shifts[-1] else _sums(data, centroids, fill=False).inertia
    return Found(centroids + data.moments.mean, inertia, len(history), tuple(history), tuple(shifts))


def resized(data: Partwise, previous: NDArray[np.floating], k: int, settings: KMeansSettings) -> NDArray[np.float64]:
    """As `training.kmeans.seeding.resized`, relative to the mean; what is missing is added by k-means||."""
    centroids = previous.astype(np.float64) - data.moments.mean
    if len(centroids) > k:
        return fullest(centroids, _sums(data, centroids, fill=False).counts, k).astype(np.float64)
    return scalable_plus_plus(data, centroids, k - len(centroids), settings, 0) if len(centroids) < k else centroids


def scalable_plus_plus(
    data: Partwise, chosen: NDArray[np.float64], count: int, settings: KMeansSettings, restart: int
) -> NDArray[np.float64]:
    """k-means||: add `count` centroids to those `chosen` (C, D), which may be none; fewer where points are the same.

    Each round draws a point with probability `oversampling` × `count` × its share of the inertia. The candidates
    are weighted by the points nearest to them, and k-means++ takes the centroids from among them.
    """
    random = np.random.default_rng([settings.seed, restart])
    first = chosen if len(chosen) else data.rows(random.integers(0, data.moments.count, 1))
    candidates, nearest = first, _nearer(data, first, None, 0)
    wanted = settings.oversampling * count
    for turn in range(ROUNDS + count):
        inertia = sum(data.client.gather(data.client.map(_cost, nearest, pure=False)))
        missing = count + len(chosen) - len(candidates)
        if inertia <= 0 or (turn >= ROUNDS and missing <= 0):
            break
        share = max(wanted, missing if turn >= ROUNDS else 0) / inertia
        seeds = [[settings.seed, restart, turn, index] for index in range(len(data.parts))]
        drawn = np.concatenate(data.told(draw, nearest, seeds, share=share))
        if len(drawn):
            nearest = _nearer(data, drawn, nearest, len(candidates))
            candidates = np.concatenate([candidates, drawn])
    mass = np.sum(data.client.gather(data.client.map(weights, nearest, count=len(candidates), pure=False)), axis=0)
    own = len(chosen)
    return plus_plus(candidates[own:], mass[own:], chosen, count, random) if len(candidates) > own else chosen


def _start(data: Partwise, k: int, settings: KMeansSettings, restart: int) -> NDArray[np.float64]:
    if settings.start == "k-means++":
        return scalable_plus_plus(data, np.empty((0, len(data.moments.mean))), k, settings, restart)
    random = np.random.default_rng([settings.seed, restart])
    return data.rows(np.sort(random.choice(data.moments.count, k, replace=False)))


def _sums(data: Partwise, centroids: NDArray[np.float64], fill: bool = True) -> Sums:
    """Of all points; with `fill`, centroids without points take over the points that are farthest from theirs."""
    shared = data.shared(centroids)
    found = Sums.joined(data.told(sums, centroids=shared))
    empty = np.flatnonzero(found.counts == 0)
    if not fill or not len(empty):
        return found
    return found.filled(empty, data.told(farthest, centroids=shared, count=len(empty)))


def _nearer(data: Partwise, added: NDArray[np.float64], nearest: list[Any] | None, offset: int) -> list[Any]:
    """Futures of what is nearest to each point of each part, once centroids numbered from `offset` have joined."""
    return data.ask(nearer, nearest or [None] * len(data.parts), added=data.shared(added), offset=offset)


def _cost(near: Near) -> float:
    return float(near.squared.sum(dtype=np.float64))
