"""Users with their embeddings, segments and events, as a server with the release of a run would see them."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Self

import numpy as np
import polars as pl
from numpy.typing import NDArray

from server.core.own_items import PastEvents
from server.core.ranking.query import Subject
from server.core.release import Release
from server.core.segments import next_item_part
from training.data.account import Account
from training.data.reading.sources import Log
from training.model.onnx_inference import embed
from training.runs import Progress, Run, no_progress
from training.segments.placement import histories_of, past_events_of, place_embeddings, read_events

VECTORS_AT_ONCE = 65_536
"""Users whose vectors are written at once."""

_NO_EVENTS = PastEvents(np.empty(0, np.int64), np.empty(0, np.float32), np.empty(0, np.int64), np.empty(0, np.bool_))


@dataclass(frozen=True)
class OfflineUsers:
    """U users: their ids, the number of events of each, `embeddings` (U, D), and `segment_ids` (U,).

    `events` are those of all users, one user after the other in the order of `user_ids`, in time order. A user of whose
    events the release knows none has segment 0, and an embedding that means nothing.
    """

    user_ids: pl.Series
    event_counts: NDArray[np.int64]
    events: pl.LazyFrame
    embeddings: NDArray[np.float32]
    segment_ids: NDArray[np.int64]

    @classmethod
    def of_run(cls, run: Run) -> Self:
        """All users of the run's log; their events and embeddings stay on disk. Raises RunError without segments."""
        segmented = run.require("segment")
        events = pl.scan_parquet(run.require("prepare") / "events.parquet")
        counts = events.select(pl.col("user_id").rle().struct.field("len")).collect()["len"].to_numpy()
        placed = pl.read_parquet(segmented / "assignments.parquet", columns=["user_id", "segment_id"])
        embeddings = np.load(segmented / "user_embeddings.npy", mmap_mode="r", allow_pickle=False)
        return cls(placed["user_id"], counts.astype(np.int64), events, embeddings, placed["segment_id"].to_numpy())

    @classmethod
    def of_log(cls, run: Run, log: Log, release: Release, progress: Progress = no_progress) -> tuple[Self, Account]:
        """The users of another log, cleaned with the run's settings, and the account of the log.

        Raises LogError for an unusable log.
        """
        read = read_events(log, run.config(), release)
        events = read.events
        histories = histories_of(events.lazy(), release)
        model = run.require("export") / "model.onnx"
        embeddings = embed(model, histories.features, release.preprocessing.max_length, progress)
        placed = place_embeddings(histories, release, embeddings)
        segment_ids = np.zeros(len(histories.users), np.int64)
        segment_ids[placed.rows] = np.array([one.segment_id for one in release.segments])[placed.nearest.first]
        counts = events.select(pl.col("user_id").rle().struct.field("len"))["len"].to_numpy()
        users = cls(histories.users, counts.astype(np.int64), events.lazy(), embeddings, segment_ids)
        return users, read.account

    @property
    def unknown_count(self) -> int:
        """Number of users of whose events the release knows none."""
        return int((self.segment_ids == 0).sum())

    @cached_property
    def _row_by_id(self) -> dict[str, int]:
        return {user_id: row for row, user_id in enumerate(self.user_ids)}

    def only(self, user_ids: Iterable[str]) -> Self:
        """The users with these ids, in the order of all; ids of no user are left out."""
        rows = np.array(sorted({self._row_by_id[one] for one in user_ids if one in self._row_by_id}), np.intp)
        chosen = self.user_ids.gather(rows)
        events = self.events.filter(pl.col("user_id").is_in(chosen.implode())).collect()
        return type(self)(chosen, self.event_counts[rows], events.lazy(), self.embeddings[rows], self.segment_ids[rows])

    def parts(self, size: int, *, with_events: bool = True) -> Iterator["OfflineUsers"]:
        """The users in parts of at most `size`, of which only one at a time is in memory."""
        ends = np.cumsum(self.event_counts)
        starts = ends - self.event_counts
        for first in range(0, len(self.user_ids), size):
            part = slice(first, min(first + size, len(self.user_ids)))
            offset, length = int(starts[part][0]), int(self.event_counts[part].sum())
            events = self.events.slice(offset, length)
            yield OfflineUsers(
                self.user_ids[part],
                self.event_counts[part],
                events.collect().lazy() if with_events else events,
                np.array(self.embeddings[part]),
                self.segment_ids[part],
            )

    def vectors(self) -> pl.DataFrame:
        """`user_id` and the whole `embedding` of the users whose events the release knows."""
        known = self.segment_ids > 0
        embeddings = np.ascontiguousarray(self.embeddings[known])
        kind = pl.Array(pl.Float32, embeddings.shape[1])
        return pl.DataFrame(
            {"user_id": self.user_ids.filter(pl.Series(known)), "embedding": pl.Series(embeddings, dtype=kind)}
        )

    def subjects(self, release: Release) -> list[Subject]:
        """The users as the ranking takes them."""
        if not len(self.user_ids):
            return []
        vectors = np.ascontiguousarray(next_item_part(self.embeddings, release.manifest.embedding_dim))
        past = past_events_of(self.events.collect(), release)
        columns = zip(vectors, self.segment_ids.tolist(), past, strict=True)
        return [Subject(vector if segment_id else None, segment_id, events) for vector, segment_id, events in columns]


def vector_parts(users: OfflineUsers, progress: Progress = no_progress) -> Iterator[pl.DataFrame]:
    """`OfflineUsers.vectors` in parts, of which only one at a time is in memory."""
    count, done = len(users.user_ids), 0
    for part in users.parts(VECTORS_AT_ONCE, with_events=False):
        done += len(part.user_ids)
        progress("writing vectors", done, count)
        yield part.vectors()


def unknown_user() -> Subject:
    """A user without events."""
    return Subject(None, 0, _NO_EVENTS)
