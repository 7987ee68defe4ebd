"""`audit.jsonl` of the model repository: one line per publication, change of traffic, roll-back, prune and erasure."""

import errno
import fcntl
import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from server.core.frozen_model import FrozenModel

AUDIT = "audit.jsonl"

AuditKind = Literal["publish", "traffic", "rollback", "guard", "prune", "erase", "rules"]


class AuditEntry(FrozenModel):
    """Who did what to which release (0 for none), when and why; `details` has figures and states of the action."""

    time: datetime = Field(default_factory=lambda: datetime.now(UTC))
    who: str
    what: AuditKind
    release: int = Field(ge=0)
    reason: str = ""
    details: dict[str, Any] = Field(default_factory=dict)


def append_audit(repository: Path, entry: AuditEntry) -> None:
    """Append a line durably, whole or not at all; concurrent writers wait for each other. Raises OSError.

    Existing lines never change. After a line that a crash cut off, the new entry starts on its own line.
    """
    line = entry.model_dump_json().encode() + b"\n"
    descriptor = os.open(repository / AUDIT, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        size = os.fstat(descriptor).st_size
        is_cut = size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"
        line = b"\n" + line if is_cut else line
        if os.write(descriptor, line) < len(line):  # a full disk may write a part without an error
            os.ftruncate(descriptor, size)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_audit(repository: Path) -> list[AuditEntry]:
    """All entries, oldest first. Skips a line that a crash cut off. Raises OSError."""
    try:
        lines = (repository / AUDIT).read_bytes().splitlines()
    except FileNotFoundError:
        return []
    entries = []
    for line in lines:
        try:
            entries.append(AuditEntry.model_validate(json.loads(line)))
        except (ValueError, ValidationError):
            continue
    return entries
