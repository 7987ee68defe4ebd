"""The items of each segment, best first: popularity among its users, smoothed, where recent events weigh more.

Smoothing draws the popularity in a segment towards the global popularity, which matters for segments with few events.
The order is the one that predicts events best. `item_lists` has the items that describe a segment.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import polars as pl
from numpy.typing import NDArray

from server.core.preprocessing import Preprocessing
from training.data.sequences import EventLog

TOP_ITEMS = 500
"""The number of items in the list of each segment."""

HALF_LIVES_DAYS = (7.0, 30.0, 90.0, 365.0, 3650.0)
HALF_LIVES_EVENTS = (10.0, 30.0, 100.0, 1000.0)
PRIORS = (10.0, 100.0, 1_000.0, 10_000.0, 100_000.0)
UNIFORM_SHARE = 0.01
"""Share of the global popularity that is divided evenly between all items, so that no item has probability 0."""

_DAY_MS = 86_400_000


@dataclass(frozen=True, slots=True)
class Smoothing:
    """`half_life` of an event's weight, in days, or in events of the user for a log without a clock.

    `prior` is the weight of the global popularity in that of a segment, in events of weight 1.
    """

    half_life: float
    prior: float


@dataclass(frozen=True, slots=True)
class Behaviour:
    """Events as columns (N,): `user_row` and `item_row` from 0, `action_weight`, and `age` in days, or in events of the
    user, before the newest event. `item_count` is V.

    This is not an `EventLog`: only the weight remains of an event's action, and only the age of its time.
    """

    user_row: NDArray[np.intp]
    item_row: NDArray[np.intp]
    action_weight: NDArray[np.float64]
    age: NDArray[np.float64]
    item_count: int

    def weights(self, half_life: float) -> NDArray[np.float64]:
        """Weight of each event at the time of the newest event, (N,); negative for returns and dislikes."""
        return self.action_weight * np.exp2(-self.age / half_life)


def behaviour_of(log: EventLog, ends: NDArray[np.int64], preprocessing: Preprocessing, item_count: int) -> Behaviour:
    """The events of each user before `ends` (U,), which are places in the log's columns."""
    places = np.flatnonzero(log.before(ends))
    user_row = log.event_users[places]
    if preprocessing.has_clock:
        times = log.timestamp[places]
        age = (times.max(initial=0) - times) / _DAY_MS
    else:
        age = (ends[user_row] - 1 - places).astype(np.float64)
    weights = np.array([action.weight for action in preprocessing.actions])
    return Behaviour(
        user_row,
        log.features.item_index[places].astype(np.intp) - 1,
        weights[log.features.action_index[places] - 1],
        age,
        item_count,
    )


