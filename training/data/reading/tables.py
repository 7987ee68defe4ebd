"""Opens table files as Polars LazyFrames, and counts their rows apart from Polars. Writes tables."""

import codecs
import csv
import glob
import io
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
from polars.exceptions import PolarsError
from segrec.reading.delimited import Delimited
from segrec.reading.json_lines import json_values
from segrec.reading.refusals import Refused
from segrec.reading.text_file import TextFile
from segrec.reading.uuids import uuid_columns

from training.data.reading.sources import Log
from training.data.reading.text_rows import count_rows
from training.data.reading.uuids import with_uuid_texts
from training.errors import ConfigError, LogError

_TEXT, _JSON, _PARQUET = "delimited text", "NDJSON", "Parquet"
_KINDS: Mapping[str, str] = {
    ".csv": _TEXT,
    ".tsv": _TEXT,
    ".txt": _TEXT,
    ".dat": _TEXT,
    ".ndjson": _JSON,
    ".jsonl": _JSON,
    ".json": _JSON,
    ".parquet": _PARQUET,
}
_COMPRESSED = (".gz", ".zst")

_WRITERS: Mapping[str, Callable[[pl.DataFrame, Path], object]] = {
    ".parquet": lambda frame, path: frame.write_parquet(path),
    ".csv": lambda frame, path: frame.write_csv(path),
    ".tsv": lambda frame, path: frame.write_csv(path, separator="\t"),
    ".ndjson": lambda frame, path: frame.write_ndjson(path),
    ".jsonl": lambda frame, path: frame.write_ndjson(path),
}
_HEAD_BYTES = 1 << 16
_PARQUET_MAGIC = b"PAR1"
_NO_PLAIN_TEXT = (
    b"\x1f\x8b",
    b"\x28\xb5\x2f\xfd",
    codecs.BOM_UTF16_LE,
    codecs.BOM_UTF16_BE,
    _PARQUET_MAGIC,
    b"PK\x03\x04",
)


@dataclass(frozen=True, slots=True)
class Table:
    """A table that can be read; every column of delimited text is text.

    `row_count` is the number of rows in the file, without a header, counted apart from the parser of `frame`.
    """

    path: Path
    frame: pl.LazyFrame
    row_count: int
    doubled: tuple[str, ...] = ()
    """Names that more than one column has."""

    @property
    def is_json(self) -> bool:
        """Whether the file is NDJSON, where each value has a type of its own."""
        return is_ndjson(self.path)


def open_table(path: Path, scratch: Path, *, has_header: bool = True) -> Table:
    """The table in `path`, whose suffix names its format; `.gz` and `.zst` may follow.

    Text that is not regular UTF-8 is first copied into the directory `scratch`. Without a header, the columns of
    delimited text are named 1, 2, 3 and so on. Raises LogError for a file that is missing, empty, of another kind or
    damaged; for text it names the line.
    """
    kind = _kind(path)
    if not path.is_file():
        raise LogError(f"There is no file {path}.")
    if path.stat().st_size == 0:
        raise LogError(f"{path} is empty.")
    if not has_header and kind != _TEXT:
        raise LogError(f"{path} is {kind}, which names its columns: take `header = false` out of [columns].")
    with readable(path):
        if kind == _TEXT:
            return _open_delimited(path, scratch, has_header)
        if kind == _JSON:
            return _open_json(path, scratch)
        if not _head(path).startswith(_PARQUET_MAGIC):
            raise LogError(f"{path} is no Parquet file; name it after its format, such as {path.stem}.csv.")
        return _open_parquet(path)


def check_row_count(where: object, counted: int, read: int) -> None:
    """Raise LogError if the parser gave other rows than the file holds."""
    if read != counted:
        raise LogError(
            f"{where} holds {counted:,} rows, but {read:,} were read: a fault of the reader; save it as Parquet, and "
            "report this."
        )


def scan_table(path: Path, scratch: Path) -> pl.LazyFrame:
    """The frame of `open_table`."""
    return open_table(path, scratch).frame


