"""Writes a Parquet file from parts, of which only one at a time is in memory."""

import os
import tempfile
from collections.abc import Iterable
from pathlib import Path

import polars as pl

from training.data.reading.tables import check_directory
from training.errors import ConfigError


def check_parquet(path: Path) -> None:
    """Raise ConfigError for a name that does not end with .parquet, or a missing directory."""
    if path.suffix.lower() != ".parquet":
        raise ConfigError(f"{path} has an unknown suffix; the output is Parquet, so name it {path.stem}.parquet.")
    check_directory(path)


def write_parts(parts: Iterable[pl.DataFrame], path: Path) -> int:
    """Write the parts, at least one, as one Parquet file in one step; returns the number of rows.

    Raises ConfigError as `check_parquet` does, and for a path that cannot be written.
    """
    check_parquet(path)
    rows = 0
    try:
        with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as scratch:
            written = []
            for number, part in enumerate(parts):
                written.append(Path(scratch) / f"{number}.parquet")
                part.write_parquet(written[-1], compression="lz4")
                rows += len(part)
            whole = Path(scratch) / path.name
            pl.scan_parquet(written).sink_parquet(whole)
            os.replace(whole, path)
    except OSError as error:
        raise ConfigError(f"Cannot write {path}: {error.strerror or error}.") from error
    return rows
