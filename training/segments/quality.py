"""The quality of K-means segments of one kind of user vector: are the segments stable, and do they predict items."""

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
    """The quality of `k` segments of one kind of vector; each figure is a mean over `SEEDS` seeds of K-means.

    K-means has the default number of restarts, as for a release. Agreements are adjusted Rand indexes (Hubert and
    Arabie 1985): 1 means identical segments, 0 agreement by chance.
    - `halves`: K-means is fitted to each of two random halves of all users' events; each seed of one half is compared
      with each seed of the other.
    - `halves_placed`: the vectors of both halves are assigned to the centroids of the whole histories.
    - `seeds`: fits of the whole histories are compared with each other.
    - `smallest`, `largest`: shares of users.
    - `hr`: HR@10 of each segment's most frequent items on test targets; NaN without targets.
    """

    k: int
    halves: float
    halves_placed: float
    seeds: float
    smallest: float
    largest: float
    hr: float


@dataclass(frozen=True, slots=True)
class ProbeVectors:
    """One kind of vector of the same U users: of the `whole` histories and of two `halves`, (U, D) each.

    Vectors have length 1, or 0 for an empty history. `in_both_halves` (U,) marks users with events in both halves.
    `before_target` (T, D) are the vectors of the users with a test target, of the events before it.
    """

    whole: NDArray[np.float64]
    halves: tuple[NDArray[np.float64], NDArray[np.float64]]
    in_both_halves: NDArray[np.bool_]
    before_target: NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Targets:
    """T held-out events of `log`, and the positive events before each target as pairs (N,).

    `past_item` is the item's row from 0, `past_user` the target's place in `held`.
    """

    log: EventLog
    held: HeldOut
    past_item: NDArray[np.intp]
    past_user: NDArray[np.intp]
    item_count: int


def segment_quality(vectors: ProbeVectors, targets: Targets, k: int) -> SegmentQuality:
    """Fit `k` segments, or one per user if k is larger, and measure their quality."""
    halves = [half[vectors.in_both_halves] for half in vectors.halves]
    k = min(k, len(halves[0]))
    whole = [_fit(vectors.whole, k, seed) for seed in range(SEEDS)]
    half_fits = product(*([_fit(half, k, seed).labels for seed in range(SEEDS)] for half in halves))
    placed = [adjusted_rand_score(*(_placed(half, fit) for half in halves)) for fit in whole]
    sizes = [np.bincount(fit.labels, minlength=k) / len(fit.labels) for fit in whole]
    hits = []
    if len(targets.held.rows):
        fits = [_fit(vectors.before_target, min(k, len(vectors.before_target)), seed) for seed in range(SEEDS)]
        hits = [segment_hit_rate(targets, fit.labels) for fit in fits]
    return SegmentQuality(
        k=k,
        halves=float(np.mean([adjusted_rand_score(*pair) for pair in half_fits])),
        halves_placed=float(np.mean(placed)),
        seeds=mean_agreement([fit.labels for fit in whole]),
        smallest=float(np.mean([size.min() for size in sizes])),
        largest=float(np.mean([size.max() for size in sizes])),
        hr=float(np.mean(hits)) if hits else float("nan"),
    )


def segment_hit_rate(targets: Targets, clusters: NDArray[np.integer]) -> float:
    """HR@10 of ranking for each user the items most frequent in the user's cluster, without the user's own items.

    `clusters` (T,) are the clusters of the targets' users; all zeros give global popularity. Items with
    equal counts keep the catalogue's order.
    """
    return hit_rate(popularity_ranks(targets, clusters), NEIGHBOURS)


