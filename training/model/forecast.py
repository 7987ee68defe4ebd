"""What users do next, foretold from what is known of them before: segments are made of it, beside what they did."""

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
"""Moments that a forecast is learned from, several of each user where users are few."""

_PAIRS_OF_A_USER = 4
_EARLIEST = 0.3
"""Share of a user's events that lie before the earliest moment, or more."""

_FOLLOWING = 5
"""Events after a moment that are foretold, at most: more are steadier, fewer nearer to the next."""

RANK = 16
"""Directions of a forecast, those in which forecasts differ most: further ones tell little and are less steady."""

_RIDGES = (0.03, 0.1, 0.3, 1.0, 3.0)
"""Penalties to choose from, in a number's mean variance."""

_FOLDS = 5

_KS = (8, 32)
_STARTS = 4
_HALVED_USERS = 5_000

Embed = Callable[[Features], NDArray[np.float32]]
"""What is known of B histories, (B, P)."""


@dataclass(frozen=True, slots=True)
class Bags:
    """What an event adds to a bag: the row of `table` (M, S) that `places` (V + 1,) has for its item index."""

    places: NDArray[np.int32]
    table: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Forecast:
    """What follows as a linear function of what is known: `known @ weights - center`; (P, F) and (F,), float32."""

    weights: NDArray[np.float32]
    center: NDArray[np.float32]


def learn_forecast(
    log: EventLog, preprocessing: Preprocessing, embed: Embed, bags: Bags, max_length: int, seed: int
) -> Forecast | None:
    """Foretell the bag of what follows a moment of training from the history before it; None with too few users.

    By ridge regression (Hoerl and Kennard 1970), its penalty chosen on users left out, of reduced rank (Izenman 1975).
    """
    moments = _moments(log, seed)
    following = _following(log, preprocessing, moments, bags)
    told = np.flatnonzero(following.any(axis=1))
    moments = select_targets(moments, told)
    if len(np.unique(moments.rows)) < 2 * _FOLDS:
        return None
    known = embed(log.histories(moments.rows, moments.ends, max_length)).astype(np.float64)
    size = len(known) * max(known.var(axis=0).mean(), 1e-9)
    folds = list(GroupKFold(_FOLDS).split(known, groups=moments.rows))
    fitted = RidgeCV([ridge * size for ridge in _RIDGES], cv=folds).fit(known, normalize(following[told]))
    apart = (known - known.mean(axis=0)) @ fitted.coef_.T
    _, directions = np.linalg.eigh(apart.T @ apart)
    weights = fitted.coef_.T @ directions[:, ::-1][:, :RANK]
    return Forecast(weights.astype(np.float32), (known.mean(axis=0) @ weights).astype(np.float32))


def _moments(log: EventLog, seed: int) -> HeldOut:
    """Moments of training with events of the user before and after each."""
    starts, rng = log.features.starts, np.random.default_rng(seed)
    lengths = log.train_ends - starts
    users = np.flatnonzero(lengths > 1)
    turns = min(-(-_PAIRS // max(len(users), 1)), _PAIRS_OF_A_USER)
    rows = np.tile(np.sort(rng.permutation(users)[: _PAIRS // turns]), turns)
    before = (lengths[rows] * rng.uniform(_EARLIEST, 1.0, len(rows))).astype(np.int64)
    ends = starts[rows] + np.clip(before, 1, lengths[rows] - 1)
    return HeldOut(rows, ends, log.features.item_index[ends])


def _following(log: EventLog, preprocessing: Preprocessing, moments: HeldOut, bags: Bags) -> NDArray[np.float64]:
    """Bags of the events after each moment, without returns and dislikes, (T, S)."""
    counts = np.minimum(log.train_ends[moments.rows] - moments.ends, _FOLLOWING)
    following = log.features.slices(moments.ends, moments.ends + counts)
    wanted = positive_actions(preprocessing)[following.action_index].astype(np.float64)
    rows = bags.places[following.item_index]
    items = sparse.csr_matrix((wanted, rows, following.offsets), (len(counts), len(bags.table)))
    return np.asarray(items @ bags.table.astype(np.float64))


def halves_of(
    log: EventLog, preprocessing: Preprocessing, embed: Embed, seed: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]] | None:
    """What is known from two random halves of users' training events, (H, P) each; None of too few users."""
    learned, one = in_training(log), random_half(log, seed)
    rows = np.sort(np.random.default_rng(seed).permutation(len(log.users))[:_HALVED_USERS])
    parts = [log.subset(half & learned, rows, preprocessing).features for half in (one, ~one)]
    both = (parts[0].lengths > 0) & (parts[1].lengths > 0)
    if both.sum() <= max(_KS):
        return None
    first, second = (embed(part)[both] for part in parts)
    return first, second


def agreement_of_halves(halves: Sequence[NDArray[np.float32]], seed: int) -> float:
    """How far segments made anew of two halves of the same users' events, (H, E) each, agree, in [0, 1].

    The geometric mean over few and many segments of adjusted Rand indexes (Hubert and Arabie 1985), each a mean over
    all pairs of several starts.
    """
    found = []
    for k in _KS:
        starts = [KMeansSettings(restarts=1, seed=seed + turn) for turn in range(_STARTS)]
        one, other = ([fit_kmeans(half, k, settings=start).labels for start in starts] for half in halves)
        found.append(max(float(np.mean([adjusted_rand_score(*pair) for pair in product(one, other)])), 0.0))
    return float(np.sqrt(np.prod(found)))
