"""What is measured of K-means with some k: how tight it is, whether it comes out again, what it foretells."""

from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import (
    adjusted_rand_score,
    calinski_harabasz_score,
    davies_bouldin_score,
    euclidean_distances,
    silhouette_score,
)

from training.kmeans.engines import Engine
from training.kmeans.fit import KMeansResult, assign, fit_kmeans
from training.kmeans.settings import KMeansSettings
from training.segments.quality import NEIGHBOURS, Targets, ranks_of

FITTED_USERS = 100_000
"""Centroids are fitted on so many users at most; all users are placed by them and measured."""

SILHOUETTE_USERS = 4_000
_GROUPS = 10
"""Parts of the silhouettes' sample, each of which is left out once to tell the error."""

STABLE_USERS = 8_000
"""Users whose fits are repeated for `stability`."""

_RESTARTS = 3
_ROUNDS = 4
_KEPT = 0.8
"""Share of the users that each resample keeps."""

_LIFT_FITS = 2
_ROWS_AT_ONCE = 65_536


@dataclass(frozen=True, slots=True)
class Fitter:
    """How K-means is asked here, and the seed of every draw."""

    engine: Engine = "sklearn"
    seed: int = 0

    def fit(self, points: NDArray[np.float32], k: int, turn: int = 0) -> KMeansResult:
        """`k` clusters of points (N, E), fewer where there are fewer points. Another `turn`, another start."""
        settings = KMeansSettings(restarts=_RESTARTS, seed=self.seed + turn)
        return fit_kmeans(points, min(k, len(points)), engine=self.engine, settings=settings)

    def drawn(self, count: int, most: int, turn: int = 0) -> NDArray[np.intp]:
        """At most `most` of `count` rows, ascending."""
        if count <= most:
            return np.arange(count)
        return np.sort(np.random.default_rng((self.seed, turn)).choice(count, most, replace=False))


@dataclass(frozen=True, slots=True)
class ClusterAssignment:
    """The cluster of each point, intp (N,), and its distance to the centroid, (N,)."""

    clusters: NDArray[np.intp]
    distances: NDArray[np.float64]


def assign_clusters(points: NDArray[np.float32], centroids: NDArray[np.float32]) -> ClusterAssignment:
    """Put points (N, E) into the clusters of `centroids` (K, E), some rows at a time."""
    starts = range(0, len(points), _ROWS_AT_ONCE)
    parts = [assign(points[start : start + _ROWS_AT_ONCE], centroids) for start in starts]
    return ClusterAssignment(
        np.concatenate([part.first for part in parts]), np.concatenate([part.first_distance for part in parts])
    )


@dataclass(frozen=True, slots=True)
class Shape:
    """How tight clusters are and how far apart, in the words of scikit-learn; NaN where there are too few of them.

    `inertia` is of all points; `silhouette` (-1 to 1, larger is better; Rousseeuw 1987) is of a sample, and
    `silhouette_error` its standard error, 0 where the sample is everybody. Both the users asked and those they are
    compared with are drawn, so that a sample finds other clusters too near: a jackknife over parts of it takes that
    bias away and tells the error (Quenouille 1956, Tukey 1958).
    """

    inertia: float
    mean_distance: float
    silhouette: float
    silhouette_error: float
    davies_bouldin: float
    calinski_harabasz: float


class Shapes:
    """Measures clusterings of the same points (N, E). The distances of the silhouettes' sample are computed once."""

    def __init__(self, points: NDArray[np.float32], fitter: Fitter, sample: int = SILHOUETTE_USERS) -> None:
        self._points = points
        self._rows = fitter.drawn(len(points), sample)
        self._between = euclidean_distances(points[self._rows])
        order = np.random.default_rng(fitter.seed).permutation(len(self._rows))
        self._without = [np.setdiff1d(order, part) for part in np.array_split(order, _GROUPS)]

    def of(self, placed: ClusterAssignment) -> Shape:
        """The shape of one clustering."""
        silhouette, error = self._silhouette(placed.clusters)
        can_tell = 2 <= len(np.unique(placed.clusters)) < len(self._points)
        return Shape(
            inertia=float((placed.distances**2).sum()),
            mean_distance=float(placed.distances.mean()),
            silhouette=silhouette,
            silhouette_error=error,
            davies_bouldin=float(davies_bouldin_score(self._points, placed.clusters)) if can_tell else np.nan,
            calinski_harabasz=float(calinski_harabasz_score(self._points, placed.clusters)) if can_tell else np.nan,
        )

    def _silhouette(self, clusters: NDArray[np.intp]) -> tuple[float, float]:
        mine = clusters[self._rows]
        value = _silhouette(self._between, mine)
        unseen = 1.0 - len(mine) / len(clusters)
        if not unseen:
            return value, 0.0
        parts = [_silhouette(self._between[np.ix_(rows, rows)], mine[rows]) for rows in self._without]
        bias = (_GROUPS - 1) * unseen * float(np.mean(parts) - value)
        return value - bias, float(np.std(parts) * np.sqrt((_GROUPS - 1) * unseen))


