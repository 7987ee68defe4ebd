"""Opens the file of an LMDB store, and refuses a file that has lost a part, which LMDB would read until SIGBUS."""

import contextlib
import errno
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import lmdb

from server.core.erasure import new_erasure_key
from server.core.errors import SetupError
from server.core.history import ROW_VERSION

DATA, LOCK = "data.mdb", "lock.mdb"
MAP_SIZE_BYTES = 1 << 40
"""Largest size of the file. It takes address space, not disk space: the file grows with the data."""

RESTORE = "restore a backup with `segrec-store restore`"
_READ_CHUNK_BYTES = 1 << 20
_READ_ALL = """
import sys, lmdb
lmdb.open(sys.argv[1], readonly=True, lock=False, max_dbs=3).copyfd(sys.stdout.fileno(), compact=True)
"""
_REMEDIES = {
    errno.ENOMEM: "let this process have more address space (`ulimit -v`): the file is mapped at its largest size, "
    "{size:,} bytes",
    errno.EACCES: "let the user of this process read and write it",
    errno.EPERM: "let the user of this process read and write it",
    errno.EROFS: "give it a directory on a file system that can be written",
    errno.ENOSPC: "free space on its disk",
    errno.EDQUOT: "free space on its disk",
    errno.EIO: f"check the health of its disk, and {RESTORE}",
    errno.ENOTDIR: "give it a directory, not a file",
    errno.EEXIST: "give it a directory, not a file",
}

if TYPE_CHECKING:
    Transaction = lmdb.Transaction[bytes]
else:
    Transaction = lmdb.Transaction


def open_environment(path: Path, map_size_bytes: int = MAP_SIZE_BYTES) -> lmdb.Environment:
    """Open or create the LMDB environment of a store in directory `path`, of this build's format.

    Raises `SetupError`, with what to do, when the directory cannot be used or its file is damaged.
    """
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        if (path / LOCK).exists() and not _size(path):
            raise SetupError(
                f"the history store in {path} was in use before, but its {DATA} is empty or gone; {RESTORE}, or remove "
                f"{LOCK} as well to begin with an empty store"
            )
        environment = _open_whole(path, map_size_bytes)
    except (OSError, lmdb.Error, MemoryError) as error:
        raise SetupError(f"the history store in {path} cannot be opened: {_reason(error, map_size_bytes)}") from error
    try:
        environment.reader_check()
        _check_format(environment, path)
    except BaseException as error:
        environment.close()
        if isinstance(error, lmdb.Error):
            reason = _reason(error, map_size_bytes)
            raise SetupError(f"the history store in {path} cannot be opened: {reason}") from error
        raise
    return environment


def _open_whole(path: Path, map_size_bytes: int) -> lmdb.Environment:
    """Open the environment. Raises `SetupError` when pages that are in use lie behind the end of the file."""
    environment = _open(path, map_size_bytes)
    needed = needed_bytes(environment)
    if _size(path) >= needed:
        return environment
    # LMDB does not write the last pages of a file when they were freed in the transaction that added them.
    environment.close()
    if not _can_be_read(path):
        raise SetupError(
            f"the history store in {path} is damaged: its {DATA} has {_size(path):,} bytes of the {needed:,} that it "
            f"had; {RESTORE}"
        )
    os.truncate(path / DATA, needed)
    return _open(path, map_size_bytes)


def _open(path: Path, map_size_bytes: int) -> lmdb.Environment:
    return lmdb.open(str(path), map_size=map_size_bytes, mode=0o600, max_dbs=3, max_spare_txns=4)


def needed_bytes(environment: lmdb.Environment) -> int:
    """The size of the file by its own account."""
    return (int(environment.info()["last_pgno"]) + 1) * int(environment.stat()["psize"])


def _size(path: Path) -> int:
    with contextlib.suppress(FileNotFoundError):
        return (path / DATA).stat().st_size
    return 0


def _can_be_read(path: Path) -> bool:
    """Whether all pages in use are in the file: tried in a process of its own, which a missing page ends."""
    command = [sys.executable, "-c", _READ_ALL, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        while process.stdout.read(_READ_CHUNK_BYTES):
            pass
    return process.returncode == 0


def _check_format(environment: lmdb.Environment, path: Path) -> None:
    """Write the row version into a new store. Raises `SetupError` for a store of another version."""
    meta = environment.open_db(b"meta")
    with environment.begin(meta, write=True) as transaction:
        stored = transaction.get(b"format")
        if stored is None:
            transaction.put(b"format", str(ROW_VERSION).encode())
            transaction.put(b"erasure_key", new_erasure_key())
        elif stored != str(ROW_VERSION).encode():
            raise SetupError(
                f"the history store in {path} has format {stored.decode()}, this Segrec reads format {ROW_VERSION}; "
                "use the version of Segrec that wrote the store, or give another directory"
            )


def _reason(error: Exception, map_size_bytes: int) -> str:
    """What is wrong and what to do."""
    number = getattr(error, "errno", None) or next(
        (code for code in _REMEDIES if os.strerror(code) in str(error)), None
    )
    if isinstance(error, (MemoryError, lmdb.MemoryError)):
        number = errno.ENOMEM
    if number in _REMEDIES:
        return f"{error or os.strerror(number)}; {_REMEDIES[number].format(size=map_size_bytes)}"
    if isinstance(error, (lmdb.InvalidError, lmdb.CorruptedError, lmdb.VersionMismatchError, lmdb.PanicError)):
        return f"{error}; its {DATA} is damaged or was written by something else: {RESTORE}"
    return f"{error}; give it a directory of its own that can be written"
