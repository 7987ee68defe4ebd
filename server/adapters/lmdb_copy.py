"""Copies of an LMDB store, row by row: what is written anew holds no byte of what was erased."""

import contextlib
import fcntl
import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import lmdb

from server.adapters.lmdb_file import DATA, LOCK, MAP_SIZE_BYTES, open_environment
from server.core.errors import SetupError
from server.core.history import History

log = logging.getLogger(__name__)

ERASED_SINCE = b"erased_since_rewrite"
"""Key in the table `meta` of a store whose free pages may hold what was erased."""
REWRITE_AT_START_MAX_BYTES = 4 << 30
"""Larger files are not written anew at the start of a server, which would take minutes."""

ERASURE_NOTE = (
    "free pages of the store's file, which nothing reads, until the file is written anew: at the next start of a "
    "server that has the store to itself (files of up to 4 GiB), or by `segrec-store compact`"
)
"""What the file keeps of an erased user, and until when."""

_TABLES = (b"histories", b"erased", b"meta")
_BATCH_BYTES = 16 << 20
_LOCK_FILE = "store.lock"
_TEMPORARY = "rewrite.tmp"


class StoreLock:
    """Tells whether somebody else has the store in a directory open. LMDB's own lock cannot be asked."""

    def __init__(self, path: Path) -> None:
        """Take part in the store, alone if nobody else does; waits while another process writes it anew."""
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._file = os.open(path / _LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self.is_sole = True
        except BlockingIOError:
            fcntl.flock(self._file, fcntl.LOCK_SH)
            self.is_sole = False

    def share(self) -> None:
        """Let others open the store."""
        fcntl.flock(self._file, fcntl.LOCK_SH)

    def close(self) -> None:
        os.close(self._file)


def open_cleaned(path: Path, map_size_bytes: int = MAP_SIZE_BYTES) -> tuple[lmdb.Environment, StoreLock]:
    """Open a store; a store that nobody else has open is first written anew if users were erased since the last time.

    Raises `SetupError`, see `open_environment`.
    """
    try:
        lock = StoreLock(path)
    except OSError as error:
        raise SetupError(
            f"the history store in {path} cannot be opened: {error}; give it a directory that can be written"
        ) from error
    try:
        environment = open_environment(path, map_size_bytes)
        size = (path / DATA).stat().st_size
        if lock.is_sole and _is_erased(environment):
            if size <= REWRITE_AT_START_MAX_BYTES:
                environment = _rewritten(environment, path, map_size_bytes)
            else:
                log.warning(
                    "the history store in %s may hold erased users in free pages of its %.1f GiB: stop its servers and "
                    "run `segrec-store compact`",
                    path,
                    size / (1 << 30),
                )
        lock.share()
    except BaseException:
        lock.close()
        raise
    return environment, lock


def compact(path: Path) -> int:
    """Write a store anew that nobody has open; returns the bytes that this freed. Raises `SetupError`."""
    lock = StoreLock(path)
    try:
        if not lock.is_sole:
            raise SetupError(f"the history store in {path} is in use; stop the servers that use it first")
        before = (path / DATA).stat().st_size
        _rewritten(open_environment(path), path, MAP_SIZE_BYTES, is_required=True).close()
        return before - (path / DATA).stat().st_size
    finally:
        lock.close()


def copy_rows(source: lmdb.Environment, target: Path) -> tuple[int, int]:
    """Copy all that can be read into a new store in `target`; returns the numbers of good and of damaged histories.

    Damaged histories are left out. Raises `lmdb.Error` and OSError.
    """
    target.mkdir(mode=0o700, parents=True, exist_ok=True)
    size = int(source.info()["map_size"])
    good = damaged = 0
    with contextlib.closing(lmdb.open(str(target), map_size=size, mode=0o600, max_dbs=3, sync=False)) as environment:
        for name in _TABLES:
            table = environment.open_db(name)
            for batch in _batches(source, name):
                with environment.begin(table, write=True) as transaction:
                    for key, value in batch:
                        if name == b"histories" and not is_whole(value):
                            damaged += 1
                            continue
                        good += name == b"histories"
                        if key != ERASED_SINCE:
                            transaction.put(key, value, append=True)
        environment.sync(True)
    return good, damaged


def is_whole(row: bytes) -> bool:
    """Whether a row has its checksum."""
    try:
        History(row)
    except ValueError:
        return False
    return True


def _is_erased(environment: lmdb.Environment) -> bool:
    with environment.begin(environment.open_db(b"meta")) as transaction:
        return transaction.get(ERASED_SINCE) is not None


def _rewritten(
    environment: lmdb.Environment, path: Path, map_size_bytes: int, *, is_required: bool = False
) -> lmdb.Environment:
    """The store, written anew; as it is, with a warning, when that fails and is not required."""
    temporary = path / _TEMPORARY
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        _, damaged = copy_rows(environment, temporary)
        if damaged:
            raise SetupError(f"{damaged:,} of its histories are damaged: see `segrec-store check`")
    except (OSError, lmdb.Error, SetupError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if is_required:
            environment.close()
            raise SetupError(f"the history store in {path} cannot be written anew: {error}") from error
        log.warning("the history store in %s still holds erased users in free pages, as %s", path, error)
        return environment
    environment.close()
    (temporary / DATA).replace(path / DATA)
    (path / LOCK).unlink(missing_ok=True)
    shutil.rmtree(temporary)
    _sync_directory(path)
    log.info("the history store in %s was written anew, without what was erased", path)
    return open_environment(path, map_size_bytes)


def _sync_directory(path: Path) -> None:
    directory = os.open(path, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _batches(source: lmdb.Environment, name: bytes) -> Iterator[list[tuple[bytes, bytes]]]:
    """The rows of a table in the order of their keys, some `_BATCH_BYTES` at a time."""
    batch: list[tuple[bytes, bytes]] = []
    batch_bytes = 0
    with source.begin(source.open_db(name)) as transaction:
        for key, value in transaction.cursor():
            batch.append((key, value))
            batch_bytes += len(value)
            if batch_bytes >= _BATCH_BYTES:
                yield batch
                batch, batch_bytes = [], 0
    yield batch
