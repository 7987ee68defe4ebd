"""What the users of each segment did lately, smoothed against everyone: each segment's items, best first."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import polars as pl
from numpy.typing import NDArray

from server.core.preprocessing import Preprocessing
from training.data.sequences import EventLog

TOP_ITEMS = 500
"""Items listed for each segment."""

HALF_LIVES_DAYS = (7.0, 30.0, 90.0, 365.0, 3650.0)
HALF_LIVES_EVENTS = (10.0, 30.0, 100.0, 1000.0)
PRIORS = (10.0, 100.0, 1_000.0, 10_000.0, 100_000.0)
UNIFORM_SHARE = 0.01
"""Share of the global popularity that is spread evenly, so that every item has some."""

_DAY_MS = 86_400_000


@dataclass(frozen=True, slots=True)
class Smoothing:
    """How old behaviour fades and how far segments are drawn to everyone.

    `half_life` is in days for a log with a clock, in a user's events otherwise; `prior` is the weight of the global
    popularity, in events of weight 1.
    """

    half_life: float
    prior: float


@dataclass(frozen=True, slots=True)
class Behaviour:
    """Events as columns (N,): whose (`user_row`) and which item (`item_row`), both from 0; what each weighs at its
    time (`action_weight`); and its `age`, in days or events from the newest. V items in all.

    Not an `EventLog`: events are counted by item, so that weight and age are all that is left of action and time.
    """

    user_row: NDArray[np.intp]
    item_row: NDArray[np.intp]
    action_weight: NDArray[np.float64]
    age: NDArray[np.float64]
    item_count: int

    def weights(self, half_life: float) -> NDArray[np.float64]:
        """Weight of each event now, (N,); negative for returns and dislikes."""
        return self.action_weight * np.exp2(-self.age / half_life)


def behaviour_of(log: EventLog, ends: NDArray[np.int64], preprocessing: Preprocessing, item_count: int) -> Behaviour:
    """Each user's events up to `ends` (U,), absolute places in the log's columns."""
    taken = np.flatnonzero(log.before(ends))
    user_row = log.event_users[taken]
    if preprocessing.has_clock:
        times = log.timestamp[taken]
        age = (times.max(initial=0) - times) / _DAY_MS
    else:
        age = (ends[user_row] - 1 - taken).astype(np.float64)
    weights = np.array([action.weight for action in preprocessing.actions])
    return Behaviour(
        user_row,
        log.features.item_index[taken].astype(np.intp) - 1,
        weights[log.features.action_index[taken] - 1],
        age,
        item_count,
    )


def told(behaviour: Behaviour, clusters: NDArray[np.intp], min_users: int, min_size: int = 1) -> Behaviour:
    """What of it may be told by cluster: items that at least `min_users` users of the cluster did, with a positive
    weight, and nothing of clusters of fewer than `min_size` users. `clusters` (U,) can be -1 for a user left out.
    """
    items = behaviour.item_count
    # A pair (a, item) of row and item is the number a * V + item; first a is the user, then the user's cluster.
    counted = (clusters[behaviour.user_row] >= 0) & (behaviour.action_weight > 0)
    did = np.unique(behaviour.user_row[counted] * items + behaviour.item_row[counted])
    pairs, users = np.unique(clusters[did // items] * items + did % items, return_counts=True)
    sizes = np.bincount(clusters[clusters >= 0])
    known = pairs[(users >= min_users) & (sizes[pairs // items] >= min_size)]
    kept = np.isin(clusters[behaviour.user_row] * items + behaviour.item_row, known)
    columns = ("user_row", "item_row", "action_weight", "age")
    return replace(behaviour, **{name: getattr(behaviour, name)[kept] for name in columns})


def half_lives(preprocessing: Preprocessing) -> tuple[float, ...]:
    """The half-lives to choose from, in the unit of `Behaviour.age`."""
    return HALF_LIVES_DAYS if preprocessing.has_clock else HALF_LIVES_EVENTS


def popularity(behaviour: Behaviour, half_life: float) -> NDArray[np.float64]:
    """Probability of each item in the whole population (V,): above 0 for every item, summing to 1."""
    counts = _summed(behaviour.item_row, behaviour.weights(half_life), behaviour.item_count)
    total = counts.sum()
    even = np.full(behaviour.item_count, 1.0 / behaviour.item_count)
    return (1.0 - UNIFORM_SHARE) * counts / total + UNIFORM_SHARE * even if total > 0 else even


def cluster_counts(
    behaviour: Behaviour, clusters: NDArray[np.intp], cluster_count: int, half_life: float
) -> Iterator[NDArray[np.float64]]:
    """For each cluster the summed weight of each item (V,), 0 at least. `clusters` (U,) is each user's cluster."""
    # Events in the order of clusters: cluster k's are order[bounds[k]:bounds[k + 1]].
    cluster_of_event = clusters[behaviour.user_row]
    order = np.argsort(cluster_of_event, kind="stable")
    bounds = np.searchsorted(cluster_of_event[order], np.arange(cluster_count + 1))
    items, weights = behaviour.item_row[order], behaviour.weights(half_life)[order]
    for start, end in pairwise(bounds.tolist()):
        yield _summed(items[start:end], weights[start:end], behaviour.item_count)


