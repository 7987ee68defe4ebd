"""What K-means is asked for, and what an engine hands back."""

from dataclasses import dataclass, fields, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from training.config import SegmentSettings

DEFAULT_K = 8
Start = Literal["k-means++", "random", "previous"]


@dataclass(frozen=True, slots=True)
class KMeansSettings:
    """How K-means is run; the fields are those of `[segment]`, and mean the same for every engine.

    `tolerance` is relative to the mean variance of a dimension: a run ends where the squared moves of its centroids
    sum to no more than that. `oversampling` and `rows_at_once` matter to Dask and cuML only.
    """

    start: Start = "k-means++"
    restarts: int = 10
    max_iterations: int = 300
    tolerance: float = 1e-4
    oversampling: float = 2.0
    rows_at_once: int | None = None
    seed: int = 0

    @classmethod
    def of(cls, segment: SegmentSettings) -> "KMeansSettings":
        """Those of a configuration."""
        return cls(**{field.name: getattr(segment, field.name) for field in fields(cls)})

    def afresh(self) -> "KMeansSettings":
        """The same, but from no earlier centroids: for points that have none."""
        return replace(self, start="k-means++") if self.start == "previous" else self


def fixed_k(segment: SegmentSettings) -> int:
    """The number of segments of a configuration, and the default one where it is left to be chosen."""
    return segment.k if isinstance(segment.k, int) else DEFAULT_K


@dataclass(frozen=True, slots=True)
class Found:
    """The best of an engine's restarts: centroids (K, D), some perhaps without points, and how it came to them.

    `inertia` is the engine's own sum, good enough to compare restarts. `history` is the inertia at the beginning of
    each iteration, and `shifts` the sum of the squared moves of the centroids in it; an engine that does not tell
    them leaves them empty.
    """

    centroids: NDArray[np.floating]
    inertia: float
    iterations: int
    history: tuple[float, ...] = ()
    shifts: tuple[float, ...] = ()
