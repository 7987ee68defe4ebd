"""What one answer knows about its user: the embedding with its segment, the history, why it is degraded."""

from enum import Enum, auto
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from server.core.history import History


class Embedded(NamedTuple):
    """A user embedding (D,), None when the release knows no event of the history; and what it was made from."""

    embedding: NDArray[np.float32] | None
    used_count: int = 0
    ignored_count: int = 0
    segment_index: int = -1
    """Place of the nearest centroid; -1 without embedding."""
    distance: float = 0.0
    runner_up_index: int = -1
    """Place of the second nearest centroid; the nearest itself where there is no other."""
    runner_up_distance: float = 0.0
    confidence: float | None = None
    """How sure the segment is, 0 to 1; None for a release without a calibration."""
    is_confident: bool = True
    """Whether that is as much as the release asks for."""
    is_short: bool = False
    """Whether fewer events were used than the release asks for."""


class Degraded(Enum):
    """Why an answer is less than it could be; see the API's `DegradedReason`."""

    NO = auto()
    STALE_EMBEDDING = auto()
    ENCODER_UNAVAILABLE = auto()
    STORE_UNAVAILABLE = auto()


class Answer(NamedTuple):
    """What is known of one user: the embedding with its segment, the history, and whether that is less than all."""

    embedded: Embedded
    history: History
    degraded: Degraded = Degraded.NO
