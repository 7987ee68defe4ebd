"""The kinds of user vectors that probes compare: by the encoder, by an SVD of item counts, and hand-made features."""

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
"""The number of most frequent categories whose shares are hand-made features."""

_HOUR_MS, _DAY_MS = 3_600_000, 86_400_000
_MONDAY = 3
"""1 January 1970 was a Thursday: days since then, plus this, count from Monday."""

Vectors = Mapping[str, NDArray[np.float64]]
"""The vectors of all users, (U, D), by kind."""


def encoder_vectors(user_encoder: UserEncoder, log: EventLog, progress: Progress = no_progress) -> Vectors:
    """Four kinds of vectors of length 1, as K-means takes them; zeros for users without events.

    `LAST` is the encoder's output at the newest event, `MEAN` the mean of the outputs at all events that it reads,
    `BOTH` the two side by side, and `SEGMENT` the vector that a release clusters.
    """
    encoder = user_encoder.encoder
    shape = (len(log.users), encoder.shape.embedding_dim)
    last, mean, segment = np.zeros(shape), np.zeros(shape), np.zeros((shape[0], user_encoder.segment_dim))
    log_batches = batches(log.features, user_encoder.shape.max_length)
    with torch.inference_mode():
        for done, (rows, inputs) in enumerate(log_batches, 1):
            columns = {name: torch.from_numpy(column) for name, column in inputs.items()}
            newest = user_encoder.newest(**columns)
            outputs: Tensor = encoder.sequence(*newest)  # (b, L, D)
            is_event = (newest[0] > 0)[:, :, None]  # (b, L, 1), false for padding
            last[rows] = outputs[:, -1].numpy()
            segment[rows] = segment_part(user_encoder(**columns).numpy(), shape[1])
            mean[rows] = ((outputs * is_event).sum(1) / is_event.sum(1)).numpy()
            progress("embedding users", done, len(log_batches))
    last, mean = normalised(last), normalised(mean)
    both = normalised(np.hstack([last, mean]))
    return {LAST: last, MEAN: mean, BOTH: both, SEGMENT: normalised(segment)}


class ItemSvd:
    """Vectors of item counts: counts times idf, scaled to length 1, in the first `SVD_DIM` singular directions.

    The idf and the directions are fitted on the log of the constructor.
    """

    def __init__(self, log: EventLog, item_count: int, seed: int) -> None:
        self._item_count = item_count
        counts = self._counts(log)
        user_counts = np.bincount(counts.indices, minlength=item_count)
        self._idf = np.log(counts.shape[0] / np.maximum(user_counts, 1))
        dim = min(SVD_DIM, item_count - 1, counts.shape[0] - 1)
        self._svd = TruncatedSVD(dim, random_state=seed).fit(self._weighted(counts))

    def __call__(self, log: EventLog) -> NDArray[np.float64]:
        """Vectors of length 1, (U, D); zeros for users without events."""
        return normalised(self._svd.transform(self._weighted(self._counts(log))))

    def _counts(self, log: EventLog) -> sparse.csr_matrix:
        return _counts(log, log.features.item_index - 1, self._item_count)

    def _weighted(self, counts: sparse.csr_matrix) -> sparse.csr_matrix:
        return normalize(counts @ sparse.diags(self._idf))


class HandMadeVectors:
    """Features that an analyst would count: events, items, mean value, and shares of actions, categories and times."""

    def __init__(self, log: EventLog, categories: pl.Series, preprocessing: Preprocessing) -> None:
        """Fit the scaling on `log`; `categories` (V,) are lists of texts, empty for an item without categories."""
        self._preprocessing = preprocessing
        self._categories = _memberships(categories)
        features = self._features(log)
        self._center, spread = features.mean(0), features.std(0)
        self._spread = np.where(spread > 0, spread, 1.0)

    def __call__(self, log: EventLog) -> NDArray[np.float64]:
        """The standardised features, scaled to length 1, (U, D)."""
        return normalised((self._features(log) - self._center) / self._spread)

    def _features(self, log: EventLog) -> NDArray[np.float64]:
        events = log.features
        item_counts = _counts(log, events.item_index - 1, self._categories.shape[0])
        event_counts = np.maximum(events.lengths, 1)[:, None]  # (U, 1)
        columns = [
            np.log1p(events.lengths)[:, None],
            np.log1p(np.diff(item_counts.indptr))[:, None],
            np.bincount(log.event_users, events.value, len(event_counts))[:, None] / event_counts,
            _counts(log, events.action_index - 1, len(self._preprocessing.actions)).toarray() / event_counts,
            (item_counts @ self._categories).toarray() / event_counts,
        ]
        if self._preprocessing.has_clock:
            hours, days = log.timestamp // _HOUR_MS % 24, (log.timestamp // _DAY_MS + _MONDAY) % 7
            shares = [_counts(log, hours, 24).toarray(), _counts(log, days, 7).toarray()]
            columns += [counts / event_counts for counts in shares]
        return np.hstack(columns)


def _counts(log: EventLog, kinds: NDArray[np.integer], kind_count: int) -> sparse.csr_matrix:
    """The number of each user's events of each kind, (U, `kind_count`); `kinds` (N,) is from 0."""
    ones = np.ones(len(kinds))
    shape = (len(log.users), kind_count)
    return sparse.coo_matrix((ones, (log.event_users, kinds)), shape).tocsr()  # sums up repeats


def _memberships(categories: pl.Series) -> sparse.csr_matrix:
    """1 for each item in each of the `CATEGORIES` most frequent categories, else 0, (V, C)."""
    pairs = pl.DataFrame({"category": categories}).with_row_index("item").explode("category").drop_nulls().unique()
    common = pairs["category"].value_counts().sort("count", "category", descending=[True, False]).head(CATEGORIES)
    numbered = pairs.join(common.with_row_index("place"), on="category")
    cells = numbered["item"].to_numpy(), numbered["place"].to_numpy()
    return sparse.csr_matrix((np.ones(len(numbered)), cells), (len(categories), len(common)))
