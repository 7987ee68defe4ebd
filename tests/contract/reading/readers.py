"""Every reader of people's files, in one form: the rows that it finds in a file, or its refusal."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
from segrec.cli.input_file import InputFile
from segrec.cli.reading_options import Rules
from segrec.cli.record import OPTIONAL, REQUIRED, event_of
from segrec.errors import InvalidArgument

from server.adapters.bulk_load import BootstrapLog
from server.core.errors import SetupError
from tests.contract.reading.case import HEADER
from training.config import Columns
from training.data.cleaning import drop_impossible_times
from training.data.log_reader import read_raw_log
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

    def read(self, path: Path, scratch: Path) -> Found | Refusal:
        try:
            return self.function(path, scratch)
        except (InvalidArgument, SetupError, LogError) as error:
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
        return [(user_id,) for user_id in file.users() if user_id]


def _bootstrap(path: Path, scratch: Path) -> Found:
    log = BootstrapLog.open(path, history_limit=10)
    log.check(now_seconds=4e9)
    return [(user_id,) for users in log.chunks() for user_id, _ in users]


def _train(path: Path, scratch: Path) -> Found:
    log = read_raw_log(path, Columns(), scratch)
    complete = log.events.drop_nulls(["user_id", "item_id", "action"])
    possible, _ = drop_impossible_times(complete, log.has_clock, int(time.time() * 1000))
    events = complete.filter(pl.col("timestamp").is_null() | pl.col("row").is_in(possible["row"].implode()))
    return events.select(pl.col("user_id", "item_id", "action").cast(pl.String), "value", "timestamp").rows()


_CLIENT = (
    "segrec.reading.text_file",
    "segrec.reading.delimited",
    "segrec.reading.json_lines",
    "segrec.cli.input_tables",
)
_TRAINING = (*_CLIENT[:3], "training.data.tables", "training.data.text_rows")
READERS = (
    Reader("segrec-train --events", HEADER, _TRAINING, _train),
    Reader("segrec record", HEADER, _CLIENT, _record),
    Reader("segrec stream --users", ("user_id",), _CLIENT, _stream),
)
PREPARED = Reader("--bootstrap-events", ("user_id",), ("server.adapters.bulk_load",), _bootstrap)
"""Reads only what `segrec-train prepare` wrote, and refuses every file of the table."""
