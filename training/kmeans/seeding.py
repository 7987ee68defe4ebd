"""First centroids from an earlier fit, with some left out, or others added by k-means++."""

import math

import numpy as np
from numpy.typing import NDArray

_ROWS = 1 << 14
_SAME = 1e-12
"""Squared distances below this share of the squared lengths are rounding errors: they count as 0."""


def resized(points: NDArray[np.float32], previous: NDArray[np.float32], k: int, seed: int) -> NDArray[np.float32]:
    """`k` first centroids from those of an earlier fit, (P, D); fewer if fewer points (N, D) are distinct.

    If P is too small, k-means++ adds centroids. If P is too large, the centroids with the fewest points are left out.
    """
    if len(previous) <= k:
        return _added(points, previous, k - len(previous), np.random.default_rng(seed)).astype(np.float32)
    counts = np.zeros(len(previous), np.int64)
    for rows in _chunks(len(points), len(previous)):
        counts += np.bincount(_squared(points[rows], previous).argmin(axis=1), minlength=len(previous))
    return previous[np.sort(np.argsort(-counts, kind="stable")[:k])]


def _added(
    points: NDArray[np.float32], chosen: NDArray[np.float32], count: int, random: np.random.Generator
) -> NDArray[np.float64]:
    """The centroids `chosen` (C, D), then `count` of the points (N, D); fewer if fewer distinct points remain.

    Greedy k-means++ (Arthur and Vassilvitskii 2007): candidates are drawn with probability proportional to the squared
    distance to the centroids so far, and the candidate that lowers the sum of distances most is added.
    """
    centroids = list(chosen.astype(np.float64))
    nearest = _nearer(points, chosen, np.full(len(points), np.inf)).min(axis=1) if count else np.empty(0)
    trials = 2 + int(math.log(len(centroids) + count))
    for _ in range(count):
        mass = np.cumsum(nearest)
        if mass[-1] <= 0:
            break
        # A uniform draw in [0, mass[-1]) falls on a point with probability proportional to its squared distance.
        drawn = np.searchsorted(mass, random.random(trials) * mass[-1], side="right")
        candidates = points[np.minimum(drawn, len(points) - 1)].astype(np.float64)
        distances = _nearer(points, candidates, nearest)
        best = int(distances.sum(axis=0).argmin())
        centroids.append(candidates[best])
        nearest = distances[:, best]
    return np.array(centroids)


def _nearer(
    points: NDArray[np.floating], candidates: NDArray[np.floating], nearest: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Squared distances to the nearest centroid (N, c), if candidate j of (c, D) became a centroid, in column j."""
    return np.concatenate(
        [
            np.minimum(_squared(points[rows], candidates), nearest[rows, None])
            for rows in _chunks(len(points), len(candidates))
        ]
    )


def _squared(points: NDArray[np.floating], centroids: NDArray[np.floating]) -> NDArray[np.float64]:
    """Squared Euclidean distances (N, K)."""
    wide, centers = points.astype(np.float64), centroids.astype(np.float64)
    # |p - c|² = |p|² + |c|² - 2 p·c, which needs no (N, K, D) array.
    lengths = (wide**2).sum(axis=1)[:, None] + (centers**2).sum(axis=1)
    squared: NDArray[np.float64] = lengths - 2.0 * wide @ centers.T
    squared[squared < _SAME * lengths] = 0.0
    return squared


def _chunks(points: int, centroids: int) -> list[slice]:
    """Slices of the points, small enough that the distances of each slice take little memory."""
    step = max(1, _ROWS * 64 // max(centroids, 64))
    return [slice(start, start + step) for start in range(0, points, step)]
