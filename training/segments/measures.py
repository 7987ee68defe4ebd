"""Measures K-means with a number of segments k: compactness, stability, and lift of the segments' popular items."""

from dataclasses import dataclass, field
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
from training.segments.quality import NEIGHBOURS, Targets, popularity_ranks
from training.segments.trust import halves_kept, largest_jaccard

FITTED_USERS = 100_000
"""The largest number of users that centroids are fitted on; all users are assigned to the centroids and measured."""

SILHOUETTE_USERS = 4_000
_JACKKNIFE_PARTS = 10
"""The sample of the silhouette is cut into these parts; the jackknife leaves out one part at a time."""

STABILITY_USERS = 8_000
"""The largest number of users on which `stability` repeats fits."""

_RESTARTS = 3
_RESAMPLES = 4
_RESAMPLE_SHARE = 0.8
"""Share of the users that each resample holds."""

_LIFT_FITS = 2
_ROWS_AT_ONCE = 65_536


@dataclass(frozen=True, slots=True)
class Fitter:
    """Fits K-means and samples users with one engine and one seed."""

    engine: Engine = "sklearn"
    seed: int = 0

    def fit(self, points: NDArray[np.float32], k: int, fit_index: int = 0) -> KMeansResult:
        """`k` clusters of points (N, E), or N if k is larger. Each `fit_index` starts from other centroids."""
        settings = KMeansSettings(restarts=_RESTARTS, seed=self.seed + fit_index)
        return fit_kmeans(points, min(k, len(points)), engine=self.engine, settings=settings)

    def sample_rows(self, count: int, size: int, sample_index: int = 0) -> NDArray[np.intp]:
        """A sample of `size` of the rows 0 to `count` - 1, or all rows if there are fewer; ascending."""
        if count <= size:
            return np.arange(count)
        return np.sort(np.random.default_rng((self.seed, sample_index)).choice(count, size, replace=False))


@dataclass(frozen=True, slots=True)
class ClusterAssignment:
    """The cluster of each point, intp (N,), and its distance to the centroid, (N,)."""

    clusters: NDArray[np.intp]
    distances: NDArray[np.float64]


def assign_clusters(points: NDArray[np.float32], centroids: NDArray[np.float32]) -> ClusterAssignment:
    """Assign points (N, E) to the nearest of `centroids` (K, E), in blocks of rows that bound the memory."""
    starts = range(0, len(points), _ROWS_AT_ONCE)
    parts = [assign(points[start : start + _ROWS_AT_ONCE], centroids) for start in starts]
    return ClusterAssignment(
        np.concatenate([part.first for part in parts]), np.concatenate([part.first_distance for part in parts])
    )


@dataclass(frozen=True, slots=True)
class ClusterMetrics:
    """Compactness and separation of clusters, named as in scikit-learn; NaN if there are too few clusters.

    `inertia`, Davies-Bouldin (smaller is better) and Calinski-Harabasz (larger is better) are of all points.
    `silhouette` (-1 to 1, larger is better; Rousseeuw 1987) is of a sample, and `silhouette_error` its standard error,
    0 if the sample holds all points. The silhouette of a sample is biased; a jackknife over parts of the sample removes
    the bias and gives the error (Quenouille 1956, Tukey 1958).
    """

    inertia: float
    mean_distance: float
    silhouette: float
    silhouette_error: float
    davies_bouldin: float
    calinski_harabasz: float


