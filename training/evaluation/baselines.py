"""Baselines for the encoder: popularity over all time, in the last days and in a segment, and similar items.

Baselines learn from the events that the encoder learned from. With a split by time they also learn from the validation
period, since popularity that is weeks old would be too weak a baseline.
"""

import numpy as np
import scipy.sparse
import torch
from numpy.typing import NDArray
from torch import Tensor

from server.core.preprocessing import Preprocessing
from training.data.sequences import (
    EventLog,
    HeldOut,
    in_training,
    known_ends,
    positive_actions,
    seen_pairs,
    select_targets,
)
from training.model.torch_inference import Scorer
from training.ranking.hybrid import HybridTuner, segment_scores

RECENT_DAYS = 7
"""The number of days that recent popularity counts."""

NEIGHBOURS = 100
"""The most similar items kept per item; fewer for a catalogue with more than `_PAIRS_MAX` pairs."""

_PAIRS_MAX = 20_000_000

_DAY_MS = 86_400_000


def known_events(log: EventLog, preprocessing: Preprocessing) -> NDArray[np.bool_]:
    """Marks the events that baselines learn from, (N,): those of training, without returns and dislikes."""
    known = log.before(known_ends(log, 1)) if log.split.by_time else in_training(log)
    positive: NDArray[np.bool_] = known & positive_actions(preprocessing)[log.features.action_index]
    return positive


def popularity_counts(log: EventLog, preprocessing: Preprocessing, item_count: int) -> dict[str, NDArray[np.int64]]:
    """The number of known events of each item (V,), by method: over all time and, with a clock, in the last days."""
    counted = known_events(log, preprocessing)
    masks = {"popularity": counted}
    if preprocessing.has_clock and counted.any():
        newest = log.timestamp[counted].max()
        masks[f"popularity, {RECENT_DAYS} days"] = counted & (log.timestamp > newest - RECENT_DAYS * _DAY_MS)
    rows = log.features.item_index - 1
    return {name: np.bincount(rows[mask], minlength=item_count) for name, mask in masks.items()}


def popularity_scorer(counts: NDArray[np.int64]) -> Scorer:
    """Scores every user's items by the same counts (V,)."""
    scores = torch.from_numpy(counts).float()
    return lambda places: scores.repeat(len(places), 1)


def segment_scorer(tuner: HybridTuner, held: HeldOut) -> Scorer:
    """Scores items by their smoothed popularity in the user's K-means cluster, as a release does."""
    smoothing = tuner.smoothing(tuner.snapshot(2))
    snapshot = tuner.snapshot(1, held)
    assert snapshot is not None
    table = torch.from_numpy(np.stack(list(segment_scores(snapshot, smoothing))))
    clusters = torch.from_numpy(snapshot.clusters[held.rows])
    return lambda places: table[clusters[torch.from_numpy(places)]]


def item_similarity(counts: scipy.sparse.csr_matrix) -> scipy.sparse.csr_matrix:
    """The cosine of each item to its most similar items, (V, V), from 1 for each item that a user had, (U, V)."""
    from implicit.nearest_neighbours import ItemItemRecommender
    from sklearn.preprocessing import normalize

    item_count = counts.shape[1]
    model = ItemItemRecommender(K=min(NEIGHBOURS, item_count, max(1, _PAIRS_MAX // item_count)))
    doubles = counts.astype(np.float64)  # implicit takes doubles only
    model.fit(scipy.sparse.csr_matrix(normalize(doubles, axis=0)), show_progress=False)
    return scipy.sparse.csr_matrix(model.similarity)


def item_knn_scorer(log: EventLog, held: HeldOut, preprocessing: Preprocessing, item_count: int) -> Scorer:
    """Item-kNN (Sarwar et al. 2001, by `implicit`): an item's score is its summed cosine to the items of the history.

    Items without a similar item in the history follow by popularity, with scores from -1 to 0.
    """
    known = known_events(log, preprocessing)
    user = log.event_users[known]
    shape = len(log.users), item_count
    counts = scipy.sparse.csr_matrix((np.ones(len(user)), (user, log.features.item_index[known] - 1)), shape)
    counts.data[:] = 1.0  # repeats of an item count once
    similarity = item_similarity(counts)
    popularity = torch.from_numpy(np.bincount(counts.indices, minlength=item_count) / len(log.users) - 1).float()

    def scores(places: NDArray[np.intp]) -> Tensor:
        row, item = seen_pairs(log, select_targets(held, places))
        history = scipy.sparse.csr_matrix((np.ones(len(row)), (row, item)), (len(places), item_count))
        history.data[:] = 1.0
        similar = torch.from_numpy((history @ similarity).toarray().astype(np.float32))
        return torch.where(similar > 0, similar, popularity)

    return scores
