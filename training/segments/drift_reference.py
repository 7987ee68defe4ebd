"""`drift_reference.json`: figures of a release's users, to which `segrec-train drift` compares later users.

The file holds only figures over groups of at least `min_segment_size` users, so that it identifies no user: a histogram
of distances to the centroids, the number of users without a confident segment, and the mean embedding with the
directions of most variance.
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
"""The largest number of directions that are kept."""

_VARIANCE_KEPT = 0.99
_USERS_PER_DIRECTION = 10
_EDGE_OFFSET = 5e-5
"""The distance from a user to the edge of the user's bin. Many users can have the same short history; the last digits
of their embeddings must not spread them over two bins."""

_DIRECTION_DIGITS = 7
_ROWS_AT_ONCE = 65_536


class DriftReference(FrozenModel):
    """The users of a release when it was trained: a histogram of B bins, and P directions of the segment parts (E)."""

    user_count: int = Field(ge=1)
    mean_events: float = Field(gt=0, description="Mean number of events that the encoder read per user.")
    mean_distance: float = Field(ge=0, description="Mean distance to the nearest centroid.")
    distance_edges: tuple[float, ...] = Field(description="Edges between the bins, rising, (B - 1,).")
    distance_users: tuple[int, ...] = Field(min_length=1, description="Users in each bin, the nearest first, (B,).")
    doubtful_users: int | None = Field(ge=0, description="Users below `min_confidence`; None without a calibration.")
    center: tuple[float, ...] = Field(min_length=1, description="Mean embedding, (E,).")
    directions: tuple[tuple[float, ...], ...] = Field(description="Unit vectors, most variance first, (P, E).")
    variances: tuple[float, ...] = Field(description="Variances along the directions, (P,).")

    @model_validator(mode="after")
    def _shapes_fit(self) -> Self:
        if len(self.distance_users) != len(self.distance_edges) + 1:
            raise ValueError("the number of distance bins does not fit the number of edges")
        if len(self.directions) != len(self.variances) or {len(row) for row in self.directions} - {len(self.center)}:
            raise ValueError("the lengths of directions, variances and center do not fit")
        return self

    def histogram(self, distances: NDArray[np.floating]) -> NDArray[np.int64]:
        """The number of these distances (U,) in each bin, (B,)."""
        bins = np.searchsorted(np.array(self.distance_edges), distances)
        return np.bincount(bins, minlength=len(self.distance_users))


def write_reference(stage: Path, item_dim: int, event_counts: NDArray[np.int64], min_users: int) -> bool:
    """Write the reference from the stage's `user_embeddings.npy` and `assignments.parquet`.

    `event_counts` (U,) are the events that the encoder read per user. A stage with fewer than `min_users` users gets no
    reference, and the result is false. Each distance bin has at least `min_users` users.
    """
    (stage / DRIFT_REFERENCE).unlink(missing_ok=True)
    embeddings = np.load(stage / "user_embeddings.npy", mmap_mode="r", allow_pickle=False)
    if len(embeddings) < min_users:
        return False
    assigned = pl.read_parquet(stage / "assignments.parquet")
    reference = reference_of(
        normalised(segment_part(embeddings, item_dim)),
        assigned["distance"].to_numpy(),
        event_counts,
        None if assigned["confidence"].has_nulls() else assigned["confident"].to_numpy(),
        min_users,
    )
    write_atomically(stage / DRIFT_REFERENCE, reference.model_dump_json() + "\n")
    return True


def reference_of(
    points: NDArray[np.float64],
    distances: NDArray[np.floating],
    event_counts: NDArray[np.int64],
    confident: NDArray[np.bool_] | None,
    min_users: int,
) -> DriftReference:
    """The reference of users with embeddings `points` (U, E) of length 1; the other arrays are (U,)."""
    edges = _edges(distances, min_users)
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
        directions=tuple(tuple(row) for row in directions.round(_DIRECTION_DIGITS).tolist()),
        variances=tuple(variances.tolist()),
    )


def read_reference(directory: Path, release: Release) -> DriftReference:
    """The reference in the release's directory. Raises RunError if the file is missing or cannot be read."""
    if DRIFT_REFERENCE not in release.manifest.files:
        raise RunError(
            f"Release {release.number} has no {DRIFT_REFERENCE}, since its log has fewer users than "
            "`min_segment_size`. Prepare a log with more users, publish it with `segrec-train publish`, and compare "
            "with that release."
        )
    try:
        return DriftReference.model_validate_json((directory / DRIFT_REFERENCE).read_bytes())
    except ValidationError as error:
        first = error.errors()[0]["msg"]
        raise RunError(f"{directory / DRIFT_REFERENCE} cannot be read: {first}. Publish the release again.") from error


def _edges(distances: NDArray[np.floating], min_users: int) -> NDArray[np.float64]:
    """Edges of at most `DISTANCE_BINS` bins with about the same number of distances.

    Each bin has at least `min_users` users, so there are fewer bins for few users or for many equal distances.
    """
    rising = np.sort(distances.astype(np.float64))
    shares = np.arange(1, DISTANCE_BINS) / DISTANCE_BINS
    edges: list[float] = []
    bin_start = 0
    for edge in np.quantile(rising, shares, method="inverted_cdf") + _EDGE_OFFSET:
        bin_end = int(np.searchsorted(rising, edge))
        if bin_end - bin_start >= min_users and len(rising) - bin_end >= min_users:
            edges.append(float(edge))
            bin_start = bin_end
    return np.array(edges)


def _directions(
    points: NDArray[np.float64],
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """The mean (E,) of points (U, E), the principal components (P, E), and the variances along them (P,)."""
    center = points.mean(0)
    covariance = np.zeros((len(center), len(center)))
    for start in range(0, len(points), _ROWS_AT_ONCE):
        centered = points[start : start + _ROWS_AT_ONCE] - center
        covariance += centered.T @ centered
    variances, vectors = np.linalg.eigh(covariance / max(len(points) - 1, 1))
    variances, vectors = variances[::-1], vectors[:, ::-1]
    explained = np.cumsum(variances) / max(variances.sum(), np.finfo(float).tiny)
    count = min(int(np.searchsorted(explained, _VARIANCE_KEPT)) + 1, DIRECTIONS, len(points) // _USERS_PER_DIRECTION)
    count = min(count, int((variances > 1e-9).sum()))
    return center, vectors[:, :count].T, variances[:count]
