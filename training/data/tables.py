"""Opens table files as Polars LazyFrames: format by suffix; detects encoding and delimiter of text. Writes tables."""

import codecs
import gzip
import io
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import polars as pl
from polars.exceptions import PolarsError

from training.data.sources import Log, Source
from training.errors import ConfigError, LogError

SUFFIXES = (".csv", ".csv.gz", ".tsv", ".tsv.gz", ".parquet", ".jsonl", ".ndjson", ".jsonl.gz", ".ndjson.gz")
"""Suffixes that `scan_table` opens, in upper or lower case."""

_WRITERS: Mapping[str, Callable[[pl.DataFrame, Path], object]] = {
    ".parquet": lambda frame, path: frame.write_parquet(path),
    ".csv": lambda frame, path: frame.write_csv(path),
    ".tsv": lambda frame, path: frame.write_csv(path, separator="\t"),
    ".ndjson": lambda frame, path: frame.write_ndjson(path),
    ".jsonl": lambda frame, path: frame.write_ndjson(path),
}
_HEAD_BYTES = 1 << 20
_GB2312_SHARE = 0.8  # least share of two-byte characters in Chinese text; accented Latin text has almost none


def scan_table(path: Path, scratch: Path) -> pl.LazyFrame:
    """The table in `path`; every column of a CSV or TSV file is text.

    A GB18030 or UTF-16 file is first copied as UTF-8 into `scratch`.
    Raises LogError for a missing or empty file, an unknown suffix or another encoding.
    """
    kind = _kind(path)
    if not path.is_file():
        raise LogError(f"There is no file {path}.")
    if path.stat().st_size == 0:
        raise LogError(f"{path} is empty.")
    with readable(path):
        if kind == "parquet":
            frame = pl.scan_parquet(path)
        elif kind == "ndjson":
            frame = pl.scan_ndjson(_as_utf8(path, scratch), infer_schema_length=10_000)
        else:
            source = _as_utf8(path, scratch)
            frame = pl.scan_csv(source, separator=_separator(source, kind), infer_schema=False)
        frame.collect_schema()
    return frame


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
    """Turn errors that Polars raises about the content of `path` into a LogError."""
    try:
        yield
    except (PolarsError, OSError, EOFError, UnicodeDecodeError) as error:
        reason = str(error).strip().split("\n")[0]
        kind = "" if isinstance(path, Source) else f" as {_kind(path)}"
        raise LogError(f"{path} cannot be read{kind}: {reason}.") from error


def column_names(frame: pl.LazyFrame) -> list[str]:
    """Column names, in order."""
    return frame.collect_schema().names()


def _kind(path: Path) -> str:
    name = path.name.lower()
    suffix = next((known for known in SUFFIXES if name.endswith(known)), None)
    if suffix is None:
        raise LogError(f"{path} has an unknown suffix; save the table as one of {', '.join(SUFFIXES)}.")
    kind = suffix.split(".")[1]
    return "ndjson" if kind == "jsonl" else kind


def _open(path: Path) -> IO[bytes]:
    return gzip.open(path) if path.suffix.lower() == ".gz" else path.open("rb")  # type: ignore[return-value]


def _as_utf8(path: Path, scratch: Path) -> Path:
    """`path` itself if it begins with UTF-8 text, else a UTF-8 copy in `scratch`."""
    with _open(path) as file:
        encoding = _encoding(file.read(_HEAD_BYTES), path)
    if encoding == "utf-8":
        return path
    scratch.mkdir(parents=True, exist_ok=True)
    copy = scratch / path.name.removesuffix(path.suffix if path.suffix.lower() == ".gz" else "")
    with io.TextIOWrapper(_open(path), encoding=encoding, newline="") as old, copy.open("w", encoding="utf-8") as new:
        while block := old.read(_HEAD_BYTES):
            new.write(block)
    return copy


def _encoding(head: bytes, path: Path) -> str:
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    if _decodes(head, "utf-8"):
        return "utf-8"
    if _decodes(head, "gb18030") and _gb2312_share(head) >= _GB2312_SHARE:
        return "gb18030"
    raise LogError(
        f"{path} is neither UTF-8 nor GB18030 text; save it as UTF-8, for instance with "
        f"`iconv -f ENCODING -t UTF-8 {path.name} > utf8-{path.name}`."
    )


def _decodes(head: bytes, encoding: str) -> bool:
    """Whether `head` is text in `encoding`; its last character may be cut off."""
    try:
        codecs.getincrementaldecoder(encoding)().decode(head, final=False)
    except UnicodeDecodeError:
        return False
    return True


def _gb2312_share(head: bytes) -> float:
    """Share of the non-ASCII characters whose second byte is 0xA1 or more, as in everyday Chinese."""
    pairs = both = position = 0
    while position < len(head) - 1:
        if head[position] < 0x80:
            position += 1
            continue
        pairs += 1
        both += head[position + 1] >= 0xA1
        position += 2
    return both / pairs if pairs else 0.0


def _separator(path: Path, kind: str) -> str:
    """The delimiter: a tab for TSV; for CSV a comma, or, if the first line has none, a semicolon, tab or bar."""
    if kind == "tsv":
        return "\t"
    with _open(path) as file:
        line = file.readline(_HEAD_BYTES).decode("utf-8-sig", errors="replace")
    return "," if "," in line else next((mark for mark in ";\t|" if mark in line), ",")
