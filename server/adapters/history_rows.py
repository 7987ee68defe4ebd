"""Packed history rows as the history stores read and write them; shared by all stores."""

import contextlib
import logging
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from server.adapters.ports import Recorded
from server.core.errors import StoreUnavailable
from server.core.history import EMPTY, Event, History, merge, merge_histories

log = logging.getLogger(__name__)


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
    """Like `read_row`, with None for a damaged row, so that one user does not fail a whole batch."""
    try:
        return read_row(row)
    except StoreUnavailable:
        return None


class RecordedRow(NamedTuple):
    """What `recorded_row` makes of events: the row to store, None without a change, and what became of the events."""

    row: bytes | None
    recorded: Recorded


def recorded_row(
    row: bytes | None, events: Sequence[Event], limit: int, revision: int, erased_ms: int | None
) -> RecordedRow:
    """Add recorded events to a stored row. Raises `StoreUnavailable` for a damaged row.

    `erased_ms` is the time of the user's erasure (milliseconds since the epoch), None for users who were not erased:
    events from before it are refused.
    """
    history = read_row(row)
    refused = () if erased_ms is None else tuple(i for i, event in enumerate(events) if event.timestamp < erased_ms)
    allowed = [event for i, event in enumerate(events) if i not in set(refused)] if refused else events
    merged = merge(history, allowed, limit, revision)
    too_old_count = len(allowed) - merged.stored_count - merged.duplicate_count
    recorded = Recorded(merged.stored_count, merged.duplicate_count, too_old_count, refused)
    return RecordedRow(None if merged.history is history else merged.history.row, recorded)


def loaded_row(row: bytes | None, added: History, limit: int, revision: int, erased_ms: int | None) -> bytes | None:
    """The row to store after a bulk load of `added`; None when the stored row is damaged or needs no change.

    Events from before the user's erasure (`erased_ms`, see `recorded_row`) are left out.
    """
    if erased_ms is not None:
        added = added.since(erased_ms)
    if not added:
        return None
    if row is None:
        return added.with_revision(revision).row
    try:
        history = read_row(row)
    except StoreUnavailable:
        return None
    merged = merge_histories(history, added, limit, revision)
    return None if merged is history else merged.row


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
