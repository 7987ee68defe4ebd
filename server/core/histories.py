"""Many stored histories as rows of bytes and arrays: no object for each of them on the way to the encoder."""

import logging
from collections.abc import Iterable, Iterator, Sequence
from typing import overload

import numpy as np
from numpy.typing import NDArray

from server.core.history import EMPTY, EVENT_BYTES, EVENTS_START, TIMESTAMP, History, column_of

log = logging.getLogger(__name__)

DAMAGED = b""
"""Stands for a row that cannot be read."""


class Histories(Sequence[History | None]):
    """B histories, None for a damaged one. A `History` is made only where one is asked for.

    `rows` are the packed rows, checked, that of `EMPTY` for a user without events, and `DAMAGED`. `counts` int64 (B,)
    are their numbers of events.
    """

    __slots__ = ("counts", "rows")

    def __init__(self, rows: list[bytes], counts: NDArray[np.int64]) -> None:
        """Rows that are known to be good; see `of` and `read`."""
        self.rows = rows
        self.counts = counts

    @classmethod
    def of(cls, histories: Iterable[History | None]) -> "Histories":
        """The rows of histories."""
        if isinstance(histories, Histories):
            return histories
        listed = list(histories)
        rows = [DAMAGED if history is None else history.row for history in listed]
        return cls(rows, np.array([len(history or ()) for history in listed], np.int64))

    @classmethod
    def read(cls, stored: Iterable[bytes | None]) -> "Histories":
        """Check rows as a store holds them, None for a user without one. A damaged row is logged."""
        rows: list[bytes] = []
        counts: list[int] = []
        for row in stored:
            if row is None:
                rows.append(EMPTY.row)
                counts.append(0)
                continue
            try:
                counts.append(History.check(row)[0])
                rows.append(row)
            except ValueError as error:
                log.error("a stored history is damaged: %s", error)
                rows.append(DAMAGED)
                counts.append(0)
        return cls(rows, np.array(counts, np.int64))

    @classmethod
    def joined(cls, parts: Sequence["Histories"]) -> "Histories":
        """The histories of all parts, one part after the other."""
        counts = np.concatenate([np.zeros(0, np.int64), *(part.counts for part in parts)])
        return cls([row for part in parts for row in part.rows], counts)

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, place: int) -> History | None: ...

    @overload
    def __getitem__(self, place: slice) -> "Histories": ...

    def __getitem__(self, place: int | slice) -> "History | Histories | None":
        if isinstance(place, slice):
            return Histories(self.rows[place], self.counts[place])
        row = self.rows[place]
        return History.trusted(row) if row else None

    def __iter__(self) -> Iterator[History | None]:
        return (History.trusted(row) if row else None for row in self.rows)

    def newest(self, counts: NDArray[np.int64]) -> bytes:
        """The numbers of the newest `counts` (B,) events of each history, joined, for `column_of`."""
        ends = EVENTS_START + EVENT_BYTES * self.counts
        starts = ends - EVENT_BYTES * np.minimum(counts, self.counts)
        return b"".join(
            [row[start:end] for row, start, end in zip(self.rows, starts.tolist(), ends.tolist(), strict=True)]
        )

    def counts_with_ties(self, count: int) -> NDArray[np.int64]:
        """How many events the newest `count` are of each history (B,), with older events tied with the oldest."""
        counts = np.minimum(self.counts, count)
        for place in np.flatnonzero(self.counts > count).tolist():
            counts[place] = _count_with_ties(self.rows[place], int(self.counts[place]), count)
        return counts


def _count_with_ties(row: bytes, event_count: int, count: int) -> int:
    """See `Histories.counts_with_ties`; `event_count` is above `count`."""
    # Two adjacent time stamps, at the start of each event's bytes, are compared without a NumPy call.
    edge = EVENTS_START + EVENT_BYTES * (event_count - count)
    if row[edge : edge + 8] != row[edge - EVENT_BYTES : edge - EVENT_BYTES + 8]:
        return count
    timestamps = column_of(row[EVENTS_START : EVENTS_START + EVENT_BYTES * event_count], TIMESTAMP)
    return int(event_count - np.searchsorted(timestamps, timestamps[-count]))
