"""The command `segrec-store`: backups, checks and exports of a history store."""

import argparse
import asyncio
import contextlib
import os
import shutil
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path

from segrec.visible import visible

from server.adapters import lmdb_maintenance
from server.adapters.lmdb_copy import compact
from server.adapters.lmdb_file import DATA
from server.adapters.store_export import Exported, StoredHistories, export_events
from server.adapters.valkey_store import ValkeyStore
from server.core.erasure import ErasureMarks
from server.core.errors import SegrecError, SetupError
from server.core.history import History
from server.core.repository.audit import AUDIT
from server.core.repository.rules import RULES
from server.core.repository.segment_notes import SEGMENT_NOTES
from server.core.repository.traffic import TRAFFIC

EXIT_DAMAGED = 1
EXIT_SETUP = 2
LEDGER = ".ledger.json"
REPOSITORY_FILES = (TRAFFIC, AUDIT, LEDGER, SEGMENT_NOTES, RULES)
"""What nothing can make again in a model repository; releases can be published again from their runs."""

_LMDB = "lmdb:"
_HISTORY, _REPOSITORY = "history", "repository"
_HISTORY_LIMIT_MAX = 4096


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point. Exits with 1 when something is damaged, and with 2 and one sentence when it cannot be done."""
    options = _parser().parse_args(sys.argv[1:] if arguments is None else arguments)
    try:
        code = options.run(options)
    except (SegrecError, OSError) as error:
        print(visible(f"error: {error}"), file=sys.stderr)
        raise SystemExit(EXIT_SETUP) from None
    raise SystemExit(code)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("segrec-store", description="Back up, check and export a history store.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, run: Callable[[argparse.Namespace], int], help_: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=help_, description=help_)
        command.set_defaults(run=run)
        command.add_argument("--store", required=True, help="as for segrec-serve: lmdb:DIRECTORY or a redis:// URL")
        return command

    saving = add("backup", _backup, "copy an LMDB store, also while servers use it")
    saving.add_argument("--out", type=Path, required=True, help="directory of the backup, new or empty")
    restoring = add("restore", _restore, "make an LMDB store from a backup, and check each history")
    restoring.add_argument("--backup", type=Path, required=True, help="directory of the backup")
    for command in (saving, restoring):
        command.add_argument(
            "--repository", type=Path, help=f"model repository; also takes its {', '.join(REPOSITORY_FILES)}"
        )
    add("check", _check, "count the damaged histories of a store")
    add("compact", _compact, "write an LMDB store anew that no server uses, without what was erased")
    for name, run, what in (
        ("export-events", _export_events, "Parquet that `segrec-train prepare --events` reads"),
        ("export-erasures", _export_erasures, "JSON that `segrec-train` reads by --erasures; keep it as ids are kept"),
    ):
        add(name, run, f"write {what}").add_argument("--out", type=Path, required=True, help="file to write")
    return parser


def _directory(options: argparse.Namespace) -> Path:
    if not options.store.startswith(_LMDB):
        raise SetupError("this command is for LMDB stores: Valkey's own are BGSAVE, and its append-only file")
    return Path(options.store.removeprefix(_LMDB))


def _backup(options: argparse.Namespace) -> int:
    lmdb_maintenance.backup(_directory(options), options.out / _HISTORY)
    saved = _copy_files(options.repository, options.out / _REPOSITORY) if options.repository else []
    print(f"saved to {options.out}: {', '.join(['the histories', *saved])}")
    return 0


def _restore(options: argparse.Namespace) -> int:
    if not (options.backup / _HISTORY / DATA).exists():
        raise SetupError(f"there is no backup in {options.backup}: `segrec-store backup` writes {_HISTORY}/{DATA}")
    present = [name for name in REPOSITORY_FILES if options.repository and (options.repository / name).exists()]
    if present:
        raise SetupError(f"{options.repository} has {', '.join(present)} already; move away what is there")
    checked = lmdb_maintenance.restore(options.backup / _HISTORY, _directory(options))
    restored = _copy_files(options.backup / _REPOSITORY, options.repository) if options.repository else []
    print(f"restored: {', '.join([f'{checked.good_count:,} histories', *restored])}")
    return _damaged(checked.damaged_count, "were left out")


def _check(options: argparse.Namespace) -> int:
    if options.store.startswith(_LMDB):
        good, damaged = lmdb_maintenance.check(_directory(options))
    else:
        good, damaged = asyncio.run(_check_valkey(options.store))
    print(f"{good:,} histories are whole")
    return _damaged(damaged, "are in the store")


def _compact(options: argparse.Namespace) -> int:
    path = _directory(options)
    if not (path / DATA).exists():
        raise SetupError(f"there is no history store in {path}: it has no {DATA}")
    print(f"{compact(path):,} bytes are free now, and nothing of what was erased is left in {path}")
    return 0


def _export_events(options: argparse.Namespace) -> int:
    if options.store.startswith(_LMDB):
        with lmdb_maintenance.opened(_directory(options)) as environment:
            exported = asyncio.run(export_events(_each(lmdb_maintenance.histories(environment)), options.out))
    else:
        exported = asyncio.run(_export_valkey(options.store, options.out))
    print(f"{exported.event_count:,} events of {exported.user_count:,} users are in {options.out}")
    return _damaged(exported.damaged_count, "were left out")


def _export_erasures(options: argparse.Namespace) -> int:
    if options.store.startswith(_LMDB):
        with lmdb_maintenance.opened(_directory(options)) as environment:
            marks = lmdb_maintenance.erasures(environment)
    else:
        marks = asyncio.run(_valkey_erasures(options.store))
    marks.write(options.out)
    print(f"{len(marks):,} erasures are in {options.out}, with the key to them: keep the file as you keep user ids")
    return 0


def _damaged(count: int, what: str) -> int:
    if not count:
        return 0
    print(
        f"{count:,} damaged histories {what}: restore a backup, or erase those users and record their events again",
        file=sys.stderr,
    )
    return EXIT_DAMAGED


def _copy_files(source: Path, target: Path) -> list[str]:
    """Copy the files of a repository that are there; returns their names. Each appears whole or not at all."""
    target.mkdir(parents=True, exist_ok=True)
    names = [name for name in REPOSITORY_FILES if (source / name).exists()]
    for name in names:
        temporary = target / f"{name}.{os.getpid()}"
        if (source / name).is_dir():
            shutil.copytree(source / name, temporary, ignore=shutil.ignore_patterns(".*"))
        else:
            shutil.copy2(source / name, temporary)
        temporary.replace(target / name)
    return names


async def _each(histories: Iterator[tuple[str, History | None]]) -> StoredHistories:
    for pair in histories:
        yield pair


@contextlib.asynccontextmanager
async def _valkey(url: str) -> AsyncIterator[ValkeyStore]:
    store = await ValkeyStore.connect(url, _HISTORY_LIMIT_MAX)
    try:
        yield store
    finally:
        await store.close()


async def _check_valkey(url: str) -> tuple[int, int]:
    good = damaged = 0
    async with _valkey(url) as store:
        async for _, history in store.histories():
            good += history is not None
            damaged += history is None
    return good, damaged


async def _export_valkey(url: str, out: Path) -> Exported:
    async with _valkey(url) as store:
        return await export_events(store.histories(), out)


async def _valkey_erasures(url: str) -> ErasureMarks:
    async with _valkey(url) as store:
        return await store.erasures()
