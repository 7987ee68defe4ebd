"""Ways to make segments' vectors: a forecast learned from what users did next, and how much each way is worth.

A way is worth more the steadier its segments are and the better they foretell. The last position foretells well and
holds together badly on some logs, a forecast on others (`EXPERIMENTS.md`), so each log is asked.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from typing import Self

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from sklearn.linear_model import RidgeCV
from sklearn.metrics import adjusted_rand_score
from sklearn.model_selection import GroupKFold
from sklearn.preprocessing import normalize

from server.core.features import Features
from server.core.preprocessing import Preprocessing
from training.k_measures import Fitter, Past
from training.kmeans import fit_kmeans
from training.parts import part_of, random_half
from training.segment_quality import asked_of
from training.sequences import HeldOut, Log, chosen, held_out, history_features, in_training, positive_actions, sampled

KS = (8, 32)
"""Segments that ways are judged by."""

JUDGED_USERS = 10_000

_STARTS = 6
_LEAST = 1e-3
"""What segments that come out by chance, or foretell nothing, are worth."""

_PAIRS = 10_000
"""Moments that a forecast is learned from, several of each user where users are few."""

_PAIRS_OF_A_USER = 4
_EARLIEST = 0.3
"""Share of a user's events that lie before the earliest moment, or more."""

_FOLLOWING = 5
"""Events after a moment that are foretold, at most: more are steadier, fewer nearer to the next."""

_RIDGES = (0.03, 0.1, 0.3, 1.0, 3.0)
"""Penalties to choose from, in a number's mean variance."""

_FOLDS = 5

Embed = Callable[[Features], NDArray[np.float32]]
"""What segments' vectors are made from, (B, P), of B histories."""


@dataclass(frozen=True, slots=True)
class Forecast:
    """What follows as a linear function of what is known: `known @ weights - center`; (P, S) and (S,), float32."""

    weights: NDArray[np.float32]
    center: NDArray[np.float32]


def learn_forecast(
    log: Log, preprocessing: Preprocessing, embed: Embed, bags: NDArray[np.float32], max_length: int, seed: int
) -> Forecast | None:
    """Foretell the bag of what follows a moment of training from the history before it; None with too few users.

    `bags` (V + 1, S) has what an event of each item index adds to a bag. By ridge regression (Hoerl and Kennard 1970),
    its penalty chosen on users left out.
    """
    moments = _moments(log, seed)
    following = _following(log, preprocessing, moments, bags)
    told = np.flatnonzero(following.any(axis=1))
    moments = chosen(moments, told)
    if len(np.unique(moments.rows)) < 2 * _FOLDS:
        return None
    known = embed(history_features(log, moments, max_length)).astype(np.float64)
    size = len(known) * known.var(axis=0).mean()
    folds = list(GroupKFold(_FOLDS).split(known, groups=moments.rows))
    fitted = RidgeCV([ridge * size for ridge in _RIDGES], cv=folds).fit(known, normalize(following[told]))
    weights = fitted.coef_.T.astype(np.float32)
    return Forecast(np.ascontiguousarray(weights), (known.mean(axis=0) @ weights).astype(np.float32))


def _moments(log: Log, seed: int) -> HeldOut:
    """Moments of training with events of the user before and after each."""
    starts, rng = log.features.offsets[:-1], np.random.default_rng(seed)
    lengths = log.train_ends - starts
    users = np.flatnonzero(lengths > 1)
    turns = min(-(-_PAIRS // max(len(users), 1)), _PAIRS_OF_A_USER)
    rows = np.tile(np.sort(rng.permutation(users)[: _PAIRS // turns]), turns)
    before = (lengths[rows] * rng.uniform(_EARLIEST, 1.0, len(rows))).astype(np.int64)
    ends = starts[rows] + np.clip(before, 1, lengths[rows] - 1)
    return HeldOut(rows, ends, log.features.item_index[ends])


def _following(
    log: Log, preprocessing: Preprocessing, moments: HeldOut, bags: NDArray[np.float32]
) -> NDArray[np.float64]:
    """Bags of the events after each moment, without returns and dislikes, (T, S)."""
    counts = np.minimum(log.train_ends[moments.rows] - moments.ends, _FOLLOWING)
    bounds = np.concatenate([[0], np.cumsum(counts)])
    taken = np.arange(bounds[-1]) + np.repeat(moments.ends - bounds[:-1], counts)
    wanted = positive_actions(preprocessing)[log.features.action_index[taken]].astype(np.float64)
    items = sparse.csr_matrix((wanted, log.features.item_index[taken], bounds), (len(counts), len(bags)))
    return np.asarray(items @ bags.astype(np.float64))


@dataclass(frozen=True, slots=True)
class Trial:
    """What ways are judged on: two halves (H, P) of users' training events, and the past (T, P) before targets.

    None where there are too few users.
    """

    halves: tuple[NDArray[np.float32], NDArray[np.float32]] | None
    past: Past | None
    seed: int

    @classmethod
    def of(
        cls, log: Log, preprocessing: Preprocessing, embed: Embed, item_count: int, max_length: int, seed: int
    ) -> Self:
        """With validation targets: a way is chosen as an epoch is."""
        learned, one = in_training(log), random_half(log, seed)
        rows = Fitter(seed=seed).drawn(len(log.users), JUDGED_USERS)
        parts = [part_of(log, half & learned, rows, preprocessing).features for half in (one, ~one)]
        both = (parts[0].lengths > 0) & (parts[1].lengths > 0)
        halves = (embed(parts[0])[both], embed(parts[1])[both]) if both.sum() > max(KS) else None
        positive = positive_actions(preprocessing)
        held = sampled(held_out(log, 2, positive), JUDGED_USERS, seed)
        past = None
        if len(held.rows) > max(KS):
            known = embed(history_features(log, held, max_length))
            past = Past(known, asked_of(log, held, positive, item_count), preprocessing.exclude_seen)
        return cls(halves, past, seed)

    def worth(self, points: Callable[[NDArray[np.float32]], NDArray[np.float32]]) -> float:
        """Of the way that makes `points` (N, E) of what it is given (N, P): logarithms that add up, 0 where unknown.

        Steady are segments that come out the same of two halves of users' events (adjusted Rand index of segments made
        anew); they foretell where their popular items are the next ones (HR@10 on validation targets).
        """
        found: list[float] = []
        for k in KS:
            if self.halves:
                one, other = (self._fits(points(half), k) for half in self.halves)
                found.append(np.mean([adjusted_rand_score(*pair) for pair in product(one, other)]))
            if self.past:
                fits = self._fits(points(self.past.points), k)
                found.append(np.mean([self.past.hits(labels).mean() for labels in fits]))
        return float(np.log(np.maximum(found, _LEAST)).sum())

    def _fits(self, points: NDArray[np.float32], k: int) -> list[NDArray[np.intp]]:
        """Clusters of points (N, E), from several single starts."""
        return [fit_kmeans(points, k, seed=self.seed + turn, restarts=1).labels for turn in range(_STARTS)]
