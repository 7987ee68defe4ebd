"""`audit.jsonl` of the model repository: a line for each push, change of traffic, roll-back and prune."""

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

What = Literal["publish", "traffic", "rollback", "guard", "prune"]


class AuditEntry(FrozenModel):
    """Who did what to which release, when and why; `details` are figures and states that belong to it."""

    time: datetime = Field(default_factory=lambda: datetime.now(UTC))
    who: str
    what: What
    release: int = Field(ge=0)
    reason: str = ""
    details: dict[str, Any] = Field(default_factory=dict)


def append_audit(repository: Path, entry: AuditEntry) -> None:
    """Add a line, durably and whole or not at all; several who write at once take turns. Raises OSError.

    What is there is never changed; after a line that was cut off by a crash a new one begins.
    """
    line = entry.model_dump_json().encode() + b"\n"
    descriptor = os.open(repository / AUDIT, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        size = os.fstat(descriptor).st_size
        is_cut = size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"
        line = b"\n" + line if is_cut else line
        if os.write(descriptor, line) < len(line):  # a disk that is full takes a part without an error
            os.ftruncate(descriptor, size)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_audit(repository: Path) -> list[AuditEntry]:
    """All entries, oldest first. A line that was cut off by a crash is passed over. Raises OSError."""
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
