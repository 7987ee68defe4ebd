"""Stable segment ids: which new cluster is the heir of which segment of the release before."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

SMALLEST_LIKENESS = 0.1
"""An heir shares at least this part of its users: those in both, of those in either (Jaccard)."""


@dataclass(frozen=True, slots=True)
class Matching:
    """`segment_ids` by cluster (K,), those of them that are `born` now, and the old ids that have `retired`."""

    segment_ids: tuple[int, ...]
    born: tuple[int, ...]
    retired: tuple[int, ...]


def fresh_ids(cluster_count: int, next_id: int = 1) -> Matching:
    """Ids for clusters that have nothing to be matched with."""
    ids = tuple(range(next_id, next_id + cluster_count))
    return Matching(ids, ids, ())


def match_segments(
    previous_ids: NDArray[np.integer],
    clusters: NDArray[np.integer],
    cluster_count: int,
    known_ids: Sequence[int],
    next_id: int,
) -> Matching:
    """Give each cluster the id of the segment that it continues, or an id never used before.

    `previous_ids` and `clusters` (N,) are the segment id and the new cluster (from 0) of users known to both sides;
    `known_ids` are all segments of the release before. The assignment of ids to clusters maximises the likeness of
    their users in total, so that sizes do not decide. New ids count up from `next_id`.
    """
    old_ids = np.array(sorted(known_ids), np.int64)
    overlap = np.zeros((len(old_ids), cluster_count))
    np.add.at(overlap, (np.searchsorted(old_ids, previous_ids), clusters), 1.0)
    # Users in both, of users in either, for each old segment and new cluster: (P, K).
    either = overlap.sum(1, keepdims=True) + overlap.sum(0, keepdims=True) - overlap
    likeness = np.divide(overlap, either, out=np.zeros_like(overlap), where=either > 0)
    heirs = {
        int(cluster): int(old_ids[row])
        for row, cluster in zip(*linear_sum_assignment(likeness, maximize=True), strict=True)
        if likeness[row, cluster] >= SMALLEST_LIKENESS
    }
    newcomers = [cluster for cluster in range(cluster_count) if cluster not in heirs]
    born = {cluster: next_id + place for place, cluster in enumerate(newcomers)}
    ids = heirs | born
    return Matching(
        tuple(ids[cluster] for cluster in range(cluster_count)),
        tuple(born.values()),
        tuple(sorted(set(old_ids.tolist()) - set(heirs.values()))),
    )
