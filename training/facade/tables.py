"""Tables that a caller holds in memory, as files that a stage can read."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl
from polars.exceptions import PolarsError

from training.data.reading.sources import Log, source_of
from training.errors import ConfigError, LogError

if TYPE_CHECKING:
    import pandas as pd

    Table = pl.DataFrame | pl.LazyFrame | pd.DataFrame | str | Path
    """A table in memory, of Polars or pandas, or the path of a file."""


class TableFiles:
    """Writes tables of Polars and pandas into a directory, and names the argument instead of the file in errors."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._argument_by_path: dict[str, str] = {}

    def log(self, events: Any) -> Log:
        """The log in `events`: a table, a file, or another source as `--events` names it. Raises LogError."""
        return source_of(events) if isinstance(events, str) else self.path("events", events)

    def path(self, argument: str, table: Any) -> Path:
        """The file of a table. Raises LogError for a table that cannot be written, and names the column."""
        if isinstance(table, str | Path):
            return _existing(argument, Path(table))
        path = self._directory / f"{argument}.parquet"
        _as_polars(argument, table).write_parquet(path)
        self._argument_by_path[str(path)] = argument
        return path

    def reworded(self, message: str) -> str:
        """The message with the names of arguments in place of files that a caller does not know."""
        for path, argument in self._argument_by_path.items():
            message = message.replace(path, f"`{argument}`")
        return message


@contextmanager
def table_files() -> Iterator[TableFiles]:
    """A `TableFiles` whose files are gone afterwards. Errors that name them name the arguments instead."""
    with tempfile.TemporaryDirectory(prefix="segrec-") as directory:
        files = TableFiles(Path(directory))
        try:
            yield files
        except (LogError, ConfigError) as error:
            raise type(error)(files.reworded(str(error))) from error


def _existing(argument: str, path: Path) -> Path:
    if not path.exists():
        raise LogError(f"There is no file {path}, which `{argument}` names.")
    return path


def _as_polars(argument: str, table: Any) -> pl.DataFrame:
    if isinstance(table, pl.LazyFrame):
        try:
            return table.collect()
        except PolarsError as error:
            raise LogError(f"The LazyFrame of `{argument}` cannot be computed: {_first_line(error)}.") from error
    if isinstance(table, pl.DataFrame):
        return table
    if type(table).__module__.partition(".")[0] != "pandas" or not hasattr(table, "columns"):
        raise LogError(f"`{argument}` must be a DataFrame of Polars or pandas, or a path, not {type(table).__name__}.")
    return _from_pandas(argument, table)


def _from_pandas(argument: str, table: "pd.DataFrame") -> pl.DataFrame:
    names = [str(name) for name in table.columns]
    if doubled := next((name for name in names if names.count(name) > 1), None):
        raise LogError(f"`{argument}` has more than one column `{doubled}`; rename or drop one of them.")
    columns = {}
    for place, name in enumerate(names):
        try:
            columns[name] = pl.Series(name, pl.from_pandas(table.iloc[:, place]))
        except ModuleNotFoundError as error:
            raise LogError(f"`{argument}` is a table of pandas, which needs pyarrow: `pip install pyarrow`.") from error
        except (ValueError, TypeError, PolarsError) as error:  # pyarrow's own errors are of the first two kinds
            raise LogError(f"The column `{name}` of `{argument}` cannot be read: {_first_line(error)}.") from error
    return pl.DataFrame(columns)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
