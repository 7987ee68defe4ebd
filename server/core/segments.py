"""The two parts of a user embedding, and the nearest centroids of its segment part."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Nearest:
    """The nearest and second nearest centroid of B embeddings.

    `first` and `second` are centroid indexes (B,), from 0. The distances are Euclidean, float64 (B,), 0 to 2. With one
    centroid only, `second` equals `first`.
    """

    first: NDArray[np.intp]
    first_distance: NDArray[np.float64]
    second: NDArray[np.intp]
    second_distance: NDArray[np.float64]


def margin(place: Nearest) -> NDArray[np.float64]:
    """Difference of the distances to the two nearest centroids, divided by their sum, (B,), 0 to 1.

    Larger is clearer: 0 halfway between two centroids, 1 on a centroid and for one centroid only.
    """
    total = place.first_distance + place.second_distance
    difference = place.second_distance - place.first_distance
    margins: NDArray[np.float64] = np.divide(difference, total, out=np.zeros_like(total), where=total > 0)
    return np.where(place.first == place.second, 1.0, margins)


def next_item_part(embeddings: NDArray[np.float32], item_dim: int) -> NDArray[np.float32]:
    """The part of user embeddings (B, D) that ranks items: the first `item_dim` numbers, (B, `item_dim`)."""
    return embeddings[:, :item_dim]


def segment_part(embeddings: NDArray[np.float32], item_dim: int) -> NDArray[np.float32]:
    """The part of user embeddings (B, D) for segments: all numbers after the first `item_dim`; if none, all."""
    return embeddings[:, item_dim:] if embeddings.shape[1] > item_dim else embeddings


def normalised(embeddings: NDArray[np.floating]) -> NDArray[np.float64]:
    """Scale embeddings (B, D) to length 1; a zero vector stays zero."""
    wide = embeddings.astype(np.float64)
    lengths = np.linalg.norm(wide, axis=1, keepdims=True)
    scaled: NDArray[np.float64] = np.divide(wide, lengths, out=np.zeros_like(wide), where=lengths > 0)
    return scaled


def nearest(embeddings: NDArray[np.float32], centroids: NDArray[np.float32]) -> Nearest:
    """Find the centroids (K, D) nearest to the normalised embeddings (B, D).

    Computes in float64, because the difference of nearly equal squares loses half of its digits.
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
