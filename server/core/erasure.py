"""Marks of erased users: who is meant can be told by somebody who has the user id and the key, and by nobody else.

A mark is a hash of the user id under a random key that the history store keeps. Unlike a plain hash it cannot be tried
with a list of ids. `segrec-store export-erasures` writes key and marks to a file; whoever has the file can try ids, so
keep it as carefully as the ids themselves.
"""

import hashlib
import json
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Self

from server.core.errors import SetupError

KEY_BYTES = 32
MARK_BYTES = 16


def new_erasure_key() -> bytes:
    """A random key, for a new store."""
    return secrets.token_bytes(KEY_BYTES)


def erasure_mark(key: bytes, user_id: str) -> bytes:
    """The mark of a user under the key of a store: BLAKE2b, `MARK_BYTES` long."""
    return hashlib.blake2b(user_id.encode(), digest_size=MARK_BYTES, key=key, person=b"segrec.erased").digest()


class ErasureMarks:
    """The erased users of a store, each with the time of the latest erasure in seconds since 1970, UTC."""

    def __init__(self, key: bytes, seconds: Mapping[bytes, int]) -> None:
        """`key` has `KEY_BYTES` bytes; `seconds` has the time of erasure of each mark."""
        self._key = key
        self._seconds = dict(seconds)

    def __len__(self) -> int:
        return len(self._seconds)

    def covers(self, user_id: str) -> bool:
        """Whether this user was erased."""
        return self.erased_seconds(user_id) is not None

    def erased_seconds(self, user_id: str) -> int | None:
        """When this user was erased, in seconds since 1970, UTC; None for users who were not."""
        return self._seconds.get(erasure_mark(self._key, user_id))

    def mark(self, user_id: str, seconds: int) -> None:
        """Add the erasure of a user at `seconds` since 1970, UTC; of two erasures the later counts."""
        mark = erasure_mark(self._key, user_id)
        self._seconds[mark] = max(seconds, self._seconds.get(mark, seconds))

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read what `write` wrote. Raises OSError, and `SetupError` for a file that holds something else."""
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            key, marks = bytes.fromhex(content["key"]), content["erased_seconds"]
            seconds = {bytes.fromhex(mark): int(second) for mark, second in marks.items()}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise SetupError(
                f"{path} holds no erasures: {error!r}; give a file that `segrec-store export-erasures` wrote"
            ) from error
        if len(key) != KEY_BYTES or any(len(mark) != MARK_BYTES for mark in seconds):
            raise SetupError(f"{path} holds damaged erasures; write it again with `segrec-store export-erasures`")
        return cls(key, seconds)

    def write(self, path: Path) -> None:
        """Write the marks and their key as JSON, readable by the owner only, in one step. Raises OSError."""
        content = {"key": self._key.hex(), "erased_seconds": {m.hex(): s for m, s in sorted(self._seconds.items())}}
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
                json.dump(content, file, indent=1)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
