"""From user embeddings to clusters: the limit on k, the K-means fit, and the merging of clusters that are too small."""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from server.core.segments import Nearest, nearest, normalised
from training.errors import LogError
from training.kmeans.engines import Engine
from training.kmeans.fit import KMeansResult, assign, fit_kmeans
from training.kmeans.settings import KMeansSettings
from training.profiles.profiles import Members


@dataclass(frozen=True, slots=True)
class Segments:
    """Clusters of all users: the fit, the nearest centroids of each user (U), and the `members` by row (U).

    `merged_count` is the number of clusters that were too small and were merged into others.
    """

    engine: Engine
    fit: KMeansResult
    placed: Nearest
    members: Members
    merged_count: int = 0


def require_users(user_count: int) -> None:
    """Raises LogError for a log without users."""
    if not user_count:
        raise LogError("No user of the log has an event, so there are no users to segment. Check the log's filters.")


def limit_k(k: int, user_count: int, min_segment_size: int) -> tuple[int, list[str]]:
    """`k`, or the largest number of segments that `user_count` users allow, with a note that explains the reduction."""
    k_max = max(1, user_count // min_segment_size)
    if k <= k_max:
        return k, []
    segments = "1 segment" if k_max == 1 else f"{k_max} segments"
    return k_max, [f"{segments} instead of {k}: there are {user_count} users, and a segment needs {min_segment_size}."]


def cluster(
    embeddings: NDArray[np.float32],
    k: int,
    engine: Engine,
    settings: KMeansSettings,
    min_segment_size: int = 1,
    previous: NDArray[np.float32] | None = None,
) -> Segments:
    """K-means on the segment parts (U, E) of user embeddings, scaled to length 1.

    Users are assigned by the server's own function. With `previous` (P, E) the fit starts from these centroids.
    Clusters with fewer than `min_segment_size` users are merged.
    """
    points = normalised(embeddings)
    fit = fit_kmeans(points, k, engine=engine, settings=settings, previous=previous)
    placed = assign(embeddings, fit.centroids)
    kept = large_clusters(embeddings, placed.first, fit.centroids, min_segment_size)
    merged_count = len(fit.centroids) - len(kept)
    if merged_count:
        placed = assign(embeddings, fit.centroids[kept])
        inertia = float((placed.first_distance**2).sum())
        fit = replace(fit, centroids=fit.centroids[kept], labels=placed.first, inertia=inertia)
    return Segments(engine, fit, placed, Members(placed.first, placed.first_distance, points), merged_count)


def merging_notes(segments: Segments, requested_k: int, min_segment_size: int) -> list[str]:
    """Sentences that explain why there are fewer than `requested_k` segments."""
    count, merged = len(segments.fit.centroids), segments.merged_count
    distinct = count + merged
    notes = []
    if distinct < requested_k:
        notes.append(f"Users form only {distinct} distinct groups, so there are no more segments.")
    if merged:
        small = "1 segment had" if merged == 1 else f"{merged} segments had"
        remaining = "1 segment remains" if count == 1 else f"{count} segments remain"
        notes.append(f"{small} fewer than {min_segment_size} users and merged into the nearest; {remaining}.")
    return notes


def large_clusters(
    embeddings: NDArray[np.float32], clusters: NDArray[np.intp], centroids: NDArray[np.float32], min_size: int
) -> NDArray[np.intp]:
    """Indexes of the centroids to keep, ascending: each has at least `min_size` users, or only one is left.

    The smallest cluster is removed first. Its users (rows of `embeddings`) move to the nearest remaining centroid,
    which can make a small cluster large enough. No other user moves.
    """
    clusters = clusters.copy()
    kept = np.arange(len(centroids))
    while len(kept) > 1:
        sizes = np.bincount(clusters, minlength=len(centroids))[kept]
        if sizes.min() >= min_size:
            break
        smallest = kept[sizes.argmin()]
        kept = kept[kept != smallest]
        moving = clusters == smallest
        clusters[moving] = kept[nearest(embeddings[moving], centroids[kept]).first]
    return kept
