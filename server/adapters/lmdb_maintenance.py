"""Backup, restoring and checking of LMDB stores, also while servers use them, and reading all that they hold."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import lmdb

from server.adapters.history_rows import read_row_or_none
from server.adapters.lmdb_copy import StoreLock, copy_rows, is_whole
from server.adapters.lmdb_file import DATA, MAP_SIZE_BYTES, RESTORE, needed_bytes
from server.core.erasure import ErasureMarks
from server.core.errors import SetupError
from server.core.history import ROW_VERSION, History


class Checked(NamedTuple):
    """Numbers of the histories of a store."""

    good_count: int
    damaged_count: int


@contextlib.contextmanager
def opened(path: Path) -> Iterator[lmdb.Environment]:
    """The environment of an existing store, for reading only; servers may use the store meanwhile.

    Raises `SetupError` when there is none that this build can read.
    """
    if not (path / DATA).exists():
        raise SetupError(f"there is no history store in {path}: it has no {DATA}")
    try:
        environment = lmdb.open(str(path), map_size=MAP_SIZE_BYTES, max_dbs=3, readonly=True)
    except lmdb.Error as error:
        raise SetupError(f"the history store in {path} cannot be read: {error}; {RESTORE}") from error
    with contextlib.closing(environment):
        size, needed = (path / DATA).stat().st_size, needed_bytes(environment)
        if size < needed:
            raise SetupError(
                f"the history store in {path} has {size:,} bytes of the {needed:,} that it had; open it once with "
                f"`segrec-serve`, which says whether anything is lost, or {RESTORE}"
            )
        try:
            with environment.begin(environment.open_db(b"meta", create=False)) as transaction:
                stored = transaction.get(b"format", b"none")
        except lmdb.Error:
            stored = b"none"
        if stored != str(ROW_VERSION).encode():
            raise SetupError(
                f"the history store in {path} has format {stored.decode()}, this Segrec reads format {ROW_VERSION}"
            )
        yield environment


def check(path: Path) -> Checked:
    """Count the histories that have their checksum, and those that have not. Raises `SetupError`."""
    good = damaged = 0
    with opened(path) as environment:
        table = environment.open_db(b"histories", create=False)
        with environment.begin(table) as transaction:
            for _, row in transaction.cursor():
                whole = is_whole(row)
                good += whole
                damaged += not whole
    return Checked(good, damaged)


def backup(path: Path, out: Path) -> None:
    """Copy the state of a store at one moment into the directory `out`, which must be new or empty.

    Raises `SetupError`, also when there is no room; `out` is then as it was.
    """
    _must_be_empty(out)
    with opened(path) as environment:
        out.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            environment.copy(str(out), compact=True)
            with (out / DATA).open("rb") as file:
                os.fsync(file.fileno())
        except (OSError, lmdb.Error) as error:
            (out / DATA).unlink(missing_ok=True)
            raise SetupError(f"the history store in {path} cannot be copied to {out}: {error}") from error


def restore(saved: Path, path: Path) -> Checked:
    """Make a store in directory `path`, which must be new or empty, from the backup in `saved`.

    Each history is checked; the damaged ones are left out. Raises `SetupError`; `path` then holds no store.
    """
    _must_be_empty(path)
    temporary = path.with_name(f"{path.name}.restoring")
    with opened(saved) as environment:
        try:
            shutil.rmtree(temporary, ignore_errors=True)
            checked = Checked(*copy_rows(environment, temporary))
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock = StoreLock(path)
            (temporary / DATA).replace(path / DATA)
            lock.close()
        except (OSError, lmdb.Error) as error:
            raise SetupError(f"the backup in {saved} cannot be restored to {path}: {error}") from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return checked


def histories(environment: lmdb.Environment) -> Iterator[tuple[str, History | None]]:
    """(user id, history) of each user in the order of the ids; None for a damaged history."""
    with environment.begin(environment.open_db(b"histories", create=False)) as transaction:
        for key, row in transaction.cursor():
            yield key.decode(errors="replace"), read_row_or_none(row)


def erasures(environment: lmdb.Environment) -> ErasureMarks:
    """The erased users, with the time of erasure in seconds, rounded up."""
    with environment.begin(environment.open_db(b"meta", create=False)) as transaction:
        key = transaction.get(b"erasure_key", b"")
    with environment.begin(environment.open_db(b"erased", create=False)) as transaction:
        seconds = {mark: -(-int.from_bytes(value, "big") // 1000) for mark, value in transaction.cursor()}
    return ErasureMarks(key, seconds)


def _must_be_empty(path: Path) -> None:
    if path.exists() and any(path.iterdir()):
        raise SetupError(f"{path} is not empty; give a new directory, or move away what is there")