def write_table(frame: pl.DataFrame, path: Path) -> None:
    """Write a table in one step; format by suffix: .parquet, .csv, .tsv, .ndjson or .jsonl.

    Raises ConfigError for another suffix, and for a path that cannot be written.
    """
    check_writable(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        _WRITERS[path.suffix.lower()](frame, temporary)
        temporary.replace(path)
    except OSError as error:
        raise ConfigError(f"Cannot write {path}: {error.strerror or error}.") from error
    finally:
        temporary.unlink(missing_ok=True)


def check_writable(path: Path) -> None:
    """Raise ConfigError for a suffix that `write_table` does not know, or a missing directory."""
    if path.suffix.lower() not in _WRITERS:
        raise ConfigError(f"{path} has an unknown suffix; write to one of {', '.join(_WRITERS)}.")
    check_directory(path)


def check_directory(path: Path) -> None:
    """Raise ConfigError if the directory of `path` does not exist."""
    if not path.parent.is_dir():
        raise ConfigError(f"Cannot write {path}: there is no directory {path.parent}.")


@contextmanager
def readable(path: Log) -> Iterator[None]:
    """Turn what Polars and `segrec.reading` raise about the content of `path` into a LogError."""
    try:
        yield
    except Refused as error:
        raise LogError(f"{error}.") from error
    except (PolarsError, OSError) as error:
        reason = str(error).strip().split("\n")[0]
        kind = f" as {_kind(path)}" if isinstance(path, Path) else ""
        raise LogError(f"{path} cannot be read{kind}: {reason}.") from error


def column_names(frame: pl.LazyFrame) -> list[str]:
    """Column names, in order."""
    return frame.collect_schema().names()


def is_ndjson(path: Path) -> bool:
    """Whether the suffix says that the file is NDJSON."""
    return _kind(path) == _JSON


def json_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The objects of an NDJSON file, each with its line. Raises Refused, also while reading."""
    with TextFile(path) as text:
        for line, value in json_values(text.lines(), path):
            if not isinstance(value, dict):
                raise Refused(f"{path}, line {line:,} is not an object: write one {{…}} on each line")
            yield line, value


def _kind(path: Path) -> str:
    suffix = _suffix(path)
    if suffix not in _KINDS or (_KINDS[suffix] == _PARQUET and path.suffix.lower() in _COMPRESSED):
        raise LogError(
            f"{path} has an unknown suffix; save the table as one of {', '.join(_KINDS)}; text also .gz, .zst."
        )
    return _KINDS[suffix]


def _suffix(path: Path) -> str:
    """The suffix that names the format, in lower case."""
    return (Path(path.stem) if path.suffix.lower() in _COMPRESSED else path).suffix.lower()


def _open_delimited(path: Path, scratch: Path, has_header: bool) -> Table:
    """Regular text is read as it is, other text from a copy in regular form."""
    delimiter = "\t" if _suffix(path) == ".tsv" else None
    source = _utf8_copy(path, scratch) if _head(path).startswith(_NO_PLAIN_TEXT) else path
    regular = _regular_text(source, delimiter, has_header)
    if regular is None:
        source, has_header = _regular_copy(source, path, scratch, delimiter, has_header), True
        regular = _regular_text(source, ",", has_header)
        assert regular is not None, "the copy is regular"
    table, rows, has_quotes = regular
    names = table.names
    doubled = tuple({name for name in names if names.count(name) > 1})
    frame = pl.scan_csv(
        source,
        separator=table.delimiter,
        quote_char='"' if has_quotes else None,
        has_header=has_header,
        new_columns=None if doubled else names,
        infer_schema=False,
        glob=False,
    )
    return Table(path, frame, rows - has_header, doubled)


def _regular_text(path: Path, delimiter: str | None, has_header: bool) -> tuple[Delimited, int, bool] | None:
    """The columns, number of rows with header, and whether there are quotes; None for text that is not regular."""
    try:
        text = codecs.getincrementaldecoder("utf-8-sig")().decode(_head(path))
        table = Delimited(io.StringIO(text, newline=""), path, delimiter=delimiter, has_header=has_header)
    except (UnicodeDecodeError, Refused):
        return None
    begins_with_mark = text.lower().startswith(("sep=", '"sep='))
    counted = None if begins_with_mark else count_rows(path, table.delimiter, len(table.names))
    return (table, *counted) if counted else None


def _regular_copy(source: Path, path: Path, scratch: Path, delimiter: str | None, has_header: bool) -> Path:
    """The rows of `source`, with a header, as regular text in `scratch`. Raises Refused that names `path`."""
    copy = _new_file(scratch, ".csv")
    with TextFile(source) as text, copy.open("w", encoding="utf-8", newline="") as new:
        table = Delimited(text.lines(), path, delimiter=delimiter, has_header=has_header)
        writer = csv.writer(new)
        writer.writerow(table.names)
        writer.writerows(row for _, row in table.rows())
    return copy


def _open_parquet(path: Path) -> Table:
    """Polars knows columns of UUIDs only as bytes; they are texts here."""
    frame = pl.scan_parquet(path, glob=False, hive_partitioning=False)
    binary = [name for name, dtype in frame.collect_schema().items() if dtype == pl.Binary]
    rows = frame.select(pl.len()).collect().item()
    return Table(path, with_uuid_texts(frame, uuid_columns(str(path), binary)), rows)


def _open_json(path: Path, scratch: Path) -> Table:
    """NDJSON with the keys of all lines; if Polars cannot give the columns one type each, all of them are text."""
    is_plain = not _head(path).startswith((*_NO_PLAIN_TEXT, codecs.BOM_UTF8))
    source = path if is_plain else _utf8_copy(path, scratch)
    with source.open("rb") as file:
        rows = sum(not line.isspace() for line in file)
    try:
        frame = pl.scan_ndjson(glob.escape(str(source)), infer_schema_length=None)
        frame.collect_schema()
        return Table(path, frame, rows)
    except PolarsError:
        return Table(path, *_json_as_text(path))


def _json_as_text(path: Path) -> tuple[pl.LazyFrame, int]:
    """The table with every value as text, lists and objects as JSON, and the number of rows. Raises Refused."""
    columns: dict[str, list[str | None]] = {}
    count = 0
    for _, values in json_rows(path):
        for name, value in values.items():
            column = columns.setdefault(name, [])
            column += [None] * (count - len(column))
            is_text = value is None or isinstance(value, str)
            column.append(value if is_text else json.dumps(value, ensure_ascii=False))
        count += 1
    padded = {name: column + [None] * (count - len(column)) for name, column in columns.items()}
    return pl.LazyFrame(padded, dict.fromkeys(padded, pl.String)), count


def _utf8_copy(path: Path, scratch: Path) -> Path:
    copy = _new_file(scratch, _suffix(path))
    with TextFile(path) as text, copy.open("w", encoding="utf-8", newline="") as new:
        new.writelines(text.lines())
    return copy


def _new_file(scratch: Path, suffix: str) -> Path:
    scratch.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(suffix, dir=scratch)
    os.close(descriptor)
    return Path(name)


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(_HEAD_BYTES)
