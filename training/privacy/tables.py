"""Takes events and users out of the files of all runs: out of prepared logs, and out of tables with a row per user.

The tables of a log are rewritten before the log, which tells whose rows go: a rewriting that was cut off is completed
by the next one. Items keep their places in the catalogue, so that a trained encoder still fits the log.
"""

import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from server.core.preprocessing import Preprocessing
from server.core.repository.layout import EVENTS_MARK, PREPROCESSING
from training.data.account import Account, Step
from training.data.left_out import ERASED, EXPIRED, Erasures, erasures_of, is_erased
from training.data.nightly import RAW_EVENTS
from training.errors import RunError
from training.runs import Run, write_atomically

EVENTS, EMBEDDINGS, ASSIGNMENTS = "events.parquet", "user_embeddings.npy", "assignments.parquet"
_REPORT = "report"
"""Directory of a run; the report's map has a point for each user."""

_SCRATCH = "utf8"
_LOCK = ".rewrite.lock"
_UNFINISHED = ".rewritten."


@dataclass(frozen=True, slots=True)
class Removed:
    """Rows taken out of a file; `path` is relative to the directory of all runs. A deleted file has `rows` None."""

    path: str
    rows: int | None


@dataclass(frozen=True, slots=True)
class Cut:
    """Which events of a log go, and whose rows of its tables.

    `events` gives the mask of the events (user_id, timestamp) that go, of a log with these users, and with a clock or
    not. `takes` says whether the rows of a user go, of whom the log loses events (`loses`) or keeps some (`stays`).
    `step` and `why` are for the account.
    """

    events: Callable[[pl.Series, bool], pl.Expr]
    takes: Callable[[str, bool, bool], bool]
    step: str
    why: str


def erased(erasures: Erasures) -> Cut:
    """Events before their user's erasure, or all without a clock, and all rows that were computed from such events."""
    return Cut(
        lambda user_ids, has_clock: is_erased(erasures_of(user_ids, erasures), has_clock),
        lambda user_id, loses, stays: erasures(user_id) is not None and (loses or not stays),
        ERASED,
        "taken out later, of users who were erased",
    )


def expired(before_ms: int) -> Cut:
    """Events before a time, milliseconds since 1970, and rows of users without later ones; nothing without a clock."""
    return Cut(
        lambda _, has_clock: pl.col("timestamp") < before_ms if has_clock else pl.lit(False),
        lambda _user_id, _loses, stays: not stays,
        EXPIRED,
        "taken out later, when they were too old",
    )


def run_directories(runs: Path) -> list[Path]:
    """The directories of all runs, by name."""
    return sorted(path.parent for path in runs.glob("*/run.json"))


@contextmanager
def rewriting(runs: Path) -> Iterator[None]:
    """Hold the lock of rewriting; what a killed rewriting left unfinished is deleted first.

    Raises RunError at once if somebody else holds the lock, and for a directory that is missing or cannot be written.
    """
    if not runs.is_dir():
        raise RunError(f"There is no directory {runs} of runs; name it with --runs.")
    try:
        file = (runs / _LOCK).open("a")
    except OSError as error:
        raise RunError(f"{runs} cannot be written: {error.strerror}.") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            for left in runs.rglob(f"{_UNFINISHED}*"):
                left.unlink()
        except BlockingIOError:
            raise RunError(f"Somebody else is deleting from {runs}; try again when that has ended.") from None
        except OSError as error:
            raise RunError(f"{runs} cannot be written: {error.strerror}.") from error
        yield


def cut_runs(runs: Path, cut: Cut) -> list[Removed]:
    """Rewrite all logs and tables of users under `runs`; returns the changed files. The caller holds the lock.

    Raises RunError for a file that cannot be read or written; every file is then as it was or as it should be.
    """
    logs: dict[Path, list[Path]] = {}
    for directory in run_directories(runs):
        logs.setdefault((directory / "prepare").resolve(), []).append(directory)
    for copied in runs.glob(f".*/{EVENTS}"):  # the demo log
        logs.setdefault(copied.parent.resolve(), [])
    return [removed for log, users in logs.items() for removed in _cut_log(runs, log, users, cut)]


def _cut_log(runs: Path, log: Path, directories: list[Path], cut: Cut) -> Iterator[Removed]:
    """Rewrite the tables of the runs in `directories`, which read the prepared log in `log`, and the log itself."""
    path = log / EVENTS
    try:
        loses, stays, mask = _users_of(path, cut) if path.is_file() else (set[str](), set[str](), pl.lit(False))
        if (log / RAW_EVENTS).is_file():
            yield from _cut_raw(runs, log / RAW_EVENTS, cut)
        for table in _tables(log, directories):
            yield from _cut_table(runs, table, cut, loses, stays)
        if loses:
            yield Removed(_name(runs, path), _rewrite(path, mask))
        if path.is_file():
            _note_in_account(log, cut)
        if (log / _SCRATCH).is_dir():
            shutil.rmtree(log / _SCRATCH)
            yield Removed(_name(runs, log / _SCRATCH), None)
    except (OSError, pl.exceptions.PolarsError, ValueError) as error:
        raise RunError(f"The data in {log} cannot be rewritten: {error}. Delete the run, or try again.") from error


