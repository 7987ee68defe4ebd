"""The user vectors on which a number of segments is judged: of whole histories, half histories, and the past."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from server.core.preprocessing import Preprocessing
from server.core.segments import normalised, segment_part
from training.data.sequences import (
    EventLog,
    held_out,
    one_a_user,
    positive_actions,
    random_half,
    read_sequences,
    sample_targets,
)
from training.ranking.hybrid import EmbedHistories
from training.segments.measures import Fitter, ValidationUsers
from training.segments.quality import popularity_targets

HALVED_USERS = 10_000
"""The largest number of users whose two half histories are embedded."""

VALIDATION_USERS = 10_000
"""The largest number of users whose validation targets are ranked."""


@dataclass(frozen=True, slots=True)
class VectorSets:
    """Float32 vectors of length 1: `points` (U, E) of whole histories, `validation` users before their targets, and
    `halves`, two arrays (H, E) of the same users' half histories.

    `validation` is None without targets, `halves` is None if fewer than two users have two events.
    """

    points: NDArray[np.float32]
    validation: ValidationUsers | None
    halves: tuple[NDArray[np.float32], NDArray[np.float32]] | None


@dataclass(frozen=True, slots=True)
class VectorSetsBuilder:
    """Builds `VectorSets`; `embed` gives whole user embeddings, whose first `item_dim` numbers rank items."""

    prepared: Path
    preprocessing: Preprocessing
    embed: EmbedHistories
    item_dim: int
    seed: int

    def build(self, log: EventLog, embeddings: NDArray[np.float32], item_count: int | None) -> VectorSets:
        """All sets; `embeddings` (U, D) are those of the log's users. Without an `item_count` no validation users."""
        validation = None if item_count is None else self._validation_users(item_count)
        return VectorSets(self._points(embeddings), validation, self._halves(log))

    def _points(self, embeddings: NDArray[np.float32]) -> NDArray[np.float32]:
        """The segment parts of user embeddings, of length 1."""
        return normalised(segment_part(embeddings, self.item_dim)).astype(np.float32)

    def _validation_users(self, item_count: int) -> ValidationUsers | None:
        """A sample of at most `VALIDATION_USERS` users before their validation targets; None without any."""
        log = read_sequences(self.prepared, self.preprocessing)
        positive = positive_actions(self.preprocessing)
        each = one_a_user(held_out(log, 2, positive), self.seed)
        held = sample_targets(each, VALIDATION_USERS, self.seed)
        if not len(held.rows):
            return None
        points = self._points(self.embed(log.histories(held.rows, held.ends, self.preprocessing.max_length)))
        targets = popularity_targets(log, held, positive, item_count)
        return ValidationUsers(points, targets, self.preprocessing.exclude_seen)

    def _halves(self, log: EventLog) -> tuple[NDArray[np.float32], NDArray[np.float32]] | None:
        """Two random halves of the events of at most `HALVED_USERS` users with two events or more."""
        candidates = np.flatnonzero(log.features.lengths > 1)
        if len(candidates) < 2:
            return None
        rows = candidates[Fitter(seed=self.seed).sample_rows(len(candidates), HALVED_USERS)]
        first_half = random_half(log, self.seed)
        first, second = (log.subset(half, rows, self.preprocessing).features for half in (first_half, ~first_half))
        return self._points(self.embed(first)), self._points(self.embed(second))