def publishable(behaviour: Behaviour, clusters: NDArray[np.intp], min_users: int, min_size: int = 1) -> Behaviour:
    """The events that a cluster's list of items may use, so that the list discloses no user.

    An item counts in a cluster if at least `min_users` of its users have a positive event with the item. A cluster with
    fewer than `min_size` users has no events. `clusters` (U,) is -1 for a user without a cluster.
    """
    pairs, users = users_by_pair(behaviour, clusters)
    sizes = np.bincount(clusters[clusters >= 0])
    allowed_pairs = pairs[(users >= min_users) & (sizes[pairs // behaviour.item_count] >= min_size)]
    is_allowed = np.isin(clusters[behaviour.user_row] * behaviour.item_count + behaviour.item_row, allowed_pairs)
    columns = ("user_row", "item_row", "action_weight", "age")
    return replace(behaviour, **{name: getattr(behaviour, name)[is_allowed] for name in columns})


def users_by_pair(behaviour: Behaviour, clusters: NDArray[np.intp]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """The pairs (cluster, item) with a positive event, and the number of users with such events, (P,) each.

    A pair is the number cluster * V + item row; pairs ascend. `clusters` (U,) is -1 for a user without a cluster.
    """
    items = behaviour.item_count
    is_positive = (clusters[behaviour.user_row] >= 0) & (behaviour.action_weight > 0)
    user_items = np.unique(behaviour.user_row[is_positive] * items + behaviour.item_row[is_positive])
    return np.unique(clusters[user_items // items] * items + user_items % items, return_counts=True)


def half_lives(preprocessing: Preprocessing) -> tuple[float, ...]:
    """The candidate half-lives, in the unit of `Behaviour.age`."""
    return HALF_LIVES_DAYS if preprocessing.has_clock else HALF_LIVES_EVENTS


def popularity(behaviour: Behaviour, half_life: float) -> NDArray[np.float64]:
    """Probability of each item in the whole population (V,), above 0; the sum is 1."""
    counts = _summed(behaviour.item_row, behaviour.weights(half_life), behaviour.item_count)
    total = counts.sum()
    even = np.full(behaviour.item_count, 1.0 / behaviour.item_count)
    return (1.0 - UNIFORM_SHARE) * counts / total + UNIFORM_SHARE * even if total > 0 else even


def cluster_counts(
    behaviour: Behaviour, clusters: NDArray[np.intp], cluster_count: int, half_life: float
) -> Iterator[NDArray[np.float64]]:
    """For each cluster the sum of the weights of each item's events (V,), at least 0. `clusters` is (U,)."""
    # Events sorted by cluster: the events of cluster k are order[bounds[k]:bounds[k + 1]].
    cluster_of_event = clusters[behaviour.user_row]
    order = np.argsort(cluster_of_event, kind="stable")
    bounds = np.searchsorted(cluster_of_event[order], np.arange(cluster_count + 1))
    items, weights = behaviour.item_row[order], behaviour.weights(half_life)[order]
    for start, end in pairwise(bounds.tolist()):
        yield _summed(items[start:end], weights[start:end], behaviour.item_count)


def smoothed(counts: NDArray[np.float64], global_probability: NDArray[np.float64], prior: float) -> NDArray[np.float64]:
    """Probability of each item in a segment (V,), from `counts` (V,) and `prior` events of global popularity (V,)."""
    probability: NDArray[np.float64] = (counts + prior * global_probability) / (counts.sum() + prior)
    return probability


def choose_smoothing(
    behaviour: Behaviour,
    clusters: NDArray[np.intp],
    cluster_count: int,
    targets: tuple[NDArray[np.intp], NDArray[np.intp]],
    candidates: Sequence[float],
    min_users: int = 1,
) -> Smoothing:
    """The half-life among `candidates` and the prior with the largest likelihood of the targets.

    `targets` are user rows and item rows (T,) of events that are not in `behaviour`. `min_users` as in `publishable`.
    """
    publishable_behaviour = publishable(behaviour, clusters, min_users)
    best, best_likelihood = Smoothing(candidates[-1], PRIORS[2]), -np.inf
    users, items = targets
    for half_life in candidates:
        global_probability = popularity(behaviour, half_life)
        likelihood = np.zeros(len(PRIORS))
        for cluster, counts in enumerate(cluster_counts(publishable_behaviour, clusters, cluster_count, half_life)):
            targets_of_cluster = items[clusters[users] == cluster]
            for row, prior in enumerate(PRIORS):
                likelihood[row] += np.log(smoothed(counts, global_probability, prior)[targets_of_cluster]).sum()
        if likelihood.max() > best_likelihood and len(users):
            best_likelihood = float(likelihood.max())
            best = Smoothing(half_life, PRIORS[int(likelihood.argmax())])
    return best


def segment_items(
    behaviour: Behaviour,
    clusters: NDArray[np.intp],
    segment_ids: Sequence[int],
    smoothing: Smoothing,
    min_users: int = 1,
    min_size: int = 1,
) -> pl.DataFrame:
    """The best `TOP_ITEMS` of each segment, best first: `segment_id`, `item_index` and `score`.

    `segment_ids` (K,) are by cluster. The score is the log-probability of the item in the segment. An item that
    `publishable` does not allow (`min_users`, `min_size`) has a segment count of 0, so that its score depends on its
    global popularity only.
    """
    publishable_behaviour = publishable(behaviour, clusters, min_users, min_size)
    global_probability = popularity(behaviour, smoothing.half_life)
    parts = []
    all_counts = cluster_counts(publishable_behaviour, clusters, len(segment_ids), smoothing.half_life)
    for segment_id, counts in zip(segment_ids, all_counts, strict=True):
        probability = smoothed(counts, global_probability, smoothing.prior)
        rows = np.argsort(-probability, kind="stable")[:TOP_ITEMS]
        columns = {
            "segment_id": np.full(len(rows), segment_id, np.int64),
            "item_index": (rows + 1).astype(np.int32),
            "score": np.log(probability[rows]).astype(np.float32),
        }
        parts.append(pl.DataFrame(columns))
    return pl.concat(parts)


def _summed(rows: NDArray[np.intp], weights: NDArray[np.float64], count: int) -> NDArray[np.float64]:
    """The sum of the weights (N,) of each row, (count,); a negative sum becomes 0."""
    return np.maximum(np.bincount(rows, weights, count), 0.0)
