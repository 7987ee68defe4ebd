"""Files as tables with named columns: delimited text, NDJSON and Parquet."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

from segrec.errors import InvalidArgument
from segrec.reading.delimited import Delimited
from segrec.reading.json_lines import json_values
from segrec.reading.refusals import Refused
from segrec.reading.text_file import TextFile
from segrec.reading.uuids import uuid_columns, uuid_text

_PARQUET_ROWS = 16_384


def polars() -> ModuleType:
    """Polars, which only Parquet needs. Raises InvalidArgument when Polars is not installed."""
    try:
        import polars as module
    except ImportError:
        message = "Parquet needs Polars, which is not installed: `pip install polars`, or use CSV or NDJSON"
        raise InvalidArgument(message) from None
    return module


class Table(Protocol):
    """A file with named columns. `rows` gives each row's line, if the file has lines, and its values by name."""

    names: list[str]
    row_count: int

    def rows(self, columns: list[str]) -> Iterator[tuple[int | None, Mapping[str, Any]]]: ...


class TextTable:
    """Delimited text."""

    def __init__(self, text: TextFile, suffix: str) -> None:
        self._text = text
        self._delimiter = "\t" if suffix == ".tsv" else None
        table = self._open()
        self.names = table.names
        self.row_count = sum(1 for _ in table.rows())  # refuses what cannot be read before the first row is used

    def _open(self) -> Delimited:
        return Delimited(self._text.lines(), self._text.path, delimiter=self._delimiter)

    def rows(self, columns: list[str]) -> Iterator[tuple[int | None, Mapping[str, Any]]]:
        indexes = [(name, self.names.index(name)) for name in columns]
        for line, row in self._open().rows():
            yield line, {name: row[index] for name, index in indexes}


class JsonTable:
    """NDJSON; its columns are the keys of all lines."""

    def __init__(self, text: TextFile) -> None:
        self._text = text
        names: dict[str, None] = {}
        self.row_count = 0
        for _, value in self.values():
            self.row_count += 1
            if isinstance(value, dict):
                names |= dict.fromkeys(value)
        self.names = list(names)

    def values(self) -> Iterator[tuple[int, Any]]:
        """The line and the value of every line that is not blank."""
        return json_values(self._text.lines(), self._text.path)

    def rows(self, columns: list[str]) -> Iterator[tuple[int | None, Mapping[str, Any]]]:
        for line, value in self.values():
            yield line, {name: value.get(name) for name in columns} if isinstance(value, dict) else {}


class ParquetTable:
    """A Parquet file, read by Polars in batches."""

    def __init__(self, path: str) -> None:
        pl = polars()
        self._path = path
        self._errors: tuple[type[Exception], ...] = (OSError, pl.exceptions.PolarsError)
        if Path(path).is_dir():
            raise Refused(f"{path} is a directory: give one file")
        with self._readable():
            self._frame = pl.scan_parquet(path, glob=False)
            self.names = self._frame.collect_schema().names()
            self.row_count: int = self._frame.select(pl.len()).collect().item()
            schema = self._frame.collect_schema()
            self._uuids = uuid_columns(path, [name for name, dtype in schema.items() if dtype == pl.Binary])

    def rows(self, columns: list[str]) -> Iterator[tuple[int | None, Mapping[str, Any]]]:
        with self._readable():
            for batch in self._frame.select(columns).collect_batches(chunk_size=_PARQUET_ROWS, maintain_order=True):
                for row in batch.iter_rows(named=True):
                    yield None, row | {name: uuid_text(row[name]) for name in self._uuids & row.keys()}

    @contextmanager
    def _readable(self) -> Iterator[None]:
        try:
            yield
        except self._errors as error:
            reason = str(error).split("\n")[0]
            raise Refused(f"{self._path} is not readable as Parquet: {reason}") from error
