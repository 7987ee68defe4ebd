"""Reads users and events from delimited text, NDJSON, Parquet or one id per line, without loading the whole file."""

import csv
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

from segrec.cli.files.input_tables import JsonTable, ParquetTable, Table, TextTable
from segrec.cli.files.reading_options import Rules, column_option
from segrec.errors import InvalidArgument
from segrec.reading.columns import find_columns, is_common_name, require_columns
from segrec.reading.delimited import Delimited, delimiter_of
from segrec.reading.refusals import Refused, Unreadable
from segrec.reading.text_file import TextFile
from segrec.reading.values import NUMBER
from segrec.reading.words import BLANKS, is_missing

NDJSON_SUFFIXES = (".ndjson", ".jsonl", ".json")
_COMPRESSED = (".gz", ".zst")
_SAMPLE_ROWS = 100
_DAY_SECONDS = 86_400
_YEAR_2000_MS = 946_684_800_000
_STANDARD_INPUT = "/dev/stdin"
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")


def address_problem(path: str) -> str:
    """Why a path such as s3://bucket/users.csv is refused."""
    return (
        f"{path} is an address, and segrec reads and writes files of this machine: copy the file with the tool of its "
        "store (such as `aws s3 cp`), or mount the store as a directory"
    )


def is_address(path: str) -> bool:
    """Whether the path names a place on the network, by its scheme."""
    return bool(_ADDRESS.match(path))


@dataclass(frozen=True)
class InputRow:
    """The values of one row by role, such as `user_id`, as the file has them."""

    number: int
    """The row's number from 1, without the header and blank lines."""
    line: int | None
    """The line of a text file at which the row begins, from 1."""
    values: Mapping[str, Any]

    @property
    def place(self) -> str:
        """Where the row is, for the beginning of a sentence."""
        return _place(self.number, self.line)


class InputUser(NamedTuple):
    """A user id and where the file has it."""

    user_id: str
    """A missing id and a value that is no id give an empty text, which the server refuses as a row."""
    number: int
    """The row's number from 1, without the header and blank lines."""
    line: int | None
    """The line of a text file at which the row begins, from 1."""

    @property
    def place(self) -> str:
        """Where the row is, for the beginning of a sentence."""
        return _place(self.number, self.line)


def _place(number: int, line: int | None) -> str:
    return f"Row {number}" if line is None else f"Line {line}"