def _silhouette(between: NDArray[np.float32], clusters: NDArray[np.intp]) -> float:
    """Of users with these distances between them (n, n); NaN where clusters are too few or too many."""
    if not 2 <= len(np.unique(clusters)) < len(clusters):
        return np.nan
    return float(silhouette_score(between, clusters, metric="precomputed"))


def stability(points: NDArray[np.float32], k: int, fitter: Fitter) -> float:
    """Mean adjusted Rand index between fits on resampled users, each pair compared on the users of both.

    1 is the same clusters each time, 0 agreement by chance. After Ben-Hur, Elisseeff and Guyon (2002), "A stability
    based method for discovering structure in clustered data".
    """
    points = points[fitter.drawn(len(points), STABLE_USERS)]
    kept = max(2, round(_KEPT * len(points)))
    labels = np.full((_ROUNDS, len(points)), -1, np.intp)
    for turn, mine in enumerate(labels):
        rows = fitter.drawn(len(points), kept, turn + 1)
        mine[rows] = fitter.fit(points[rows], k, turn).labels
    pairs = [(one, other, (one >= 0) & (other >= 0)) for one, other in combinations(labels, 2)]
    return float(np.mean([adjusted_rand_score(one[both], other[both]) for one, other, both in pairs]))


@dataclass(frozen=True, slots=True)
class Past:
    """Users before their validation targets: `points` (T, E) of length 1, and who is `asked` for what."""

    points: NDArray[np.float32]
    asked: Targets
    leave_out_seen: bool

    def hits(self, clusters: NDArray[np.integer]) -> NDArray[np.float64]:
        """Whether each target is among the most popular items of the user's cluster, (T,), 0 or 1."""
        return (ranks_of(self.asked, clusters, self.leave_out_seen) < NEIGHBOURS).astype(np.float64)


@dataclass(frozen=True, slots=True)
class Lift:
    """HR@10 of segment popularity, in [0, 1], and how many times that of global popularity it is.

    `error` is the standard error of `lift`: of the mean difference over users, in the unit of the global rate.
    """

    hr: float
    lift: float
    error: float


def lift(past: Past, k: int, fitter: Fitter) -> Lift:
    """How well `k` segments of what is known before each target foretell it; NaN where popular items never do."""
    everyone = past.hits(np.zeros(len(past.points), np.intp))
    fits = [fitter.fit(past.points, k, turn).labels for turn in range(_LIFT_FITS)]
    hits = np.mean([past.hits(labels) for labels in fits], axis=0)
    base = float(everyone.mean())
    if not base:
        return Lift(float(hits.mean()), np.nan, np.nan)
    error = float((hits - everyone).std() / np.sqrt(len(hits)))
    return Lift(float(hits.mean()), float(hits.mean()) / base, error / base)


def halves_agree(halves: tuple[NDArray[np.float32], NDArray[np.float32]], centroids: NDArray[np.float32]) -> float:
    """Adjusted Rand index between the segments of two halves of the same users' events, (H, E) each."""
    one, other = (assign_clusters(half, centroids).clusters for half in halves)
    return float(adjusted_rand_score(one, other))


STABLE_FROM = 0.5
"""A `stability` below this is told as doubt: a refit would move many users."""

HALVES_FROM = 0.3
"""And so is an agreement of `halves` below this: histories say too little of where a user belongs."""


@dataclass(frozen=True, slots=True)
class Steadiness:
    """How steady segments are: `stability` and `halves_agree`, NaN where no user's events can be cut in two."""

    stability: float
    halves: float

    def figures(self) -> dict[str, float]:
        """By name, those that are known."""
        found = {"stability": self.stability, "halves_agree": self.halves}
        return {name: value for name, value in found.items() if not np.isnan(value)}

    def notes(self) -> list[str]:
        """What people should know of it, in sentences; none where segments are steady."""
        notes = []
        if self.stability < STABLE_FROM:
            notes.append(
                f"Segments are not stable: fits on resampled users agree by {self.stability:.2f} (adjusted Rand: 1 is "
                f"the same segments, 0 chance; doubtful below {STABLE_FROM}). Fewer segments may be stabler."
            )
        if self.halves < HALVES_FROM:
            notes.append(
                "Histories are too short for stable segments: two random halves of the same users' events are put "
                f"into the same segments by {self.halves:.2f} only (adjusted Rand; doubtful below {HALVES_FROM}). "
                "A user's segment may change with its next events."
            )
        return notes


def steadiness(
    points: NDArray[np.float32],
    halves: tuple[NDArray[np.float32], NDArray[np.float32]] | None,
    centroids: NDArray[np.float32],
    fitter: Fitter,
) -> Steadiness:
    """How steady the segments around `centroids` (K, E) are; `points` (U, E) and `halves` as in `UserViews`."""
    agreement = halves_agree(halves, centroids) if halves else np.nan
    return Steadiness(stability(points, len(centroids), fitter), agreement)
