"""From user embeddings to clusters: how many there may be, the fit, and none of them too small."""

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
    """Clusters of all users: the fit, where each user is placed (U), and the `members` by row (U).

    `merged_count` is how many clusters were too small and are no more.
    """

    engine: Engine
    fit: KMeansResult
    placed: Nearest
    members: Members
    merged_count: int = 0


def bounded(k: int, user_count: int, min_segment_size: int) -> tuple[int, list[str]]:
    """How many segments so many users can have, and why it is fewer than `k`."""
    if not user_count:
        raise LogError("No user of the log has an event; there is nobody to make segments of.")
    most = max(1, user_count // min_segment_size)
    if k <= most:
        return k, []
    made = "1 segment" if most == 1 else f"{most} segments"
    return most, [f"{made} instead of {k}: there are {user_count} users, and a segment needs {min_segment_size}."]


def cluster(
    embeddings: NDArray[np.float32],
    k: int,
    engine: Engine,
    settings: KMeansSettings,
    min_segment_size: int = 1,
    previous: NDArray[np.float32] | None = None,
) -> Segments:
    """K-means on the segment parts of user embeddings, (U, E), of length 1; users are placed as the server does it.

    With `previous` (P, E) the fit starts from these centroids. Clusters of fewer than
    `min_segment_size` users are merged.
    """
    points = normalised(embeddings)
    fit = fit_kmeans(points, k, engine=engine, settings=settings, previous=previous)
    placed = assign(embeddings, fit.centroids)
    kept = large_enough(embeddings, placed.first, fit.centroids, min_segment_size)
    merged_count = len(fit.centroids) - len(kept)
    if merged_count:
        placed = assign(embeddings, fit.centroids[kept])
        inertia = float((placed.first_distance**2).sum())
        fit = replace(fit, centroids=fit.centroids[kept], labels=placed.first, inertia=inertia)
    return Segments(engine, fit, placed, Members(placed.first, placed.first_distance, points), merged_count)


def merging_notes(segments: Segments, wanted: int, min_segment_size: int) -> list[str]:
    """Why there are fewer than the `wanted` segments, in sentences."""
    count, merged = len(segments.fit.centroids), segments.merged_count
    distinct = count + merged
    notes = [f"Users fall into {distinct} distinct groups only; no more segments made."] if distinct < wanted else []
    if merged:
        had = "1 segment had" if merged == 1 else f"{merged} segments had"
        left = "1 segment is" if count == 1 else f"{count} segments are"
        notes.append(f"{had} fewer than {min_segment_size} users and went into the nearest; {left} left.")
    return notes


def large_enough(
    embeddings: NDArray[np.float32], clusters: NDArray[np.intp], centroids: NDArray[np.float32], min_size: int
) -> NDArray[np.intp]:
    """Which centroids to keep so that each has `min_size` users, or the only one left; ascending.

    The smallest cluster goes first, and its users (rows of `embeddings`) to the nearest of those that are left, which
    can make these large enough. Nobody else moves.
    """
    clusters = clusters.copy()
    kept = np.arange(len(centroids))
    while len(kept) > 1:
        sizes = np.bincount(clusters, minlength=len(centroids))[kept]
        if sizes.min() >= min_size:
            break
        smallest = kept[sizes.argmin()]
        kept = kept[kept != smallest]
        homeless = clusters == smallest
        clusters[homeless] = kept[nearest(embeddings[homeless], centroids[kept]).first]
    return kept
