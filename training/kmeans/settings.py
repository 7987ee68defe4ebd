"""How K-means is run, and what an engine finds."""

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
        """The settings of a configuration."""
        return cls(segment.restarts, segment.max_iterations, segment.seed)


@dataclass(frozen=True, slots=True)
class Found:
    """The best restart of an engine: centroids (K, D), perhaps some without points, and its number of iterations.

    `inertia` is the engine's own sum of squared distances, good enough to compare restarts.
    """

    centroids: NDArray[np.floating]
    inertia: float
    iterations: int


def fixed_k(segment: SegmentSettings) -> int:
    """The number of segments in a configuration; the default where a sweep is to choose it."""
    return segment.k if isinstance(segment.k, int) else DEFAULT_K


def sample_of(points: NDArray[np.float32]) -> NDArray[np.float32]:
    """All points (N, D), or an evenly spread part of them where there are 200,000 or more."""
    return points[:: max(1, len(points) // _SAMPLE_ROWS)]


def allowed_shift(points: NDArray[np.float32]) -> float:
    """Sum of squared moves of the centroids below which a fit ends: scikit-learn's rule, for the other engines."""
    return _TOLERANCE * float(sample_of(points).var(axis=0, dtype=np.float64).mean())