class ClusterEvaluator:
    """Computes the metrics of several clusterings of the same points (N, E); it keeps the distances of the sample."""

    def __init__(self, points: NDArray[np.float32], fitter: Fitter, sample: int = SILHOUETTE_USERS) -> None:
        self._points = points
        self._rows = fitter.sample_rows(len(points), sample)
        self._distances = euclidean_distances(points[self._rows])
        order = np.random.default_rng(fitter.seed).permutation(len(self._rows))
        self._jackknife = [np.setdiff1d(order, part) for part in np.array_split(order, _JACKKNIFE_PARTS)]

    def evaluate(self, assignment: ClusterAssignment) -> ClusterMetrics:
        """The metrics of one clustering."""
        clusters = assignment.clusters
        silhouette, error = self._silhouette(clusters)
        is_defined = 2 <= len(np.unique(clusters)) < len(self._points)
        return ClusterMetrics(
            inertia=float((assignment.distances**2).sum()),
            mean_distance=float(assignment.distances.mean()),
            silhouette=silhouette,
            silhouette_error=error,
            davies_bouldin=float(davies_bouldin_score(self._points, clusters)) if is_defined else np.nan,
            calinski_harabasz=float(calinski_harabasz_score(self._points, clusters)) if is_defined else np.nan,
        )

    def _silhouette(self, clusters: NDArray[np.intp]) -> tuple[float, float]:
        """The silhouette of the sample without its bias, and the standard error."""
        in_sample = clusters[self._rows]
        value = _silhouette(self._distances, in_sample)
        # Share of the points outside the sample: the finite population correction of bias and error.
        outside = 1.0 - len(in_sample) / len(clusters)
        if not outside:
            return value, 0.0
        parts = [_silhouette(self._distances[np.ix_(rows, rows)], in_sample[rows]) for rows in self._jackknife]
        bias = (_JACKKNIFE_PARTS - 1) * outside * float(np.mean(parts) - value)
        return value - bias, float(np.std(parts) * np.sqrt((_JACKKNIFE_PARTS - 1) * outside))


def _silhouette(distances: NDArray[np.float32], clusters: NDArray[np.intp]) -> float:
    """The mean silhouette for distances (n, n); NaN for one cluster, and for as many clusters as points."""
    if not 2 <= len(np.unique(clusters)) < len(clusters):
        return np.nan
    return float(silhouette_score(distances, clusters, metric="precomputed"))


def stability(points: NDArray[np.float32], k: int, fitter: Fitter) -> float:
    """Mean adjusted Rand index between fits on resampled users; each pair is compared on the users in both resamples.

    1 means identical clusters, 0 agreement by chance. After Ben-Hur, Elisseeff and Guyon (2002), "A stability based
    method for discovering structure in clustered data".
    """
    return _agreement(_resampled_fits(points[fitter.sample_rows(len(points), STABILITY_USERS)], k, fitter))


def _resampled_fits(points: NDArray[np.float32], k: int, fitter: Fitter) -> NDArray[np.intp]:
    """The clusters of points (N, E) in fits on resamples, (R, N); -1 for users outside the resample."""
    size = max(2, round(_RESAMPLE_SHARE * len(points)))
    labels = np.full((_RESAMPLES, len(points)), -1, np.intp)
    for fit_index, row_labels in enumerate(labels):
        rows = fitter.sample_rows(len(points), size, fit_index + 1)
        row_labels[rows] = fitter.fit(points[rows], k, fit_index).labels
    return labels


def _agreement(labels: NDArray[np.intp]) -> float:
    pairs = [(first, second, (first >= 0) & (second >= 0)) for first, second in combinations(labels, 2)]
    return float(np.mean([adjusted_rand_score(first[both], second[both]) for first, second, both in pairs]))


@dataclass(frozen=True, slots=True)
class ValidationUsers:
    """Users before their validation targets: vectors `points` (T, E) of length 1, and the `targets` to rank."""

    points: NDArray[np.float32]
    targets: Targets
    leave_out_seen: bool

    def hits(self, clusters: NDArray[np.integer]) -> NDArray[np.float64]:
        """1 for each target among the `NEIGHBOURS` most popular items of the user's cluster, else 0, (T,)."""
        return (popularity_ranks(self.targets, clusters, self.leave_out_seen) < NEIGHBOURS).astype(np.float64)