def smoothed(counts: NDArray[np.float64], everyone: NDArray[np.float64], prior: float) -> NDArray[np.float64]:
    """Probability of each item in a segment (V,): its own counts, drawn to the global popularity by `prior` events.

    `counts` is over all items (V,), `everyone` their global probability.
    """
    probability: NDArray[np.float64] = (counts + prior * everyone) / (counts.sum() + prior)
    return probability


def choose_smoothing(
    behaviour: Behaviour,
    clusters: NDArray[np.intp],
    cluster_count: int,
    targets: tuple[NDArray[np.intp], NDArray[np.intp]],
    candidates: Sequence[float],
    min_users: int = 1,
) -> Smoothing:
    """The half-life and prior under which the segments' items foretell best what users did next.

    `targets` are user rows and item rows (S,), none of them in `behaviour`. Best is the largest likelihood. Segments
    tell items that `min_users` of their users did.
    """
    own = told(behaviour, clusters, min_users)
    best, best_likelihood = Smoothing(candidates[-1], PRIORS[2]), -np.inf
    users, items = targets
    for half_life in candidates:
        everyone = popularity(behaviour, half_life)
        likelihood = np.zeros(len(PRIORS))
        for cluster, counts in enumerate(cluster_counts(own, clusters, cluster_count, half_life)):
            wanted = items[clusters[users] == cluster]  # the targets of the cluster's users
            for place, prior in enumerate(PRIORS):
                likelihood[place] += np.log(smoothed(counts, everyone, prior)[wanted]).sum()
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
    """The best `TOP_ITEMS` of each segment, best first: `segment_id`, `item_index`, `score` and `lift`.

    `segment_ids` are by cluster. The score is the log-probability of the item in the segment, the lift that
    probability over the global one. Items that fewer than `min_users` users of the segment did, and all items of a
    segment of fewer than `min_size` users, stand as if nobody there did them: by their global popularity.
    """
    own = told(behaviour, clusters, min_users, min_size)
    everyone = popularity(behaviour, smoothing.half_life)
    parts = []
    all_counts = cluster_counts(own, clusters, len(segment_ids), smoothing.half_life)
    for segment_id, counts in zip(segment_ids, all_counts, strict=True):
        probability = smoothed(counts, everyone, smoothing.prior)
        rows = np.argsort(-probability, kind="stable")[:TOP_ITEMS]
        columns = {
            "segment_id": np.full(len(rows), segment_id, np.int64),
            "item_index": (rows + 1).astype(np.int32),
            "score": np.log(probability[rows]).astype(np.float32),
            "lift": (probability[rows] / everyone[rows]).astype(np.float32),
        }
        parts.append(pl.DataFrame(columns))
    return pl.concat(parts)


def _summed(rows: NDArray[np.intp], weights: NDArray[np.float64], count: int) -> NDArray[np.float64]:
    return np.maximum(np.bincount(rows, weights, count), 0.0)
