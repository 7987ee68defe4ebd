"""Reads a log that a test writes out in full."""

import json
from pathlib import Path
from typing import Any

import polars as pl

from training.config import Columns
from training.data.reading.log_files import LogFiles
from training.data.reading.log_reader import RawLog, read_raw_log

HEADER = "user_id,item_id,action,timestamp,title\n"
S = 1_700_000_000


def read(path: Path | LogFiles, **columns: Any) -> RawLog:
    root = path if isinstance(path, Path) else path.files[0].path
    return read_raw_log(path, Columns.model_validate(columns), root.parent / "scratch")


def log(tmp_path: Path, text: str | bytes, name: str = "log.csv", **columns: Any) -> RawLog:
    path = tmp_path / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return read(path, **columns)


def column(read: RawLog, name: str) -> list[Any]:
    values = read.events[name]
    return (values.cast(pl.String) if isinstance(values.dtype, pl.Enum) else values).to_list()


def ndjson(*rows: dict[str, Any]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def times(tmp_path: Path, *values: Any, **columns: Any) -> list[int | None]:
    """What a CSV log with these times has as milliseconds; the log has a clock."""
    text = "user_id,item_id,timestamp\n" + "".join(f"u,i{row},{value}\n" for row, value in enumerate(values))
    found = log(tmp_path, text, **columns)
    assert found.has_clock
    return column(found, "timestamp")
