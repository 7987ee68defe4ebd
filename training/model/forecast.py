"""The forecast: a linear prediction of a user's next events from the history; part of the segment embedding."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from sklearn.linear_model import RidgeCV
from sklearn.metrics import adjusted_rand_score
from sklearn.model_selection import GroupKFold
from sklearn.preprocessing import normalize

from server.core.features import Features
from server.core.preprocessing import Preprocessing
from training.data.sequences import EventLog, HeldOut, in_training, positive_actions, random_half, select_targets
from training.kmeans.fit import fit_kmeans
from training.kmeans.settings import KMeansSettings

_PAIRS = 10_000
"""Number of moments to learn a forecast from; a log with few users gives several moments per user."""

_PAIRS_OF_A_USER = 4
_EARLIEST = 0.3
"""Least share of a user's events that lie before a moment."""

_FOLLOWING = 5
"""Maximum number of predicted events after a moment: more give steadier targets, fewer are closer to the next."""

RANK = 16
"""Dimensions of a forecast, in the directions of largest variance; others add little and are less steady."""

_RIDGES = (0.03, 0.1, 0.3, 1.0, 3.0)
"""Candidate ridge penalties, in units of the mean variance of an input dimension."""

_FOLDS = 5

_KS = (8, 32)
_STARTS = 4
_HALVED_USERS = 5_000

Embed = Callable[[Features], NDArray[np.float32]]
"""B histories → the inputs of the forecast, (B, P)."""


@dataclass(frozen=True, slots=True)
class Bags:
    """The contribution of an event to a bag: row `places[item_index]` of `table`; `places` (V + 1,), `table` (M, S)."""

    places: NDArray[np.int32]
    table: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Forecast:
    """A linear forecast `known @ weights - center` from inputs `known` (B, P); (P, F) and (F,), float32."""

    weights: NDArray[np.float32]
    center: NDArray[np.float32]


def learn_forecast(
    log: EventLog, preprocessing: Preprocessing, embed: Embed, bags: Bags, max_length: int, seed: int
) -> Forecast | None:
    """Learn to predict the bag of the events after a moment from the history before it; None for too few users.

    Ridge regression (Hoerl and Kennard 1970) of reduced rank (Izenman 1975); the penalty is cross-validated over users.
    """
    moments = _moments(log, seed)
    following = _following(log, preprocessing, moments, bags)
    has_following = np.flatnonzero(following.any(axis=1))
    moments = select_targets(moments, has_following)
    if len(np.unique(moments.rows)) < 2 * _FOLDS:
        return None
    known = embed(log.histories(moments.rows, moments.ends, max_length)).astype(np.float64)
    penalty_unit = len(known) * max(known.var(axis=0).mean(), 1e-9)
    folds = list(GroupKFold(_FOLDS).split(known, groups=moments.rows))
    fitted = RidgeCV([ridge * penalty_unit for ridge in _RIDGES], cv=folds).fit(
        known, normalize(following[has_following])
    )
    forecasts = (known - known.mean(axis=0)) @ fitted.coef_.T
    _, directions = np.linalg.eigh(forecasts.T @ forecasts)
    weights = fitted.coef_.T @ directions[:, ::-1][:, :RANK]
    return Forecast(weights.astype(np.float32), (known.mean(axis=0) @ weights).astype(np.float32))


def _moments(log: EventLog, seed: int) -> HeldOut:
    """Random moments within the training events, each with events of its user before and after."""
    starts, rng = log.features.starts, np.random.default_rng(seed)
    lengths = log.train_ends - starts
    users = np.flatnonzero(lengths > 1)
    moments_per_user = min(-(-_PAIRS // max(len(users), 1)), _PAIRS_OF_A_USER)
    rows = np.tile(np.sort(rng.permutation(users)[: _PAIRS // moments_per_user]), moments_per_user)
    before = (lengths[rows] * rng.uniform(_EARLIEST, 1.0, len(rows))).astype(np.int64)
    ends = starts[rows] + np.clip(before, 1, lengths[rows] - 1)
    return HeldOut(rows, ends, log.features.item_index[ends])


def _following(log: EventLog, preprocessing: Preprocessing, moments: HeldOut, bags: Bags) -> NDArray[np.float64]:
    """Bags of the events after each moment, without returns and dislikes, (T, S)."""
    counts = np.minimum(log.train_ends[moments.rows] - moments.ends, _FOLLOWING)
    following = log.features.slices(moments.ends, moments.ends + counts)
    is_positive = positive_actions(preprocessing)[following.action_index].astype(np.float64)
    rows = bags.places[following.item_index]
    items = sparse.csr_matrix((is_positive, rows, following.offsets), (len(counts), len(bags.table)))
    return np.asarray(items @ bags.table.astype(np.float64))


def halves_of(
    log: EventLog, preprocessing: Preprocessing, embed: Embed, seed: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]] | None:
    """The forecast inputs from two random halves of users' training events, (H, P) each; None if users are too few."""
    learned, first_half = in_training(log), random_half(log, seed)
    rows = np.sort(np.random.default_rng(seed).permutation(len(log.users))[:_HALVED_USERS])
    parts = [log.subset(half & learned, rows, preprocessing).features for half in (first_half, ~first_half)]
    in_both = (parts[0].lengths > 0) & (parts[1].lengths > 0)
    if in_both.sum() <= max(_KS):
        return None
    first, second = (embed(part)[in_both] for part in parts)
    return first, second


def agreement_of_halves(halves: Sequence[NDArray[np.float32]], seed: int) -> float:
    """Agreement of the segments of two halves of the same users' events, (H, E) each, in [0, 1]; bigger is better.

    The geometric mean over `_KS` of adjusted Rand indexes (Hubert and Arabie 1985), each a mean over all pairs of
    several starts.
    """
    agreements = []
    for k in _KS:
        starts = [KMeansSettings(restarts=1, seed=seed + turn) for turn in range(_STARTS)]
        first, second = ([fit_kmeans(half, k, settings=start).labels for start in starts] for half in halves)
        agreements.append(max(float(np.mean([adjusted_rand_score(*pair) for pair in product(first, second)])), 0.0))
    return float(np.sqrt(np.prod(agreements)))
