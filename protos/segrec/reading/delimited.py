"""Rows of delimited text, by the rules of Python's `csv`, each with the line at which it begins."""

import csv
import re
from collections.abc import Iterable, Iterator
from itertools import chain

from segrec.reading.columns import COMMON_NAMES, plain_name
from segrec.reading.refusals import Refused
from segrec.reading.words import BLANKS

DELIMITERS = ",;\t|"
"""Delimiters that are found by themselves, the likeliest first."""
LONGEST_FIELD = 1 << 20
"""Characters of the longest field. A longer one has a quote that is never closed."""

_SEP_LINE = re.compile(r'^"?sep=([^"\r\n\0])"?[\r\n]*$', re.IGNORECASE)
_QUOTED = re.compile(r'"(?:[^"]|"")*"')
_LINE_END = re.compile(r"\r\n|\r|\n")
_NAME_BLANKS = BLANKS + "\ufeff"
_KNOWN_NAMES = frozenset().union(*COMMON_NAMES.values())


class Delimited:
    """A table of delimited text: the names of its columns, and its rows.

    `lines` are a file's lines with their ends, `where` is the file's name in messages. Without a header, the columns
    are named 1, 2, 3 and so on. The delimiter is the one given, that of a first line such as `sep=;`, or the one that
    the header shows. Raises Refused, also while reading: for a file without a header, for a quote that is never closed,
    with the line where it opens, and for a row with more fields than the header has.
    """

    def __init__(
        self, lines: Iterable[str], where: object, *, delimiter: str | None = None, has_header: bool = True
    ) -> None:
        self._where = where
        self._source = iter(lines)
        self._line = 0  # number of the line at which the row begins, once rows are read
        self._row_lines: list[str] = []
        first = self._first_line()
        mark = _SEP_LINE.match(first)
        if mark:
            delimiter = mark[1]
            first = self._first_line()
        self.delimiter = delimiter or delimiter_of(first)
        self._pending = [first] if first else []
        self._rows = self._parsed()
        line, header = next(self._rows, (0, []))
        if not header:
            raise Refused(f"{where} has no rows")
        self.names = [name.strip(_NAME_BLANKS) for name in header]
        self._begun: list[tuple[int, list[str]]] = []
        if not has_header:
            self._begun = [(line, header)]
            self.names = [str(position + 1) for position in range(len(header))]

    def rows(self) -> Iterator[tuple[int, list[str]]]:
        """Each row once: the number of its first line, from 1, and one field for each name; short rows get empty ones.

        Blank lines are left out.
        """
        width = len(self.names)
        yield from self._begun
        for line, row in self._rows:
            if len(row) > width:
                if any(field.strip(BLANKS) for field in row[width:]):
                    raise Refused(
                        f"{self._where}, line {line:,}: the row has {len(row)} fields, but there are {width} columns; "
                        f"put fields that hold the delimiter {_shown(self.delimiter)} into double quotes"
                    )
                del row[width:]
            elif len(row) < width:
                row += [""] * (width - len(row))
            yield line, row

    def _first_line(self) -> str:
        """The first line with text, or an empty text."""
        for line in self._source:
            self._line += 1
            if line.strip(_NAME_BLANKS):
                return line
        return ""

    def _lines(self) -> Iterator[str]:
        """The lines that the rows take from the file; those of the row that is read are in `_row_lines`."""
        keep = self._row_lines.append
        for line in chain(self._pending, self._source):
            keep(line)
            yield line

    def _parsed(self) -> Iterator[tuple[int, list[str]]]:
        csv.field_size_limit(LONGEST_FIELD)
        reader = csv.reader(self._lines(), delimiter=self.delimiter, strict=True)
        blanks = BLANKS.replace(self.delimiter, "")
        row_lines, self._line = self._row_lines, self._line - len(self._pending) + 1
        while True:
            try:
                row = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                row = self._leniently(error)
            if len(row) > 1 or any(line.strip(blanks) for line in row_lines):
                yield self._line, row
            self._line += len(row_lines)
            row_lines.clear()

    def _leniently(self, error: csv.Error) -> list[str]:
        """A row with text after a closing quote: on one line the quotes are taken out, over lines one is unclosed."""
        is_long = "limit" in str(error)
        if len(self._row_lines) == 1 and not is_long:
            line = self._row_lines[0].rstrip("\r\n") + "\n"
            row = next(csv.reader([line], delimiter=self.delimiter))
            if not row[-1].endswith("\n"):
                return row
        opened = _opening_line(self._row_lines, self.delimiter)
        if opened is None:
            raise Refused(f"{self._where}, line {self._line:,}: a field is longer than {LONGEST_FIELD:,} characters")
        raise Refused(
            f"{self._where}, line {self._line + opened:,}: a field begins with a double quote that is never closed; "
            'close it, or write the field as """…", with the quotes of the text doubled'
        )


def delimiter_of(line: str, delimiters: str = DELIMITERS) -> str:
    """The delimiter of a header, which gives most of the common names; else a comma before the others."""
    plain = _QUOTED.sub(lambda quoted: re.sub(f"[{re.escape(delimiters)}]", " ", quoted[0]), line)
    present = [mark for mark in delimiters if mark in plain]
    return max(present, key=lambda mark: _known_count(plain, mark), default=delimiters[0])


def _known_count(line: str, delimiter: str) -> int:
    return sum(plain_name(name.strip(f'{_NAME_BLANKS}"')) in _KNOWN_NAMES for name in line.split(delimiter))


def _opening_line(lines: list[str], delimiter: str) -> int | None:
    """Of a row whose last quoted field is not closed or not soundly closed: the line where it opens, from 0."""
    text = "".join(lines)
    position, opened = 0, -1
    while position < len(text):
        if text[position] == '"':
            opened = position
            position += 1
            while position < len(text) and (text[position] != '"' or text[position : position + 2] == '""'):
                position += 2 if text[position] == '"' else 1
            position += 1
            if position < len(text) and text[position] not in (delimiter, "\r", "\n"):
                break  # text after the closing quote
        while position < len(text) and text[position] not in (delimiter, "\r", "\n"):
            position += 1
        position += 1
    if opened < 0:
        return None
    return len(_LINE_END.findall(text[:opened]))


def _shown(delimiter: str) -> str:
    return {"\t": "tab", " ": "blank"}.get(delimiter, f"`{delimiter}`")
