"""Stable segment ids: decides which new cluster continues which segment of the previous release."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

MIN_JACCARD = 0.1
"""Least Jaccard similarity (users in both / users in either) of a segment and the cluster that continues it."""


@dataclass(frozen=True, slots=True)
class Matching:
    """`segment_ids` by cluster (K,), the new ids among them (`born`), and the old ids without a cluster (`retired`)."""

    segment_ids: tuple[int, ...]
    born: tuple[int, ...]
    retired: tuple[int, ...]


def fresh_ids(cluster_count: int, next_id: int = 1) -> Matching:
    """New ids for all clusters, if there is no previous release."""
    ids = tuple(range(next_id, next_id + cluster_count))
    return Matching(ids, ids, ())


def match_segments(
    previous_ids: NDArray[np.integer],
    clusters: NDArray[np.integer],
    cluster_count: int,
    known_ids: Sequence[int],
    next_id: int,
) -> Matching:
    """Give each cluster the id of the segment that it continues, or an id that was never used.

    `previous_ids` and `clusters` (N,) are the segment id and the new cluster (from 0) of users known to both releases;
    `known_ids` are all segments of the previous release. The assignment maximises the total Jaccard similarity, so that
    large segments get no preference. New ids count up from `next_id`.
    """
    old_ids = np.array(sorted(known_ids), np.int64)
    overlap = np.zeros((len(old_ids), cluster_count))
    np.add.at(overlap, (np.searchsorted(old_ids, previous_ids), clusters), 1.0)
    # Jaccard similarity of each old segment and new cluster: users in both / users in either, (P, K).
    either = overlap.sum(1, keepdims=True) + overlap.sum(0, keepdims=True) - overlap
    similarity = np.divide(overlap, either, out=np.zeros_like(overlap), where=either > 0)
    heirs = {
        int(cluster): int(old_ids[row])
        for row, cluster in zip(*linear_sum_assignment(similarity, maximize=True), strict=True)
        if similarity[row, cluster] >= MIN_JACCARD
    }
    new_clusters = [cluster for cluster in range(cluster_count) if cluster not in heirs]
    born = {cluster: next_id + place for place, cluster in enumerate(new_clusters)}
    ids = heirs | born
    return Matching(
        tuple(ids[cluster] for cluster in range(cluster_count)),
        tuple(born.values()),
        tuple(sorted(set(old_ids.tolist()) - set(heirs.values()))),
    )
