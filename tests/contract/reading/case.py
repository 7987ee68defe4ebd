"""One case of the table: a file, and the rows that every reader must find in it."""

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

BAD = object()
"""A value that cannot be read: the reader refuses the row or the file, and never gives a value of its own."""

HEADER = ("user_id", "item_id", "action", "value", "timestamp")
MOMENT = 1_706_697_000_123  # 2024-01-31T10:30:00.123Z
SECOND = 1_706_697_000_000
MINUTE = SECOND
DAY = 1_706_659_200_000


class Row(NamedTuple):
    """A row as it is to be read; None is a missing value."""

    user_id: Any = "u1"
    item_id: Any = "i1"
    action: Any = "view"
    value: Any = None
    timestamp: Any = SECOND


@dataclass(frozen=True)
class Case:
    """A file, and its rows or the refusal of the whole file (a pattern)."""

    name: str
    content: bytes
    rows: Sequence[Row] = ()
    file: str = "log.csv"
    refusal: str = ""
    beside: Mapping[str, bytes] = field(default_factory=dict)
    """Other files in the same directory, which must not be read."""
    not_for: Sequence[str] = ()
    """Names of readers that the case does not concern."""


def csv(*lines: str, header: Sequence[str] = HEADER, delimiter: str = ",", end: str = "\n") -> bytes:
    return (end.join([delimiter.join(header), *lines]) + end).encode()


def ndjson(*records: Mapping[str, Any]) -> bytes:
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records).encode()


def arrow_parquet(table: pa.Table) -> bytes:
    """A Parquet file of types that Polars does not write."""
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    return buffer.getvalue()


def parquet(**columns: Any) -> bytes:
    buffer = io.BytesIO()
    pl.DataFrame(columns).write_parquet(buffer)
    return buffer.getvalue()
