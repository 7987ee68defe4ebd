"""Vectors that stand for users: by the encoder, by counting their items, and by hand. Probes compare them."""

from collections.abc import Mapping

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from scipy import sparse
from sklearn.decomposition import TruncatedSVD
from sklearn.preprocessing import normalize
from torch import Tensor

from server.core.features import batches
from server.core.preprocessing import Preprocessing
from server.core.segments import normalised, segment_part
from training.data.sequences import EventLog
from training.model.user_encoder import UserEncoder
from training.runs import Progress, no_progress

LAST, MEAN, BOTH, SEGMENT = "last", "mean", "last + mean", "for segments"
SVD, BY_HAND = "items, SVD", "by hand"

SVD_DIM = 64
CATEGORIES = 32
"""The most frequent categories, so many, have a share each among the hand-made figures."""

_HOUR_MS, _DAY_MS = 3_600_000, 86_400_000
_MONDAY = 3
"""1 January 1970 was a Thursday: days since then, plus this, count from Monday."""

Vectors = Mapping[str, NDArray[np.float64]]
"""One vector a user, (U, D), by the name of what made it."""


def by_encoder(whole: UserEncoder, part: EventLog, progress: Progress = no_progress) -> Vectors:
    """Of the newest events: the embedding after the last, the mean of those after each, and both, of equal weight.

    And `SEGMENT`, what a release makes segments of. All are of length 1, as K-means takes them; users without events
    get zeros.
    """
    encoder = whole.encoder
    shape = (len(part.users), encoder.shape.embedding_dim)
    last, mean, segment = np.zeros(shape), np.zeros(shape), np.zeros((shape[0], whole.segment_dim))
    cut = batches(part.features, whole.shape.max_length)
    with torch.inference_mode():
        for done, (rows, inputs) in enumerate(cut, 1):
            columns = {name: torch.from_numpy(column) for name, column in inputs.items()}
            newest = whole.newest(**columns)
            after_each: Tensor = encoder.sequence(*newest)
            real = (newest[0] > 0)[:, :, None]  # padding means nothing
            last[rows] = after_each[:, -1].numpy()
            segment[rows] = segment_part(whole(**columns).numpy(), shape[1])
            mean[rows] = ((after_each * real).sum(1) / real.sum(1)).numpy()
            progress("embedding users", done, len(cut))
    last, mean = normalised(last), normalised(mean)
    both = normalised(np.hstack([last, mean]))
    return {LAST: last, MEAN: mean, BOTH: both, SEGMENT: normalised(segment)}


class ItemSvd:
    """Bags of items: counts times idf, of length 1, in the first `SVD_DIM` singular directions of what was learned."""

    def __init__(self, part: EventLog, item_count: int, seed: int) -> None:
        self._item_count = item_count
        counts = self._counts(part)
        had_by = np.bincount(counts.indices, minlength=item_count)
        self._idf = np.log(counts.shape[0] / np.maximum(had_by, 1))
        dim = min(SVD_DIM, item_count - 1, counts.shape[0] - 1)
        self._svd = TruncatedSVD(dim, random_state=seed).fit(self._weighted(counts))

    def __call__(self, part: EventLog) -> NDArray[np.float64]:
        """Vectors of length 1, (U, D); zeros for users without events."""
        return normalised(self._svd.transform(self._weighted(self._counts(part))))

    def _counts(self, part: EventLog) -> sparse.csr_matrix:
        return _counts(part, part.features.item_index - 1, self._item_count)

    def _weighted(self, counts: sparse.csr_matrix) -> sparse.csr_matrix:
        return normalize(counts @ sparse.diags(self._idf))


class ByHand:
    """What an analyst would count: events, distinct items, mean value, and shares of actions, categories and times."""

    def __init__(self, part: EventLog, categories: pl.Series, preprocessing: Preprocessing) -> None:
        """`categories` (V,) are lists of texts, empty where an item has none."""
        self._preprocessing = preprocessing
        self._categories = _memberships(categories)
        figures = self._figures(part)
        self._center, spread = figures.mean(0), figures.std(0)
        self._spread = np.where(spread > 0, spread, 1.0)

    def __call__(self, part: EventLog) -> NDArray[np.float64]:
        """Figures in standard deviations from the mean of those that were learned from, then of length 1, (U, D)."""
        return normalised((self._figures(part) - self._center) / self._spread)

    def _figures(self, part: EventLog) -> NDArray[np.float64]:
        features = part.features
        bags = _counts(part, features.item_index - 1, self._categories.shape[0])
        each = np.maximum(features.lengths, 1)[:, None]
        columns = [
            np.log1p(features.lengths)[:, None],
            np.log1p(np.diff(bags.indptr))[:, None],
            np.bincount(part.event_users, features.value, len(each))[:, None] / each,
            _counts(part, features.action_index - 1, len(self._preprocessing.actions)).toarray() / each,
            (bags @ self._categories).toarray() / each,
        ]
        if self._preprocessing.has_clock:
            hours, days = part.timestamp // _HOUR_MS % 24, (part.timestamp // _DAY_MS + _MONDAY) % 7
            columns += [_counts(part, hours, 24).toarray() / each, _counts(part, days, 7).toarray() / each]
        return np.hstack(columns)


def _counts(part: EventLog, kinds: NDArray[np.integer], kind_count: int) -> sparse.csr_matrix:
    """How often each user has events of each kind, (U, kinds); `kinds` (N,) is each event's."""
    ones = np.ones(len(kinds))
    shape = (len(part.users), kind_count)
    return sparse.coo_matrix((ones, (part.event_users, kinds)), shape).tocsr()  # sums up repeats


def _memberships(categories: pl.Series) -> sparse.csr_matrix:
    """Which of the `CATEGORIES` most frequent categories each item is in, (V, C), 0 or 1."""
    pairs = pl.DataFrame({"category": categories}).with_row_index("item").explode("category").drop_nulls().unique()
    common = pairs["category"].value_counts().sort("count", "category", descending=[True, False]).head(CATEGORIES)
    numbered = pairs.join(common.with_row_index("place"), on="category")
    cells = numbered["item"].to_numpy(), numbered["place"].to_numpy()
    return sparse.csr_matrix((np.ones(len(numbered)), cells), (len(categories), len(common)))
