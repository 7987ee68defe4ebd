"""Where K-means begins: k-means++ over weighted points, and centroids of an earlier fit, made more or fewer."""

import math

import numpy as np
from numpy.typing import NDArray

_ROWS = 1 << 14
_SAME = 1e-12
"""Squared distances below this share of the squared lengths are rounding: the points are the same."""


def plus_plus(
    points: NDArray[np.floating],
    weights: NDArray[np.floating],
    chosen: NDArray[np.floating],
    count: int,
    random: np.random.Generator,
) -> NDArray[np.float64]:
    """Add `count` of the points (M, D), with weights (M,), to the centroids `chosen` (C, D), which may be none.

    Greedy k-means++ (Arthur and Vassilvitskii 2007): each is the best of some drawn with probability proportional to
    weight times squared distance to what is chosen already. Fewer are added where fewer distinct points are left.
    """
    centroids = list(chosen.astype(np.float64))
    if not centroids:
        centroids = [points[random.choice(len(points), p=weights / weights.sum())].astype(np.float64)]
        count -= 1
    nearest = np.concatenate(
        [_squared(points[rows], np.array(centroids)).min(axis=1) for rows in _chunks(len(points), len(centroids))]
    )
    trials = 2 + int(math.log(len(centroids) + count))
    for _ in range(count):
        mass = np.cumsum(nearest * weights)
        if mass[-1] <= 0:
            break
        drawn = np.searchsorted(mass, random.random(trials) * mass[-1], side="right")
        candidates = points[np.minimum(drawn, len(points) - 1)].astype(np.float64)
        left = _nearer(points, candidates, nearest)
        best = int((weights @ left).argmin())
        centroids.append(candidates[best])
        nearest = left[:, best]
    return np.array(centroids)


def resized(points: NDArray[np.float32], previous: NDArray[np.floating], k: int, seed: int) -> NDArray[np.float32]:
    """`k` centroids to begin with from those of an earlier fit, (P, D).

    Where there are too few, others are added by k-means++; where there are too many, those nearest to the fewest
    points (N, D) are left out.
    """
    if len(previous) > k:
        counts = np.zeros(len(previous), np.int64)
        for rows in _chunks(len(points), len(previous)):
            counts += np.bincount(_squared(points[rows], previous).argmin(axis=1), minlength=len(previous))
        return fullest(previous, counts, k).astype(np.float32)
    missing = k - len(previous)
    if not missing:
        return previous.astype(np.float32)
    weights = np.ones(len(points))
    return plus_plus(points, weights, previous, missing, np.random.default_rng(seed)).astype(np.float32)


def fullest(centroids: NDArray[np.floating], counts: NDArray[np.integer], k: int) -> NDArray[np.floating]:
    """The `k` centroids with the most points, in their order; of equals the first."""
    return centroids[np.sort(np.argsort(-counts, kind="stable")[:k])]


def _nearer(
    points: NDArray[np.floating], candidates: NDArray[np.float64], nearest: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Squared distances (M, c) to what is nearest when one of the candidates (c, D) joins."""
    return np.concatenate(
        [
            np.minimum(_squared(points[rows], candidates), nearest[rows, None])
            for rows in _chunks(len(points), len(candidates))
        ]
    )


def _squared(points: NDArray[np.floating], centroids: NDArray[np.floating]) -> NDArray[np.float64]:
    """Squared Euclidean distances (M, K)."""
    wide, centers = points.astype(np.float64), centroids.astype(np.float64)
    lengths = (wide**2).sum(axis=1)[:, None] + (centers**2).sum(axis=1)
    squared: NDArray[np.float64] = lengths - 2.0 * wide @ centers.T
    squared[squared < _SAME * lengths] = 0.0
    return squared


def _chunks(points: int, centroids: int) -> list[slice]:
    """Rows that are handled at a time, so that their distances take little memory."""
    step = max(1, _ROWS * 64 // max(centroids, 64))
    return [slice(start, start + step) for start in range(0, points, step)]
