"""What a worker computes of one part of the points, for `training.kmeans.dask_engine`; and how the answers join.

Points are taken relative to the mean of all, so that float32 is enough; sums are float64. Blocks of rows keep memory
small, whatever the size of the part.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from training.kmeans.partitions import Partition

_BLOCK_NUMBERS = 1 << 19
_ROWS = 8192
_SAME = 8 * float(np.finfo(np.float32).eps)
"""Squared distances below this share of the squared lengths are rounding of float32: the points are the same."""


@dataclass(frozen=True, slots=True)
class Moments:
    """How many points there are, their mean (D,), and the mean of the variances of the dimensions."""

    count: int
    mean: NDArray[np.float64]
    variance: float

    @staticmethod
    def joined(parts: Sequence[tuple[int, NDArray[np.float64], NDArray[np.float64]]]) -> "Moments":
        """From the count, sum and sum of squares of each part."""
        count = sum(part[0] for part in parts)
        mean = np.sum([part[1] for part in parts], axis=0) / count
        squares = np.sum([part[2] for part in parts], axis=0) / count
        return Moments(count, mean, float(np.maximum(squares - mean**2, 0).mean()))


@dataclass(frozen=True, slots=True)
class Sums:
    """Points by their nearest centroid: their sums (K, D) and counts (K,), and the squared distances summed."""

    totals: NDArray[np.float64]
    counts: NDArray[np.int64]
    inertia: float

    @staticmethod
    def joined(parts: Sequence["Sums"]) -> "Sums":
        """Of all parts, added in their order, so that the same parts give the same bits."""
        return Sums(
            np.sum([part.totals for part in parts], axis=0),
            np.sum([part.counts for part in parts], axis=0),
            float(sum(part.inertia for part in parts)),
        )

    def means(self, centroids: NDArray[np.float64]) -> NDArray[np.float64]:
        """The mean of each centroid's points (K, D); a centroid without any stays."""
        counts = self.counts[:, None]
        return np.divide(self.totals, counts, out=centroids.copy(), where=counts > 0)

    def filled(self, empty: NDArray[np.intp], far: Sequence["Far"]) -> "Sums":
        """Each `empty` centroid has one of the farthest points for its own, as scikit-learn does it."""
        everyone = Far.joined(far)
        order = np.argsort(-everyone.squared, kind="stable")[: len(empty)]
        totals, counts = self.totals.copy(), self.counts.copy()
        for target, place in zip(empty, order[everyone.squared[order] > 0], strict=False):
            owner, point = everyone.owners[place], everyone.points[place]
            totals[owner] -= point
            counts[owner] -= 1
            totals[target], counts[target] = point, 1
        return Sums(totals, counts, self.inertia)


@dataclass(frozen=True, slots=True)
class Far:
    """The points (n, D) farthest from their nearest centroid, its index (n,), and their squared distance (n,)."""

    points: NDArray[np.float64]
    owners: NDArray[np.intp]
    squared: NDArray[np.float64]

    @staticmethod
    def joined(parts: Sequence["Far"]) -> "Far":
        """Of all parts, in their order."""
        return Far(
            np.concatenate([part.points for part in parts]),
            np.concatenate([part.owners for part in parts]),
            np.concatenate([part.squared for part in parts]),
        )


@dataclass(frozen=True, slots=True)
class Near:
    """Of each point of a part the index of the nearest candidate, int32 (n,), and its squared distance (n,)."""

    owners: NDArray[np.int32]
    squared: NDArray[np.float32]


def moments(part: Partition) -> tuple[int, NDArray[np.float64], NDArray[np.float64]]:
    """Count, sum (D,) and sum of squares (D,)."""
    points = part.read()
    total, squares = np.zeros((2, points.shape[1]))
    for start in range(0, len(points), _ROWS):
        block = points[start : start + _ROWS].astype(np.float64)
        total += block.sum(axis=0)
        squares += (block**2).sum(axis=0)
    return len(points), total, squares


def sums(part: Partition, mean: NDArray[np.float64], centroids: NDArray[np.float32]) -> Sums:
    """One step of Lloyd's algorithm for centroids (K, D)."""
    totals, counts, inertia = np.zeros(centroids.shape), np.zeros(len(centroids), np.int64), 0.0
    for block in _blocks(part, mean, len(centroids)):
        owners, squared = _nearest(block, centroids)
        ones, ends = np.ones(len(block), np.float32), np.arange(len(block) + 1)
        totals += csr_array((ones, owners, ends), shape=(len(block), len(centroids))).T @ block
        counts += np.bincount(owners, minlength=len(centroids))
        inertia += float(squared.sum(dtype=np.float64))
    return Sums(totals, counts, inertia)


def farthest(part: Partition, mean: NDArray[np.float64], centroids: NDArray[np.float32], count: int) -> Far:
    """At most `count` points of the part that are farthest from their centroid, farthest first."""
    near = nearer(part, mean, None, centroids, 0)
    order = np.argsort(-near.squared, kind="stable")[:count]
    return Far(rows_at(part, mean, order), near.owners[order].astype(np.intp), near.squared[order].astype(np.float64))


def nearer(
    part: Partition, mean: NDArray[np.float64], known: Near | None, added: NDArray[np.float32], offset: int
) -> Near:
    """What is nearest to each point once candidates (C, D), numbered from `offset`, have joined those known."""
    found = [_nearest(block, added) for block in _blocks(part, mean, len(added))]
    owners = np.concatenate([owners for owners, _ in found]).astype(np.int32) + np.int32(offset)
    squared = np.concatenate([squared for _, squared in found])
    if known is None:
        return Near(owners, squared)
    closer = squared < known.squared
    return Near(np.where(closer, owners, known.owners), np.where(closer, squared, known.squared))


def draw(
    part: Partition, mean: NDArray[np.float64], near: Near, seed: Sequence[int], share: float
) -> NDArray[np.float64]:
    """The points drawn (n, D), each with probability `share` × its squared distance, independently."""
    chances = np.random.default_rng(seed).random(len(near.squared))
    return rows_at(part, mean, np.flatnonzero(chances < share * near.squared))


def weights(near: Near, count: int) -> NDArray[np.float64]:
    """How many points of the part are nearest to each of `count` candidates."""
    return np.bincount(near.owners, minlength=count).astype(np.float64)


def rows_at(part: Partition, mean: NDArray[np.float64], rows: NDArray[np.integer]) -> NDArray[np.float64]:
    """Points (n, D) of a part."""
    points: NDArray[np.float64] = part.read()[rows].astype(np.float64) - mean
    return points


def _blocks(part: Partition, mean: NDArray[np.float64], centroids: int) -> Iterator[NDArray[np.float32]]:
    points, narrow = part.read(), mean.astype(np.float32)
    step = max(1, min(_ROWS, _BLOCK_NUMBERS // centroids))
    for start in range(0, len(points), step):
        yield points[start : start + step] - narrow


def _nearest(
    block: NDArray[np.float32], centroids: NDArray[np.float32]
) -> tuple[NDArray[np.intp], NDArray[np.float32]]:
    """Index of the nearest centroid (b,) and its squared distance (b,), not below 0."""
    lengths = np.einsum("kd,kd->k", centroids, centroids)
    scores = block @ centroids.T
    scores -= lengths / 2
    owners = scores.argmax(axis=1)
    own = np.einsum("bd,bd->b", block, block)
    squared = own - 2 * scores[np.arange(len(block)), owners]
    squared[squared < _SAME * (own + lengths[owners])] = 0
    return owners, squared
