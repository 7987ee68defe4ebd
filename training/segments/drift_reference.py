"""What a release was made of, for later comparison: `drift_reference.json`.

Only figures over groups of at least `min_segment_size` users go in: how many users lie how far from their centroids,
how many are in doubt, and the middle of all embeddings with the directions in which they vary most. No user can be told
from it.
"""

from pathlib import Path
from typing import Self

import numpy as np
import polars as pl
from numpy.typing import NDArray
from pydantic import Field, ValidationError, model_validator

from server.core.frozen_model import FrozenModel
from server.core.release import Release
from server.core.segments import normalised, segment_part
from training.errors import RunError
from training.runs import write_atomically

DRIFT_REFERENCE = "drift_reference.json"
DISTANCE_BINS = 10
DIRECTIONS = 64
"""At most so many directions of embeddings are kept."""

_VARIANCE_KEPT = 0.99
_USERS_PER_DIRECTION = 10
_BEYOND = 5e-5
"""A bin ends so far beyond a user's distance. Many users can have the same short history, and the encoder's last digits
must not spread them over two bins."""

_DIGITS = 7
_ROWS_AT_ONCE = 65_536


class DriftReference(FrozenModel):
    """Users of a release when it was made: E numbers place a user, B bins of distance, P directions."""

    user_count: int = Field(ge=1)
    mean_events: float = Field(gt=0, description="Events of a user that the encoder read, on average.")
    mean_distance: float = Field(ge=0, description="To the nearest centroid.")
    distance_edges: tuple[float, ...] = Field(description="Between the bins, rising, (B - 1,).")
    distance_users: tuple[int, ...] = Field(min_length=1, description="Users in each bin, the nearest first, (B,).")
    doubtful_users: int | None = Field(ge=0, description="Below the least confidence; None without a calibration.")
    center: tuple[float, ...] = Field(min_length=1, description="Mean embedding, (E,).")
    directions: tuple[tuple[float, ...], ...] = Field(description="Of length 1, most variance first, (P, E).")
    variances: tuple[float, ...] = Field(description="Along the directions, (P,).")

    @model_validator(mode="after")
    def _shapes_fit(self) -> Self:
        if len(self.distance_users) != len(self.distance_edges) + 1:
            raise ValueError("bins of distance and their edges do not fit")
        if len(self.directions) != len(self.variances) or {len(row) for row in self.directions} - {len(self.center)}:
            raise ValueError("directions, variances and center do not fit")
        return self

    def bins(self, distances: NDArray[np.floating]) -> NDArray[np.int64]:
        """How many of these distances (U,) lie in each bin, (B,)."""
        places = np.searchsorted(np.array(self.distance_edges), distances)
        return np.bincount(places, minlength=len(self.distance_users))


def write_reference(stage: Path, item_dim: int, event_counts: NDArray[np.int64], least_users: int) -> bool:
    """Write the reference of a segment stage from its `user_embeddings.npy` and `assignments.parquet`.

    `event_counts` (U,) are the events that each embedding rests on. With fewer than `least_users` in all there is no
    reference, and none of its bins holds fewer. Returns whether there is one.
    """
    (stage / DRIFT_REFERENCE).unlink(missing_ok=True)
    embeddings = np.load(stage / "user_embeddings.npy", mmap_mode="r", allow_pickle=False)
    if len(embeddings) < least_users:
        return False
    assigned = pl.read_parquet(stage / "assignments.parquet")
    found = reference_of(
        normalised(segment_part(embeddings, item_dim)),
        assigned["distance"].to_numpy(),
        event_counts,
        None if assigned["confidence"].has_nulls() else assigned["confident"].to_numpy(),
        least_users,
    )
    write_atomically(stage / DRIFT_REFERENCE, found.model_dump_json() + "\n")
    return True


def reference_of(
    points: NDArray[np.float64],
    distances: NDArray[np.floating],
    event_counts: NDArray[np.int64],
    confident: NDArray[np.bool_] | None,
    least_users: int,
) -> DriftReference:
    """The reference of users whose embeddings, of length 1, are `points` (U, E); the rest is (U,)."""
    edges = _edges(distances, least_users)
    center, directions, variances = _directions(points)
    counts = np.bincount(np.searchsorted(edges, distances), minlength=len(edges) + 1)
    return DriftReference(
        user_count=len(points),
        mean_events=float(event_counts.mean()),
        mean_distance=float(distances.mean()),
        distance_edges=tuple(edges.tolist()),
        distance_users=tuple(counts.tolist()),
        doubtful_users=None if confident is None else int((~confident).sum()),
        center=tuple(center.tolist()),
        directions=tuple(tuple(row) for row in directions.round(_DIGITS).tolist()),
        variances=tuple(variances.tolist()),
    )


def read_reference(directory: Path, release: Release) -> DriftReference:
    """The reference in the release's directory. Raises RunError where there is none that can be read."""
    if DRIFT_REFERENCE not in release.manifest.files:
        raise RunError(
            f"Release {release.number} has no {DRIFT_REFERENCE}, since it was made of fewer users than "
            "`min_segment_size`. Prepare a log of more users, publish it with `segrec-train publish`, and compare with "
            "that release."
        )
    try:
        return DriftReference.model_validate_json((directory / DRIFT_REFERENCE).read_bytes())
    except ValidationError as error:
        first = error.errors()[0]["msg"]
        raise RunError(f"{directory / DRIFT_REFERENCE} cannot be read: {first}. Publish the release again.") from error


def _edges(distances: NDArray[np.floating], least_users: int) -> NDArray[np.float64]:
    """Edges between bins of about as many distances each, `DISTANCE_BINS` at most.

    Bins hold `least_users` or more, so that there are fewer where users are few or many distances equal.
    """
    rising = np.sort(distances.astype(np.float64))
    shares = np.arange(1, DISTANCE_BINS) / DISTANCE_BINS
    kept: list[float] = []
    below = 0
    for edge in np.quantile(rising, shares, method="inverted_cdf") + _BEYOND:
        through = int(np.searchsorted(rising, edge))
        if through - below >= least_users and len(rising) - through >= least_users:
            kept.append(float(edge))
            below = through
    return np.array(kept)


def _directions(
    points: NDArray[np.float64],
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """The mean (E,) of points, the directions (P, E) of most variance, and the variances (P,)."""
    center = points.mean(0)
    covariance = np.zeros((len(center), len(center)))
    for start in range(0, len(points), _ROWS_AT_ONCE):
        centered = points[start : start + _ROWS_AT_ONCE] - center
        covariance += centered.T @ centered
    variances, vectors = np.linalg.eigh(covariance / max(len(points) - 1, 1))
    variances, vectors = variances[::-1], vectors[:, ::-1]
    through = np.cumsum(variances) / max(variances.sum(), np.finfo(float).tiny)
    kept = min(int(np.searchsorted(through, _VARIANCE_KEPT)) + 1, DIRECTIONS, len(points) // _USERS_PER_DIRECTION)
    kept = min(kept, int((variances > 1e-9).sum()))
    return center, vectors[:, :kept].T, variances[:kept]
