"""The answer for one user: the embedding with its segment, the history, and whether the answer is degraded."""

from enum import Enum, auto
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from server.core.history import History


class Embedded(NamedTuple):
    """A user embedding (D,) with its segment, and the number of events behind it.

    `embedding` is None when the release knows no event of the history.
    """

    embedding: NDArray[np.float32] | None
    used_count: int = 0
    ignored_count: int = 0
    segment_index: int = -1
    """Index of the nearest centroid; -1 without an embedding."""
    distance: float = 0.0
    runner_up_index: int = -1
    """Index of the second nearest centroid; with one centroid only, the nearest."""
    runner_up_distance: float = 0.0
    confidence: float | None = None
    """Probability that the user stays in this segment, 0 to 1; None for a release without calibration."""
    is_confident: bool = True
    """Whether `confidence` reaches the minimum of the release."""
    is_short: bool = False
    """Whether `used_count` is below the minimum of the release."""


class Degraded(Enum):
    """Why an answer is degraded; see the API's `DegradedReason`."""

    NO = auto()
    STALE_EMBEDDING = auto()
    ENCODER_UNAVAILABLE = auto()
    STORE_UNAVAILABLE = auto()
    RELEASE_NOT_LOADED = auto()
    """Triton answers, but has not loaded the release. Callers see STALE_EMBEDDING or ENCODER_UNAVAILABLE."""
    NOT_EXPLAINED = auto()
    """Only the items of the history are missing that explain the scores."""


PreparedSegment = tuple[str, bytes]
"""The label of the segment, empty without one, and the response of `Segment` that shows this label, as it is sent."""


class Answer(NamedTuple):
    """The embedding and the history of one user, and why they are degraded."""

    embedded: Embedded
    history: History
    degraded: Degraded = Degraded.NO
    tells_of_release: bool = True
    """Whether the answer says something about its release; False where another part of the system failed."""
    prepared: PreparedSegment | None = None
    """The response of `Segment`, if it was kept with the embedding."""