@dataclass(frozen=True, slots=True)
class Lift:
    """HR@10 of segment popularity, in [0, 1], and `lift`: that HR@10 divided by the HR@10 of global popularity.

    `error` is the standard error of `lift`: that of the mean difference over users, divided by the same HR@10.
    """

    hr: float
    lift: float
    error: float


def lift(users: ValidationUsers, k: int, fitter: Fitter) -> Lift:
    """How well the popular items of `k` segments predict the targets; NaN if globally popular items hit no target."""
    global_hits = users.hits(np.zeros(len(users.points), np.intp))
    fits = [fitter.fit(users.points, k, fit_index).labels for fit_index in range(_LIFT_FITS)]
    hits = np.mean([users.hits(labels) for labels in fits], axis=0)
    global_rate = float(global_hits.mean())
    if not global_rate:
        return Lift(float(hits.mean()), np.nan, np.nan)
    error = float((hits - global_hits).std() / np.sqrt(len(hits)))
    return Lift(float(hits.mean()), float(hits.mean()) / global_rate, error / global_rate)


def halves_agree(halves: tuple[NDArray[np.float32], NDArray[np.float32]], centroids: NDArray[np.float32]) -> float:
    """Adjusted Rand index between the segments of two half histories of the same users, (H, E) each."""
    first, second = (assign_clusters(half, centroids).clusters for half in halves)
    return float(adjusted_rand_score(first, second))


MIN_STABILITY = 0.5
"""A note warns of a `stability` below this: another fit would move many users."""

MIN_HALVES_AGREEMENT = 0.3
"""A note warns of an agreement of `halves` below this: histories are too short to place a user reliably."""


@dataclass(frozen=True, slots=True)
class SegmentStability:
    """`stability`, and the adjusted Rand index of the segments of two `halves` of each user's events.

    Both also by segment, (K,): `reproduced` and `kept`, see `training.segments.trust`. What is unknown is NaN, such as
    `halves` if too few users have two events.
    """

    stability: float
    halves: float
    reproduced: NDArray[np.float64] = field(default_factory=lambda: np.empty(0))
    kept: NDArray[np.float64] = field(default_factory=lambda: np.empty(0))

    def figures(self) -> dict[str, float]:
        """The known figures by name."""
        figures = {"stability": self.stability, "halves_agree": self.halves}
        return {name: value for name, value in figures.items() if not np.isnan(value)}

    def notes(self) -> list[str]:
        """Warnings for people, as sentences; none for stable segments."""
        notes = []
        if self.stability < MIN_STABILITY:
            notes.append(
                f"Segments are not stable: fits on resampled users agree by {self.stability:.2f} (adjusted Rand index: "
                f"1 means identical segments, 0 chance; doubtful below {MIN_STABILITY}). "
                "Fewer segments may be more stable."
            )
        if self.halves < MIN_HALVES_AGREEMENT:
            notes.append(
                "Histories are too short for stable segments: the segments of two random halves of each user's events "
                f"agree by only {self.halves:.2f} (adjusted Rand index; doubtful below {MIN_HALVES_AGREEMENT}). "
                "A user's segment may change with the next events."
            )
        return notes


def segment_stability(
    points: NDArray[np.float32],
    halves: tuple[NDArray[np.float32], NDArray[np.float32]] | None,
    centroids: NDArray[np.float32],
    fitter: Fitter,
) -> SegmentStability:
    """The stability of the segments around `centroids` (K, E); `points` (U, E) and `halves` as in `VectorSets`."""
    count = len(centroids)
    sample = points[fitter.sample_rows(len(points), STABILITY_USERS)]
    fits = _resampled_fits(sample, count, fitter)
    reproduced = largest_jaccard(assign_clusters(sample, centroids).clusters, list(fits), count)
    if halves is None:
        return SegmentStability(_agreement(fits), np.nan, reproduced, np.full(count, np.nan))
    first, second = (assign_clusters(half, centroids).clusters for half in halves)
    agreement = float(adjusted_rand_score(first, second))
    return SegmentStability(_agreement(fits), agreement, reproduced, halves_kept(first, second, count))
