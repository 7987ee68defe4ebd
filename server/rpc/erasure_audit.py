"""Who erased whom, in the audit log of the model repository."""

import asyncio
import logging
from pathlib import Path

from server.access.control import current_caller
from server.adapters.ports import HistoryStore
from server.core.repository.audit import AuditEntry, append_audit

log = logging.getLogger(__name__)


class ErasureAudit:
    """Appends erasures to `audit.jsonl`; where the repository cannot be written, the server's log has them.

    The user is named by the mark that the store keeps: a hash under the store's key.
    """

    def __init__(self, store: HistoryStore, repository: Path) -> None:
        self._store = store
        self._repository = repository

    async def add(self, user_id: str, erased_event_count: int, peer: str) -> None:
        """Write down an erasure by the current caller. Raises `StoreUnavailable`."""
        mark = (await self._store.erasure_mark(user_id)).hex()
        details = {"user_mark": mark, "erased_event_count": erased_event_count}
        entry = AuditEntry(who=current_caller().name or f"a caller at {peer}", what="erase", release=0, details=details)
        try:
            await asyncio.to_thread(append_audit, self._repository, entry)
        except OSError as error:
            log.warning(
                "%s erased %d events of the user with mark %s; the audit in %s cannot be written: %s",
                entry.who,
                erased_event_count,
                mark,
                self._repository,
                error.strerror,
            )