class InputFile:
    """A file of rows, read by `rules`. A text file is checked to its end before the first row is given.

    Raises InvalidArgument, also while reading, when the file cannot be read.
    """

    def __init__(self, path: str, rules: Rules | None = None) -> None:
        if is_address(path):
            raise InvalidArgument(address_problem(path))
        self.path = path
        self.rules = rules or Rules()
        self.user_count = 0
        """Number of users in the file, once the first one is read."""
        suffixes = [suffix.lower() for suffix in Path(path).suffixes]
        self.suffix = next((suffix for suffix in reversed(suffixes) if suffix not in _COMPRESSED), "")
        self._text: TextFile | None = None
        self._opened: Table | None = None
        self._parquet: ParquetTable | None = None
        try:
            if self.suffix == ".parquet":
                self._parquet = ParquetTable(path)
            else:
                self._text = TextFile(_STANDARD_INPUT if path == "-" else path)
        except Refused as error:
            raise InvalidArgument(str(error)) from error

    def users(self) -> Iterator[InputUser]:
        """The ids of the user column or field; without such a column, one id per line. Skips blank lines."""
        try:
            for number, (line, value) in enumerate(self._users(), start=1):
                yield InputUser(_id_or_nothing(value, self.rules), number, line)
        except Refused as error:
            raise InvalidArgument(str(error)) from error

    def rows(self, required: Sequence[str], optional: Sequence[str]) -> Iterator[InputRow]:
        """Rows with the columns of these roles. Raises InvalidArgument when a required column is missing.

        Asks, by raising InvalidArgument, for the time column when none is recognised and an unused column holds times.
        """
        try:
            table = self._table()
            by_role = self._columns(table.names, [*required, *optional])
            require_columns(by_role, table.names, required, self.path, column_option)
            if "timestamp" in optional and "timestamp" not in by_role and self.rules.columns.get("timestamp") is None:
                self._ask_about_times(table, by_role)
            for number, (line, values) in enumerate(table.rows(list(dict.fromkeys(by_role.values()))), start=1):
                yield InputRow(number, line, {role: values.get(name) for role, name in by_role.items()})
        except Refused as error:
            raise InvalidArgument(str(error)) from error

    def _columns(self, names: Sequence[str], roles: Sequence[str]) -> dict[str, str]:
        return find_columns(names, self.rules.columns, roles, self.path, column_option)

    def _table(self) -> Table:
        self._opened = self._opened or self._open()
        return self._opened

    def _open(self) -> Table:
        if self._parquet:
            return self._parquet
        assert self._text is not None
        if self.suffix in NDJSON_SUFFIXES:
            return JsonTable(self._text)
        return TextTable(self._text, self.suffix)

    @property
    def column_names(self) -> list[str]:
        """The names of the file's columns. Raises InvalidArgument when the file cannot be read."""
        try:
            return self._table().names
        except Refused as error:
            raise InvalidArgument(str(error)) from error

    def column_values(self, *names: str) -> Iterator[tuple[Any, ...]]:
        """The values of these columns, row by row, as the file has them. Raises InvalidArgument if one is missing."""
        try:
            table = self._table()
            missing = [name for name in names if name not in table.names]
            if missing:
                raise Refused(f"{self.path} lacks the column {', '.join(missing)}; it has {', '.join(table.names)}")
            yield from (tuple(values.get(name) for name in names) for _, values in table.rows(list(names)))
        except Refused as error:
            raise InvalidArgument(str(error)) from error

    def _users(self) -> Iterator[tuple[int | None, object]]:
        if self._text and self.suffix in NDJSON_SUFFIXES:
            yield from self._json_users(JsonTable(self._text))
        elif self._text and not self._has_user_column(self._text):
            self.user_count = sum(1 for _ in self._listed_users(self._text))
            yield from self._listed_users(self._text)
        else:
            table = self._table()
            self.user_count = table.row_count
            by_role = self._columns(table.names, ["user_id"])
            require_columns(by_role, table.names, ["user_id"], self.path, column_option)
            yield from ((line, values[by_role["user_id"]]) for line, values in table.rows([by_role["user_id"]]))

    def _json_users(self, table: JsonTable) -> Iterator[tuple[int | None, object]]:
        self.user_count = table.row_count
        by_role = self._columns(table.names, ["user_id"])
        if table.names:
            require_columns(by_role, table.names, ["user_id"], self.path, column_option)
        for line, value in table.values():
            yield line, value.get(by_role["user_id"]) if isinstance(value, dict) else value

    def _has_user_column(self, text: TextFile) -> bool:
        """Whether the file is a table, which may still lack a user column; if not, the file is a list of ids."""
        first = next((line for line in text.lines() if line.strip(BLANKS)), "")
        if first.lstrip(BLANKS).startswith(("{", "[")):
            raise Refused(f"{self.path} looks like JSON: write one object or id on each line, and name it .ndjson")
        if not first or "user_id" in self.rules.columns or first.lower().startswith(("sep=", '"sep=')):
            return bool(first)
        delimiter = "\t" if self.suffix == ".tsv" else delimiter_of(first)
        try:
            names = next(csv.reader([first], delimiter=delimiter))
        except csv.Error:  # a line too long for a header
            return False
        if any(is_common_name(name, "user_id") for name in names):
            return True
        return len(names) > 1 and (self.suffix in (".csv", ".tsv") or "\t" in first)

    def _listed_users(self, text: TextFile) -> Iterator[tuple[int, object]]:
        if self.suffix in (".csv", ".tsv") and any(line.strip(BLANKS) for line in text.lines()):
            rows = Delimited(text.lines(), self.path, has_header=False).rows()
            yield from ((line, row[0]) for line, row in rows)
            return
        for number, line in enumerate(text.lines(), start=1):
            user_id = line.strip(BLANKS)
            if user_id[:1] == user_id[-1:] == '"' and len(user_id) > 1:
                yield number, user_id[1:-1].replace('""', '"')
            elif user_id:
                yield number, user_id

    def _ask_about_times(self, table: Table, by_role: Mapping[str, str]) -> None:
        unused = [name for name in table.names if name not in by_role.values()]
        sample = [values for _, values in islice(table.rows(unused), _SAMPLE_ROWS)]
        for name in unused:
            if _are_times([values.get(name) for values in sample], self.rules):
                raise Refused(
                    f"{self.path} has no column of a common name for the timestamp, but `{name}` holds times: give "
                    f"{column_option('timestamp', name)}, or `--column timestamp=` for events without a time."
                )

    def close(self) -> None:
        if self._text:
            self._text.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.close()


def _id_or_nothing(value: object, rules: Rules) -> str:
    try:
        return rules.id_of(value) or ""
    except Unreadable:
        return ""


def _are_times(values: Sequence[object], rules: Rules) -> bool:
    """Whether the values are dates, nine of ten at least, or numbers that all are times from 2000 until tomorrow."""
    given = [value for value in values if value is not None and not is_missing(str(value), rules.words)]
    times = [moment for moment in map(partial(_time_or_none, rules), given) if moment is not None]
    if any(re.match(NUMBER, str(value).strip(BLANKS)) for value in given):
        tomorrow = (time.time() + _DAY_SECONDS) * 1000
        return len(times) == len(given) and len({*times}) > 1 and _YEAR_2000_MS <= min(times) <= max(times) <= tomorrow
    return bool(times) and len(times) >= 0.9 * len(given)


def _time_or_none(rules: Rules, value: object) -> int | None:
    try:
        return rules.milliseconds_of(value)
    except Unreadable:
        return None