def _cut_raw(runs: Path, path: Path, cut: Cut) -> Iterator[Removed]:
    """Rewrite the events that a log keeps for later nights, which have times, and users that cleaning has dropped."""
    user_ids = pl.scan_parquet(path).select(pl.col("user_id").unique().drop_nulls()).collect().to_series()
    mask = cut.events(user_ids, True).fill_null(False)
    if pl.scan_parquet(path).select(mask.any()).collect().item():
        yield Removed(_name(runs, path), _rewrite(path, mask))


def _users_of(path: Path, cut: Cut) -> tuple[set[str], set[str], pl.Expr]:
    """The users of whom a log loses events, those of whom it keeps some, and the events that it loses."""
    events = pl.scan_parquet(path)
    user_ids = events.select(pl.col("user_id").unique()).collect().to_series()
    mask = cut.events(user_ids, _has_clock(path.parent))
    loses, stays = (
        set(events.filter(part).select(pl.col("user_id").unique()).collect().to_series()) for part in (mask, ~mask)
    )
    return loses, stays, mask


def _has_clock(log: Path) -> bool:
    """Whether the log has times; a log whose preparing did not end counts as one without."""
    path = log / PREPROCESSING
    return path.is_file() and Preprocessing.model_validate_json(path.read_bytes()).has_clock


def _tables(log: Path, directories: list[Path]) -> list[Path]:
    """Every Parquet file with a row per user beside the log and in the runs that read it, `assignments` last."""
    found = {path for path in log.glob("*.parquet") if path.name not in (EVENTS, RAW_EVENTS)}
    for directory in directories:
        found |= {path for path in directory.rglob("*.parquet") if path.parent.resolve() != log}
    tables = [path for path in found if "user_id" in pl.read_parquet_schema(path)]
    return sorted(tables, key=lambda path: (path.name == ASSIGNMENTS, path))


def _cut_table(runs: Path, path: Path, cut: Cut, loses: set[str], stays: set[str]) -> Iterator[Removed]:
    user_ids = pl.read_parquet(path, columns=["user_id"])["user_id"].cast(pl.String)
    gone = {user_id for user_id in user_ids.unique() if cut.takes(user_id, user_id in loses, user_id in stays)}
    if not gone:
        return
    is_gone = user_ids.is_in(list(gone))
    embeddings = path.parent / EMBEDDINGS
    if path.name == ASSIGNMENTS and embeddings.is_file() and _cut_rows(embeddings, ~is_gone.to_numpy()):
        yield Removed(_name(runs, embeddings), int(is_gone.sum()))
    report = path.parents[1] / _REPORT
    if path.name == ASSIGNMENTS and report.is_dir():
        shutil.rmtree(report)
        yield Removed(_name(runs, report), None)
    yield Removed(_name(runs, path), _rewrite(path, pl.col("user_id").cast(pl.String).is_in(list(gone))))


def _cut_rows(path: Path, kept: np.ndarray[tuple[int, ...], np.dtype[np.bool_]]) -> bool:
    """Keep the rows `kept` (U,) of an array (U, D); false if an earlier rewriting has done so already."""
    array = np.load(path, mmap_mode="r", allow_pickle=False)
    if len(array) == int(kept.sum()):
        return False
    if len(array) != len(kept):
        raise ValueError(f"{path} does not have the users of {ASSIGNMENTS}")
    with _replaced(path) as temporary, temporary.open("wb") as file:
        np.save(file, array[kept], allow_pickle=False)
    return True


def _rewrite(path: Path, gone: pl.Expr) -> int:
    """Take the rows `gone` out of a table; returns their number."""
    table = pl.scan_parquet(path)
    rows = int(table.select(gone.sum()).collect().item())
    kept = {key: text for key, text in pl.read_parquet_metadata(path).items() if key == EVENTS_MARK}
    with _replaced(path) as temporary:
        table.filter(~gone).sink_parquet(temporary, compression="lz4", metadata=kept)
    return rows


@contextmanager
def _replaced(path: Path) -> Iterator[Path]:
    """A file to write, which takes the place of `path` when it is complete and on disk."""
    temporary = path.with_name(f"{_UNFINISHED}{path.name}")
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _note_in_account(log: Path, cut: Cut) -> None:
    """Count in the account and the record of the log's run what its log has lost, so that both still add up."""
    path = log / "account.json"
    if not path.is_file():
        return
    account = Account.model_validate_json(path.read_bytes())
    events = pl.scan_parquet(log / EVENTS)
    rows, users = events.select(pl.len(), pl.col("user_id").n_unique()).collect().row(0)
    lost = account.rows_out - rows
    if not lost:
        return
    step = Step(name=cut.step, rows_in=account.rows_out, rows_dropped=lost, why=cut.why)
    after = account.model_copy(update={"rows_out": rows, "steps": (*account.steps, step)})
    Run(log.parent).update_figures("prepare", {"events": rows, "users": users})
    write_atomically(path, after.model_dump_json(indent=2) + "\n")


def _name(runs: Path, path: Path) -> str:
    return os.path.relpath(path.resolve(), runs.resolve())
