"""What an encoder has to beat: popularity of all times, of late and in a segment, and items like those of the user.

Baselines learn from the events that the encoder learned from. With a split by time they also know the validation
period, since popularity that is stale by weeks would be no rival.
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
"""Recent popularity counts the last days of what is known, so many."""

NEIGHBOURS = 100
"""Most similar items kept for each item; fewer in catalogues where that makes more than `_PAIRS_MAX`."""

_PAIRS_MAX = 20_000_000

_DAY_MS = 86_400_000


def known_events(log: EventLog, preprocessing: Preprocessing) -> NDArray[np.bool_]:
    """The events that baselines learn from, (N,): what training sees, without returns and dislikes."""
    known = log.before(known_ends(log, 1)) if log.split.by_time else in_training(log)
    positive: NDArray[np.bool_] = known & positive_actions(preprocessing)[log.features.action_index]
    return positive


def popularities(log: EventLog, preprocessing: Preprocessing, item_count: int) -> dict[str, NDArray[np.int64]]:
    """How often each item is known (V,), by name: of all times and, for logs with a clock, of the last days."""
    counted = known_events(log, preprocessing)
    masks = {"popularity": counted}
    if preprocessing.has_clock and counted.any():
        newest = log.timestamp[counted].max()
        masks[f"popularity, {RECENT_DAYS} days"] = counted & (log.timestamp > newest - RECENT_DAYS * _DAY_MS)
    rows = log.features.item_index - 1
    return {name: np.bincount(rows[mask], minlength=item_count) for name, mask in masks.items()}


def by_counts(counts: NDArray[np.int64]) -> Scorer:
    """The same scores for everyone."""
    scores = torch.from_numpy(counts).float()
    return lambda places: scores.repeat(len(places), 1)


def by_segment(mixer: HybridTuner, held: HeldOut) -> Scorer:
    """What the users of a target's K-means cluster did lately, smoothed against everyone as a release has it."""
    smoothing = mixer.smoothing(mixer.scene(2))
    scene = mixer.scene(1, held)
    assert scene is not None
    table = torch.from_numpy(np.stack(list(segment_scores(scene, smoothing))))
    clusters = torch.from_numpy(scene.clusters[held.rows])
    return lambda places: table[clusters[torch.from_numpy(places)]]


def by_similar_items(log: EventLog, held: HeldOut, preprocessing: Preprocessing, item_count: int) -> Scorer:
    """Item-kNN: sum over the items of a history of each item's cosine to them (Sarwar et al. 2001; by `implicit`).

    Items that are like none of them follow by popularity, with scores from -1 to 0.
    """
    from implicit.nearest_neighbours import ItemItemRecommender
    from sklearn.preprocessing import normalize

    known = known_events(log, preprocessing)
    user = log.event_users[known]
    shape = len(log.users), item_count
    ones = np.ones(len(user))  # implicit takes doubles only
    counts = scipy.sparse.csr_matrix((ones, (user, log.features.item_index[known] - 1)), shape)
    counts.data[:] = 1.0  # bought twice says little more than bought
    model = ItemItemRecommender(K=min(NEIGHBOURS, item_count, max(1, _PAIRS_MAX // item_count)))
    model.fit(scipy.sparse.csr_matrix(normalize(counts, axis=0)), show_progress=False)
    similarity = scipy.sparse.csr_matrix(model.similarity)
    others = torch.from_numpy(np.bincount(counts.indices, minlength=item_count) / len(log.users) - 1).float()

    def scores(places: NDArray[np.intp]) -> Tensor:
        row, item = seen_pairs(log, select_targets(held, places))
        history = scipy.sparse.csr_matrix((np.ones(len(row)), (row, item)), (len(places), item_count))
        history.data[:] = 1.0
        near = torch.from_numpy((history @ similarity).toarray().astype(np.float32))
        return torch.where(near > 0, near, others)

    return scores
