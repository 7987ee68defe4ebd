"""What numbers of segments are judged on: users as they are, before their validation targets, and cut in halves."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from server.core.features import Features
from server.core.preprocessing import Preprocessing
from server.core.segments import normalised, segment_part
from training.data.sequences import EventLog, held_out, positive_actions, random_half, read_sequences, sample_targets
from training.segments.measures import Fitter, Past
from training.segments.quality import targets_of

HALVED_USERS = 10_000
"""Users whose histories are cut in two, and embedded twice."""

ASKED_USERS = 10_000
"""Users whose next item is asked for."""

Encode = Callable[[Features], NDArray[np.float32]]
"""Whole user embeddings of B histories, (B, D) or longer."""


@dataclass(frozen=True, slots=True)
class UserViews:
    """All vectors are float32 of length 1: `points` (U, E) of whole histories, the `past` before validation targets,
    None without any, and `halves` (H, E) of the same users' events, None where fewer than two users have two.
    """

    points: NDArray[np.float32]
    past: Past | None
    halves: tuple[NDArray[np.float32], NDArray[np.float32]] | None


@dataclass(frozen=True, slots=True)
class ViewBuilder:
    """How the views of `UserViews` are made: `encode` embeds histories, whose first `item_dim` numbers rank items."""

    prepared: Path
    preprocessing: Preprocessing
    encode: Encode
    item_dim: int
    seed: int

    def points(self, embeddings: NDArray[np.float32]) -> NDArray[np.float32]:
        """What segments are made of, of length 1."""
        return normalised(segment_part(embeddings, self.item_dim)).astype(np.float32)

    def views(self, log: EventLog, embeddings: NDArray[np.float32], item_count: int | None) -> UserViews:
        """All views; `embeddings` (U, D) are those of the log's users. Without an `item_count` there is no past."""
        past = None if item_count is None else self.past(item_count)
        return UserViews(self.points(embeddings), past, self.halves(log))

    def past(self, item_count: int) -> Past | None:
        """Users before their validation targets: at most `ASKED_USERS`, drawn."""
        log = read_sequences(self.prepared, self.preprocessing)
        positive = positive_actions(self.preprocessing)
        held = sample_targets(held_out(log, 2, positive), ASKED_USERS, self.seed)
        if not len(held.rows):
            return None
        points = self.points(self.encode(log.histories(held.rows, held.ends, self.preprocessing.max_length)))
        return Past(points, targets_of(log, held, positive, item_count), self.preprocessing.exclude_seen)

    def halves(self, log: EventLog) -> tuple[NDArray[np.float32], NDArray[np.float32]] | None:
        """Two random halves of the events of users who have two: at most `HALVED_USERS`, drawn."""
        everyone = np.flatnonzero(log.features.lengths > 1)
        if len(everyone) < 2:
            return None
        rows = everyone[Fitter(seed=self.seed).drawn(len(everyone), HALVED_USERS)]
        one = random_half(log, self.seed)
        parts = [log.subset(kept, rows, self.preprocessing).features for kept in (one, ~one)]
        return self.points(self.encode(parts[0])), self.points(self.encode(parts[1]))
