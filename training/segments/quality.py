"""How good segments are that K-means makes of some vectors: do they come out the same again, do they foretell items."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations, product

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import adjusted_rand_score

from training.data.sequences import EventLog, HeldOut, seen_pairs
from training.kmeans.fit import KMeansResult, assign, fit_kmeans
from training.kmeans.settings import KMeansSettings
from training.metrics import hit_rate

SEEDS = 3
NEIGHBOURS = 10

_USERS_AT_ONCE = 256


@dataclass(frozen=True, slots=True)
class SegmentQuality:
    """Segments of one kind of vector; each figure but the sizes is a mean over `SEEDS` seeds of K-means.

    K-means starts as often as it does for a release by default: with fewer starts halves agree less. Agreements are
    adjusted Rand indexes (Hubert and Arabie 1985): 1 equal, 0 as by chance. `halves` compares segments made anew of two
    random halves of each user's events, those of each seed of one with those of each of the other; `halves_placed` puts
    both halves into the segments of the whole, as a server would; `seeds` compares fits of the whole. `smallest` and
    `largest` are shares of users. `hr` is HR@10 of each segment's most frequent items on test targets, NaN where nobody
    has one.
    """

    k: int
    halves: float
    halves_placed: float
    seeds: float
    smallest: float
    largest: float
    hr: float


@dataclass(frozen=True, slots=True)
class VectorViews:
    """The same U users by one kind of vector, all of length 1 or zero: `whole` and two `halves`, (U, D).

    `past` (T, D) is of the users with a test target, before it. `both` (U,) says who has events in both halves.
    """

    whole: NDArray[np.float64]
    halves: tuple[NDArray[np.float64], NDArray[np.float64]]
    both: NDArray[np.bool_]
    past: NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Targets:
    """Targets: `held` of `log`, whose items before the target are `counts` (T, V)."""

    log: EventLog
    held: HeldOut
    past_item: NDArray[np.intp]
    past_user: NDArray[np.intp]
    item_count: int


def segment_quality(views: VectorViews, asked: Targets, k: int) -> SegmentQuality:
    """Make `k` segments, fewer where users are few, and judge them."""
    halves = [half[views.both] for half in views.halves]
    k = min(k, len(halves[0]))
    whole = [_fit(views.whole, k, seed) for seed in range(SEEDS)]
    again = product(*([_fit(half, k, seed).labels for seed in range(SEEDS)] for half in halves))
    placed = [adjusted_rand_score(*(_placed(half, fit) for half in halves)) for fit in whole]
    sizes = [np.bincount(fit.labels, minlength=k) / len(fit.labels) for fit in whole]
    hits = []
    if len(asked.held.rows):
        pasts = [_fit(views.past, min(k, len(views.past)), seed) for seed in range(SEEDS)]
        hits = [hr_of(asked, fit.labels) for fit in pasts]
    return SegmentQuality(
        k=k,
        halves=float(np.mean([adjusted_rand_score(*pair) for pair in again])),
        halves_placed=float(np.mean(placed)),
        seeds=mean_agreement([fit.labels for fit in whole]),
        smallest=float(np.mean([size.min() for size in sizes])),
        largest=float(np.mean([size.max() for size in sizes])),
        hr=float(np.mean(hits)) if hits else float("nan"),
    )


def hr_of(asked: Targets, clusters: NDArray[np.integer]) -> float:
    """HR@10 of ranking for each user what its cluster's users had most often, without what it had itself.

    `clusters` (T,) are those of the asked users; all zeros give global popularity. Ties go to the more frequent item.
    """
    return hit_rate(ranks_of(asked, clusters), NEIGHBOURS)


def ranks_of(asked: Targets, clusters: NDArray[np.integer], leave_out_seen: bool = True) -> NDArray[np.int64]:
    """Rank of each target, from 0, among the items by how often its cluster's users had them, (T,).

    As `target_ranks` would say, without a score for each user and item: an item's place is the same for all users of
    a cluster, but for the items before it that the user has seen.
    """
    user, seen = seen_pairs(asked.log, asked.held) if leave_out_seen else (np.empty(0, np.intp),) * 2
    targets = asked.held.targets.astype(np.intp) - 1
    ranks = np.zeros(len(targets), np.int64)
    place = np.empty(asked.item_count, np.int64)
    for cluster in np.unique(clusters):
        # The place of each item by count in this cluster (V,), less the places of items that the user has seen.
        mine = clusters == cluster
        counts = np.bincount(asked.past_item[mine[asked.past_user]], minlength=asked.item_count)
        place[np.argsort(-counts, kind="stable")] = np.arange(asked.item_count)
        ranks[mine] = place[targets[mine]]
        its = mine[user]
        earlier = place[seen[its]] < ranks[user[its]]
        ranks -= np.bincount(user[its][earlier], minlength=len(ranks))
    return ranks


def targets_of(log: EventLog, held: HeldOut, positive: NDArray[np.bool_], item_count: int) -> Targets:
    """What is asked of the users of `held`, and what counts of their pasts: `positive` actions, by action index."""
    past = log.histories(held.rows, held.ends)
    counted = positive[past.action_index]
    return Targets(log, held, past.item_index[counted].astype(np.intp) - 1, past.rows[counted], item_count)


def mean_agreement(labellings: Sequence[NDArray[np.integer]]) -> float:
    """Mean adjusted Rand index over all pairs of labellings (U,)."""
    return float(np.mean([adjusted_rand_score(one, other) for one, other in combinations(labellings, 2)]))


def segments_agree(one: NDArray[np.float64], other: NDArray[np.float64], k: int) -> float:
    """Mean adjusted Rand index between segments of the same users by two kinds of vectors, (U, D) each."""
    return float(
        np.mean([adjusted_rand_score(_fit(one, k, seed).labels, _fit(other, k, seed).labels) for seed in range(SEEDS)])
    )


def neighbour_overlap(one: NDArray[np.float64], other: NDArray[np.float64], sample: int, seed: int) -> float:
    """Share of the `NEIGHBOURS` users nearest by cosine that two kinds of vectors (U, D) agree on, in [0, 1].

    A mean over at most `sample` users; vectors have length 1. Two random orders agree on `NEIGHBOURS` / (U - 1).
    """
    rows = np.random.default_rng(seed).permutation(len(one))[:sample]
    count = min(NEIGHBOURS, len(one) - 1)
    shared = 0
    for start in range(0, len(rows), _USERS_AT_ONCE):
        asked = rows[start : start + _USERS_AT_ONCE]
        near = [_nearest_users(vectors, asked, count) for vectors in (one, other)]
        shared += sum(len(np.intersect1d(*pair)) for pair in zip(*near, strict=True))
    return shared / (len(rows) * count)


def _nearest_users(vectors: NDArray[np.float64], rows: NDArray[np.intp], count: int) -> NDArray[np.intp]:
    """The users nearest to those at `rows` (b,), without themselves, (b, count), in no order."""
    likeness = vectors[rows] @ vectors.T
    likeness[np.arange(len(rows)), rows] = -np.inf
    return np.argpartition(-likeness, count - 1, axis=1)[:, :count]


def _fit(vectors: NDArray[np.float64], k: int, seed: int) -> KMeansResult:
    return fit_kmeans(vectors, k, settings=KMeansSettings(seed=seed))


def _placed(vectors: NDArray[np.float64], fit: KMeansResult) -> NDArray[np.intp]:
    return assign(vectors.astype(np.float32), fit.centroids).first
