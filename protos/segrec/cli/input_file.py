"""Reads users and events from CSV, NDJSON, Parquet or one id per line, without loading the whole file."""

import csv
import io
import json
import os
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any, Self

from segrec.errors import InvalidArgument

NDJSON_SUFFIXES = (".ndjson", ".jsonl", ".json")
_PARQUET_ROWS = 16_384
_LONGEST_FIELD = 64 * 1024 * 1024


def polars() -> ModuleType:
    """Polars, which only Parquet needs. Raises InvalidArgument when Polars is not installed."""
    try:
        import polars as module
    except ImportError:
        message = "Parquet needs Polars, which is not installed: `pip install polars`, or use CSV or NDJSON"
        raise InvalidArgument(message) from None
    return module


class InputFile:
    """A file of rows. Bytes that are not UTF-8 are read as surrogates, so that one bad id costs one row.

    Raises InvalidArgument, also while reading, when the file cannot be read.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.suffix = Path(path).suffix.lower()
        self._text: io.TextIOWrapper | None = None
        self._total = 0
        self._position: Callable[[], int] = int
        try:
            self._raw = open(path, "rb")  # noqa: SIM115 - closed by close()
        except OSError as error:
            raise InvalidArgument(f"Cannot read {path}: {error.strerror}") from error

    @property
    def fraction(self) -> float | None:
        """Share of the file that has been read, 0 to 1; None before reading starts."""
        return min(self._position() / self._total, 1.0) if self._total else None

    def users(self) -> Iterator[str]:
        """The ids of column or field `user_id`; without such a column, one id per line. Skips blank lines."""
        if self.suffix == ".parquet":
            for row in self._parquet_rows(["user_id"]):
                yield _text(row["user_id"])
        elif self.suffix in NDJSON_SUFFIXES:
            for value in self._json_values():
                yield _text(value.get("user_id") if isinstance(value, dict) else value)
        else:
            yield from self._csv_users()

    def rows(self, required: Iterable[str], optional: Iterable[str]) -> Iterator[dict[str, Any]]:
        """Rows by column name. Raises InvalidArgument when a required column is missing."""
        if self.suffix == ".parquet":
            yield from self._parquet_rows(list(required), list(optional))
        elif self.suffix in NDJSON_SUFFIXES:
            for value in self._json_values():
                yield value if isinstance(value, dict) else {}
        else:
            yield from self._csv_rows(list(required))

    def _lines(self) -> Iterator[str]:
        self._total, self._position = os.fstat(self._raw.fileno()).st_size, self._raw.tell
        self._text = io.TextIOWrapper(self._raw, encoding="utf-8-sig", errors="surrogateescape", newline="")
        return self._text

    def _csv_users(self) -> Iterator[str]:
        lines = self._lines()
        first = next(lines, "")
        header = [name.strip() for name in next(csv.reader([first]), [])]
        if "user_id" in header:
            column = header.index("user_id")
            for row in self._csv_lists(lines):
                yield row[column] if column < len(row) else ""
            return
        if self.suffix == ".csv" and len(header) > 1:
            raise InvalidArgument(f"{self.path} has no column user_id; its columns are {', '.join(header)}")
        for line in chain([first], lines):
            user_id = line.rstrip("\r\n")
            if user_id:
                yield user_id

    def _csv_rows(self, required: list[str]) -> Iterator[dict[str, Any]]:
        lists = self._csv_lists(self._lines())
        header = [name.strip() for name in next(lists, [])]
        self._require(required, header)
        for values in lists:
            yield dict(zip(header, values, strict=False))

    def _csv_lists(self, lines: Iterator[str]) -> Iterator[list[str]]:
        csv.field_size_limit(_LONGEST_FIELD)
        try:
            for row in csv.reader(lines):
                if row:
                    yield row
        except csv.Error as error:
            raise InvalidArgument(f"{self.path} is not readable as CSV: {error}") from error

    def _json_values(self) -> Iterator[Any]:
        for number, line in enumerate(self._lines(), start=1):
            if not line.strip():
                continue
            try:
                yield json.loads(line)
            except ValueError as error:
                raise InvalidArgument(f"{self.path}, line {number}, is not JSON: {error}") from error

    def _parquet_rows(self, required: list[str], optional: Iterable[str] = ()) -> Iterator[dict[str, Any]]:
        pl = polars()
        try:
            frame = pl.scan_parquet(self.path)
            columns = frame.collect_schema().names()
            self._require(required, columns)
            self._total = frame.select(pl.len()).collect().item()
            selected = frame.select([name for name in [*required, *optional] if name in columns])
            read_count = 0
            self._position = lambda: read_count
            for batch in selected.collect_batches(chunk_size=_PARQUET_ROWS, maintain_order=True):
                yield from batch.iter_rows(named=True)
                read_count += batch.height
        except (OSError, pl.exceptions.PolarsError) as error:
            raise InvalidArgument(f"{self.path} is not readable as Parquet: {error}") from error

    def _require(self, required: Iterable[str], columns: list[str]) -> None:
        missing = [name for name in required if name not in columns]
        if missing:
            existing = ", ".join(columns) or "none"
            raise InvalidArgument(f"{self.path} lacks the column {', '.join(missing)}; its columns are {existing}")

    def close(self) -> None:
        (self._text or self._raw).close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.close()


def _text(value: object) -> str:
    """An id as text; empty for a value that is not an id, so that the server refuses the row."""
    if isinstance(value, str):
        return value
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else ""
