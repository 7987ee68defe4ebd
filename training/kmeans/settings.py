"""K-means settings, and the result of an engine."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from training.config import SegmentSettings

DEFAULT_K = 8

_TOLERANCE = 1e-4
_SAMPLE_ROWS = 100_000


@dataclass(frozen=True, slots=True)
class KMeansSettings:
    """The fields of `[segment]` that every engine follows."""

    restarts: int = 10
    max_iterations: int = 300
    seed: int = 0

    @classmethod
    def of(cls, segment: SegmentSettings) -> "KMeansSettings":
        """The settings of a `[segment]` section."""
        return cls(segment.restarts, segment.max_iterations, segment.seed)


@dataclass(frozen=True, slots=True)
class EngineFit:
    """The best restart of an engine: centroids (K, D), of which some may have no points, and its iterations.

    `inertia` is the engine's own sum of squared distances; it only serves to compare restarts.
    """

    centroids: NDArray[np.floating]
    inertia: float
    iterations: int


def fixed_k(segment: SegmentSettings) -> int:
    """The number of segments in a configuration; `DEFAULT_K` if `k` is `auto`."""
    return segment.k if isinstance(segment.k, int) else DEFAULT_K


def sample_of(points: NDArray[np.float32]) -> NDArray[np.float32]:
    """All points (N, D), or every n-th point if there are 200,000 or more."""
    return points[:: max(1, len(points) // _SAMPLE_ROWS)]


def allowed_shift(points: NDArray[np.float32]) -> float:
    """Convergence limit: a fit ends once the squared centroid moves sum to less. This is scikit-learn's rule."""
    return _TOLERANCE * float(sample_of(points).var(axis=0, dtype=np.float64).mean())
