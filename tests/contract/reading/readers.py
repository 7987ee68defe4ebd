"""Every reader of people's files, in one form: the rows that it finds in a file, or its refusal."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
from segrec.cli.files.input_file import InputFile
from segrec.cli.files.reading_options import Rules
from segrec.cli.record import OPTIONAL, REQUIRED, event_of
from segrec.errors import InvalidArgument

from server.adapters.bulk_load import BootstrapLog
from server.core.errors import SetupError
from tests.contract.reading.case import HEADER
from training.config import Columns, ItemColumns, UserColumns
from training.data.cleaning import drop_impossible_times
from training.data.item_text import VectorFile
from training.data.reading.item_table import read_items, read_users
from training.data.reading.log_reader import RawLog, read_raw_log
from training.data.reading.sources import source_of
from training.errors import LogError

Found = Sequence[tuple[Any, ...]]


@dataclass(frozen=True)
class Refusal:
    """A reader's refusal of a whole file."""

    message: str


@dataclass(frozen=True)
class Reader:
    """`read(path, scratch)` gives one tuple per row, with the values of `roles`; `modules` open the files."""

    name: str
    roles: Sequence[str]
    modules: Sequence[str]
    function: Callable[[Path, Path], Found]
    is_table: bool = False
    """Whether the reader keeps one row per id."""
    suffixes: Sequence[str] = ()
    """The only suffixes that the reader opens; empty: all."""
    refuses_missing: bool = False
    """Whether a row without an id refuses the file."""

    def read(self, path: Path, scratch: Path) -> Found | Refusal:
        try:
            return self.function(path, scratch)
        except (InvalidArgument, LogError, SetupError) as error:
            return Refusal(str(error))


def _record(path: Path, scratch: Path) -> Found:
    rules, found = Rules(), []
    with InputFile(str(path), rules) as file:
        for row in file.rows(REQUIRED, OPTIONAL):
            try:
                read = event_of(row.values, "", rules)
            except InvalidArgument:  # the row is refused
                continue
            event = read.event
            value = event.value if event.HasField("value") else None
            time = event.timestamp.ToMilliseconds() if event.HasField("timestamp") else None
            found.append((read.user_id, event.item_id, event.action, value, time))
    return found


def _stream(path: Path, scratch: Path) -> Found:
    with InputFile(str(path)) as file:
        return [(user.user_id,) for user in file.users() if user.user_id]


def _log(path: Path, scratch: Path) -> Found:
    return _rows(read_raw_log(path, Columns(unreadable="drop"), scratch))


def _rows(log: RawLog) -> Found:
    """The rows that cleaning keeps at the least: with ids, and without times before 1970 or far in the future."""
    complete = log.events.drop_nulls(["user_id", "item_id", "action"])
    possible, _ = drop_impossible_times(complete, log.has_clock, int(time.time() * 1000))
    events = complete.filter(pl.col("timestamp").is_null() | pl.col("row").is_in(possible["row"].implode()))
    timestamp = pl.lit(None) if log.ordered_by_row else pl.col("timestamp")
    return events.select("user_id", "item_id", "action", "value", timestamp).rows()


def _items(path: Path, scratch: Path) -> Found:
    return read_items(path, ItemColumns(), scratch).rows.select("item_id").rows()


def _users(path: Path, scratch: Path) -> Found:
    return read_users(path, UserColumns(), scratch).rows.select("user_id").rows()


def _delta(path: Path, scratch: Path) -> Found:
    table = scratch / path.name  # the path itself stands in a refusal
    pl.read_parquet(path, glob=False).write_delta(table)
    return _rows(read_raw_log(source_of(str(table)), Columns(unreadable="drop"), scratch))


def _vectors(path: Path, scratch: Path) -> Found:
    """The items of the file, once each, as a file of vectors has them."""
    items = pl.read_parquet(path, glob=False).select("item_id").unique(maintain_order=True)
    vectors = scratch / path.name
    items.with_columns(vector=pl.Series([[1.0, 2.0]] * len(items))).write_parquet(vectors)
    return [(item_id,) for item_id in VectorFile.read(vectors).item_ids]


def _bootstrap(path: Path, scratch: Path) -> Found:
    log = BootstrapLog.open(path, history_limit=10)
    log.check(now_seconds=4e9)
    return [(user_id,) for users in log.chunks() for user_id, _ in users]


_RULES = ("segrec.reading.text_file", "segrec.reading.delimited", "segrec.reading.json_lines")
_CLIENT = (*_RULES, "segrec.cli.files.input_tables", "segrec.cli.files.input_file")
_LOG = ("training.data.reading.tables", "training.data.reading.log_parts")
_TABLE = ("training.data.reading.tables", "training.data.reading.item_table")
READERS = (
    Reader("segrec record", HEADER, _CLIENT, _record),
    Reader("segrec stream --users", ("user_id",), _CLIENT, _stream),
    Reader("segrec-train --events", HEADER, _LOG, _log),
    Reader("segrec-train --events delta", HEADER, ("training.data.reading.sources",), _delta, suffixes=(".parquet",)),
    Reader(
        "segrec-train --items, items add",
        ("item_id",),
        (*_TABLE, "training.data.reading.category_names"),
        _items,
        is_table=True,
    ),
    Reader("segrec-train --users", ("user_id",), _TABLE, _users, is_table=True),
    Reader(
        "segrec-train --vectors",
        ("item_id",),
        ("training.data.item_text",),
        _vectors,
        is_table=True,
        suffixes=(".parquet",),
        refuses_missing=True,
    ),
)
PREPARED = Reader("--bootstrap-events", ("user_id",), ("server.adapters.bulk_load",), _bootstrap)
"""Reads only what `segrec-train prepare` wrote, and refuses every file of the table."""
