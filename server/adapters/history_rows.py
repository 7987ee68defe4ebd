"""Packed history rows as the history stores read and write them; shared by all stores."""

import hashlib
import logging

from server.core.errors import StoreUnavailable
from server.core.history import EMPTY, History, merge_histories

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
            "the stored history is damaged; erase this user with EraseUser and record the events again"
        ) from error


def read_row_or_none(row: bytes | None) -> History | None:
    """Like `read_row`, with None for a damaged row, so that one user does not fail a whole batch."""
    try:
        return read_row(row)
    except StoreUnavailable:
        return None


def loaded_row(row: bytes | None, added: History, limit: int, revision: int) -> bytes | None:
    """The row to store after a bulk load of `added`; None when the stored row is damaged or needs no change."""
    if row is None:
        return added.with_revision(revision).row
    try:
        history = read_row(row)
    except StoreUnavailable:
        return None
    merged = merge_histories(history, added, limit, revision)
    return None if merged is history else merged.row


def erasure_mark(user_id: str) -> bytes:
    """Hash of an erased user's id (16 bytes). Stores keep it, so that no bulk load restores the user."""
    return hashlib.blake2b(user_id.encode(), digest_size=16, person=b"segrec.erased").digest()
