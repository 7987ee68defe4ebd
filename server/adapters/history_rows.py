"""Packed history rows as the history stores read and write them; shared by all stores."""

import contextlib
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from server.adapters.ports import Recorded
from server.core.errors import StoreUnavailable
from server.core.histories import Histories
from server.core.history import EMPTY, Event, History, merge, merge_histories, oldest_timestamp

log = logging.getLogger(__name__)

_DAY_MS = 86_400_000
_VIEW_REVISION_BIT = 44  # counted revisions stay below
_REVISION_MASK = (1 << 63) - 1


class Retention:
    """How long events are kept, counted from their time stamps. Without a number of days they are kept for ever."""

    def __init__(self, days: int | None, clock: Callable[[], float]) -> None:
        """`clock` gives seconds since the epoch."""
        self._clock = clock
        self.milliseconds = None if days is None else days * _DAY_MS

    @property
    def oldest_ms(self) -> int | None:
        """The time stamp of the oldest event that is kept now; None where all are."""
        return None if self.milliseconds is None else int(self._clock() * 1000) - self.milliseconds

    def view(self, history: History) -> History:
        """The events that are kept, as a history with a revision of its own where some are not; `EMPTY` without any."""
        oldest_ms = self.oldest_ms
        if oldest_ms is None:
            return history
        oldest = oldest_timestamp(history.row)
        if oldest is None or oldest >= oldest_ms:
            return history
        kept = history.since(oldest_ms)
        if not kept:
            return EMPTY
        dropped_count = len(history) - len(kept)
        return kept.with_revision((kept.revision + (dropped_count << _VIEW_REVISION_BIT)) & _REVISION_MASK)

    def views(self, histories: Histories) -> Histories:
        """`view` of each history; the histories themselves without a number of days."""
        oldest_ms = self.oldest_ms
        if oldest_ms is None:
            return histories
        times = map(oldest_timestamp, histories.rows)
        old = [place for place, oldest in enumerate(times) if oldest is not None and oldest < oldest_ms]
        if not old:
            return histories
        views = list(histories)
        for place in old:
            views[place] = self.view(History.trusted(histories.rows[place]))
        return Histories.of(views)


class Kept(NamedTuple):
    """What a store keeps of a user: the newest events, not from before `oldest_ms` and not from before `erased_ms`.

    Both times are milliseconds since the epoch; None is no bound.
    """

    limit: int
    oldest_ms: int | None
    erased_ms: int | None


def read_row(row: bytes | None) -> History:
    """The history in a row; `EMPTY` for None. Logs a damaged row and raises `StoreUnavailable`."""
    if row is None:
        return EMPTY
    try:
        return History(row)
    except ValueError as error:
        log.error("a stored history is damaged: %s", error)
        raise StoreUnavailable(
            "the stored history is damaged; restore a backup with `segrec-store restore`, or erase this user with "
            "EraseUser and record the events again"
        ) from error


def read_row_or_none(row: bytes | None) -> History | None:
    """Like `read_row`, with None for a damaged row."""
    try:
        return read_row(row)
    except StoreUnavailable:
        return None


class RecordedRow(NamedTuple):
    """What `recorded_row` makes of events: the row to store, None without a change, and what became of the events."""

    row: bytes | None
    recorded: Recorded


def recorded_row(row: bytes | None, events: Sequence[Event], kept: Kept, revision: int) -> RecordedRow:
    """Add recorded events to a stored row. Raises `StoreUnavailable` for a damaged row.

    Events from before the user's erasure are refused; those beyond the limits of `kept` are too old. Stored events
    beyond them are dropped where something is added.
    """
    history, erased_ms = read_row(row), kept.erased_ms
    refused = () if erased_ms is None else tuple(i for i, event in enumerate(events) if event.timestamp < erased_ms)
    allowed = [event for i, event in enumerate(events) if i not in set(refused)] if refused else events
    young: Sequence[Event] = allowed
    if kept.oldest_ms is not None:
        history = history.since(kept.oldest_ms)
        young = [event for event in allowed if event.timestamp >= kept.oldest_ms]
    merged = merge(history, young, kept.limit, revision)
    too_old_count = len(allowed) - merged.stored_count - merged.duplicate_count
    recorded = Recorded(merged.stored_count, merged.duplicate_count, too_old_count, refused)
    return RecordedRow(None if merged.history is history else merged.history.row, recorded)


def loaded_row(row: bytes | None, added: History, kept: Kept, revision: int) -> bytes | None:
    """The row to store after a bulk load of `added`; None when the stored row is damaged or needs no change.

    Events beyond the limits of `kept` are left out.
    """
    oldest_ms = max((time for time in (kept.oldest_ms, kept.erased_ms) if time is not None), default=None)
    if oldest_ms is not None:
        added = added.since(oldest_ms)
    if not added:
        return None
    if row is None:
        return added.with_revision(revision).row
    try:
        history = read_row(row)
    except StoreUnavailable:
        return None
    if kept.oldest_ms is not None:
        history = history.since(kept.oldest_ms)
    merged = merge_histories(history, added, kept.limit, revision)
    return None if merged is history else merged.row


def swept_row(row: bytes, oldest_ms: int, revision: int) -> bytes | None:
    """The row without events from before `oldest_ms`: itself where nothing changes, None where no event is left.

    A damaged row stays as it is.
    """
    oldest = oldest_timestamp(row)
    if oldest is None or oldest >= oldest_ms:
        return row
    try:
        kept = History(row).since(oldest_ms)
    except ValueError:
        return row
    return kept.with_revision(revision).row if kept else None


class WriteHealth:
    """Leaves one line in the log when writes begin to fail, and one when they succeed again."""

    def __init__(self) -> None:
        self._is_failing = False

    def report(self, failure: StoreUnavailable | None) -> None:
        """Take the outcome of a write; None is success."""
        if failure is not None and not self._is_failing:
            log.error("writes to the history store fail from now on: %s", failure)
        elif failure is None and self._is_failing:
            log.warning("writes to the history store succeed again")
        self._is_failing = failure is not None

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """Report the outcome of the block, which is a write."""
        try:
            yield
        except StoreUnavailable as failure:
            self.report(failure)
            raise
        self.report(None)