def popularity_ranks(targets: Targets, clusters: NDArray[np.integer], leave_out_seen: bool = True) -> NDArray[np.int64]:
    """Rank of each target, from 0, among all items by their frequency in the cluster of the target's user, (T,).

    The result equals that of `target_ranks`, without a score for each user and item: all users of a cluster share one
    order of items, and a user's rank is smaller by the user's own items that come earlier in the order.
    """
    seen_user, seen_item = seen_pairs(targets.log, targets.held) if leave_out_seen else (np.empty(0, np.intp),) * 2
    target_items = targets.held.targets.astype(np.intp) - 1
    ranks = np.zeros(len(target_items), np.int64)
    place = np.empty(targets.item_count, np.int64)
    for cluster in np.unique(clusters):
        # The place of each item by count in this cluster (V,), less the earlier items that the user has seen.
        in_cluster = clusters == cluster
        counts = np.bincount(targets.past_item[in_cluster[targets.past_user]], minlength=targets.item_count)
        place[np.argsort(-counts, kind="stable")] = np.arange(targets.item_count)
        ranks[in_cluster] = place[target_items[in_cluster]]
        users, items = seen_user[in_cluster[seen_user]], seen_item[in_cluster[seen_user]]
        is_earlier = place[items] < ranks[users]
        ranks -= np.bincount(users[is_earlier], minlength=len(ranks))
    return ranks


def popularity_targets(log: EventLog, held: HeldOut, positive: NDArray[np.bool_], item_count: int) -> Targets:
    """The held-out events `held` of a log as `Targets`; `positive` marks the actions that count, by action index."""
    past = log.histories(held.rows, held.ends)
    counted = positive[past.action_index]
    return Targets(log, held, past.item_index[counted].astype(np.intp) - 1, past.rows[counted], item_count)


def mean_agreement(labellings: Sequence[NDArray[np.integer]]) -> float:
    """Mean adjusted Rand index over all pairs of labellings (U,)."""
    return float(np.mean([adjusted_rand_score(first, second) for first, second in combinations(labellings, 2)]))


def segments_agree(first: NDArray[np.float64], second: NDArray[np.float64], k: int) -> float:
    """Mean adjusted Rand index between the segments of the same users by two kinds of vectors, (U, D) each."""
    labels = [[_fit(vectors, k, seed).labels for seed in range(SEEDS)] for vectors in (first, second)]
    return float(np.mean([adjusted_rand_score(*pair) for pair in zip(*labels, strict=True)]))


def neighbour_overlap(first: NDArray[np.float64], second: NDArray[np.float64], sample_size: int, seed: int) -> float:
    """Share of the `NEIGHBOURS` nearest users by cosine that are the same for two kinds of vectors (U, D), in [0, 1].

    The mean over at most `sample_size` users; vectors have length 1. Chance gives `NEIGHBOURS` / (U - 1).
    """
    rows = np.random.default_rng(seed).permutation(len(first))[:sample_size]
    count = min(NEIGHBOURS, len(first) - 1)
    shared = 0
    for start in range(0, len(rows), _USERS_AT_ONCE):
        batch = rows[start : start + _USERS_AT_ONCE]
        neighbours = [_nearest_users(vectors, batch, count) for vectors in (first, second)]
        shared += sum(len(np.intersect1d(*pair)) for pair in zip(*neighbours, strict=True))
    return shared / (len(rows) * count)


def _nearest_users(vectors: NDArray[np.float64], rows: NDArray[np.intp], count: int) -> NDArray[np.intp]:
    """The rows of the `count` nearest other users of the users at `rows` (b,), unordered, (b, count)."""
    similarity = vectors[rows] @ vectors.T
    similarity[np.arange(len(rows)), rows] = -np.inf
    return np.argpartition(-similarity, count - 1, axis=1)[:, :count]


def _fit(vectors: NDArray[np.float64], k: int, seed: int) -> KMeansResult:
    return fit_kmeans(vectors, k, settings=KMeansSettings(seed=seed))


def _placed(vectors: NDArray[np.float64], fit: KMeansResult) -> NDArray[np.intp]:
    return assign(vectors.astype(np.float32), fit.centroids).first
