"""Which part of a user embedding is for what, and which segment it belongs to."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Nearest:
    """The nearest and second nearest centroid of B embeddings.

    `first` and `second` are centroid indexes (B,), from 0; distances are Euclidean, float64 (B,), 0 to 2. With one
    centroid only, `second` equals `first`.
    """

    first: NDArray[np.intp]
    first_distance: NDArray[np.float64]
    second: NDArray[np.intp]
    second_distance: NDArray[np.float64]


def margin(place: Nearest) -> NDArray[np.float64]:
    """How clearly the nearest centroid is the nearest, (B,), 0 to 1: the difference of both distances over their sum.

    0 for a point halfway between two centroids, 1 on a centroid, and where there is one centroid only.
    """
    total = place.first_distance + place.second_distance
    difference = place.second_distance - place.first_distance
    found: NDArray[np.float64] = np.divide(difference, total, out=np.zeros_like(total), where=total > 0)
    return np.where(place.first == place.second, 1.0, found)


def next_item_part(embeddings: NDArray[np.float32], item_dim: int) -> NDArray[np.float32]:
    """The first numbers of user embeddings, (B, `item_dim`), as many as item embeddings have: these rank items."""
    return embeddings[:, :item_dim]


def segment_part(embeddings: NDArray[np.float32], item_dim: int) -> NDArray[np.float32]:
    """The numbers of user embeddings that place users among segments: those after the first `item_dim`, or all."""
    return embeddings[:, item_dim:] if embeddings.shape[1] > item_dim else embeddings


def normalised(embeddings: NDArray[np.floating]) -> NDArray[np.float64]:
    """Scale embeddings (B, D) to length 1; a zero vector stays zero."""
    wide = embeddings.astype(np.float64)
    lengths = np.linalg.norm(wide, axis=1, keepdims=True)
    scaled: NDArray[np.float64] = np.divide(wide, lengths, out=np.zeros_like(wide), where=lengths > 0)
    return scaled


def nearest(embeddings: NDArray[np.float32], centroids: NDArray[np.float32]) -> Nearest:
    """Find the centroids (K, D) nearest to the normalised embeddings (B, D).

    Computed in float64, since the difference of near squares loses half of its digits.
    """
    points = normalised(embeddings)
    centers = centroids.astype(np.float64)
    squared = (points**2).sum(1)[:, None] - 2.0 * points @ centers.T + (centers**2).sum(1)
    distances = np.sqrt(np.maximum(squared, 0.0))
    rows = np.arange(len(points))
    first = distances.argmin(axis=1)
    first_distance = distances[rows, first]
    if len(centers) > 1:
        distances[rows, first] = np.inf
    second = distances.argmin(axis=1)
    return Nearest(first, first_distance, second, distances[rows, second])
