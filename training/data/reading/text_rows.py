"""Counts the rows of delimited text from its bytes alone, so that no row can be lost between parser and account."""

import codecs
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

_CHUNK_BYTES = 1 << 18
_LF, _CR, _QUOTE = 10, 13, 34
_Positions = NDArray[np.intp]


class _Irregular(Exception):
    """The text is not as `count_rows` wants it."""


def count_rows(path: Path, delimiter: str, field_count: int) -> tuple[int, bool] | None:
    """The number of rows of the file, header included, and whether it has quotes; None for irregular text.

    Regular text means the same to every parser of CSV: UTF-8, line ends LF or CRLF, no blank line, no row with more
    than `field_count` fields, and quotes as in RFC 4180: around whole fields, doubled inside, all of them closed.
    """
    data = np.asarray(np.memmap(path, np.uint8, "r"))
    if data[:3].tobytes() == codecs.BOM_UTF8:
        data = data[3:]
    counter = _Counter(data, ord(delimiter), field_count)
    try:
        for start in range(0, len(data), _CHUNK_BYTES):
            counter.add(start, min(start + _CHUNK_BYTES, len(data)))
        counter.finish()
    except (_Irregular, UnicodeDecodeError):
        return None
    return counter.rows, counter.quotes > 0


class _Counter:
    """Goes through `data`, all bytes of a file, chunk by chunk. Raises _Irregular and UnicodeDecodeError."""

    def __init__(self, data: NDArray[np.uint8], delimiter: int, field_count: int) -> None:
        self.rows = self.quotes = 0
        self._data, self._delimiter, self._field_count = data, delimiter, field_count
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._delimiters = 0  # of the row that goes on in the next chunk

    def add(self, start: int, stop: int) -> None:
        """Count the bytes from `start` to `stop`."""
        part = self._data[start:stop]
        content = part.tobytes()
        if not content.isascii() or self._decoder.getstate()[0]:
            self._decoder.decode(content)
        marks = np.flatnonzero((part == self._delimiter) | (part == _LF))
        returns = self._lone_returns(part, start) if b"\r" in content else np.empty(0, np.intp)
        if b'"' in content or self.quotes % 2:
            quotes = np.flatnonzero(part == _QUOTE)
            self._check_quotes(quotes, start)
            marks, returns = self._outside(quotes, marks), self._outside(quotes, returns)
            self.quotes += len(quotes)
        if len(returns):
            raise _Irregular
        ends = np.flatnonzero(part[marks] == _LF)
        self._check_blank(marks[ends] + start)
        delimiters = np.diff(ends, prepend=-1) - 1
        if len(ends):
            delimiters[0] += self._delimiters
            self._check(delimiters < self._field_count)
            self._delimiters = 0
        self._delimiters += len(marks) - (int(ends[-1]) + 1 if len(ends) else 0)
        self.rows += len(ends)

    def finish(self) -> None:
        """Count a last row without a line end."""
        self._decoder.decode(b"", final=True)
        if self.quotes % 2:
            raise _Irregular
        if len(self._data) and self._data[-1] != _LF:
            self._check(np.array([self._delimiters < self._field_count]))
            self.rows += 1

    def _lone_returns(self, part: NDArray[np.uint8], start: int) -> _Positions:
        """Where in the part a CR stands without an LF behind it."""
        returns = np.flatnonzero(part == _CR)
        following = returns + start + 1
        lone = (self._at(following) != _LF) | (following == len(self._data))
        kept: _Positions = returns[lone]
        return kept

    def _check_quotes(self, quotes: _Positions, start: int) -> None:
        """A quote that opens stands at the start of a field, one that closes at its end, or beside another quote."""
        parity = np.arange(self.quotes, self.quotes + len(quotes)) % 2
        for neighbours in (self._at(quotes[parity == 0] + start - 1), self._at(quotes[parity == 1] + start + 1)):
            self._check(np.isin(neighbours, (self._delimiter, _LF, _CR, _QUOTE)))

    def _outside(self, quotes: _Positions, positions: _Positions) -> _Positions:
        kept: _Positions = positions[(np.searchsorted(quotes, positions) + self.quotes) % 2 == 0]
        return kept

    def _check_blank(self, ends: _Positions) -> None:
        before = self._at(ends - 1)
        self._check(before != _LF)
        after_cr = ends[before == _CR]
        self._check(self._at(after_cr - 2) != _LF)

    def _at(self, positions: _Positions) -> NDArray[np.uint8]:
        """The bytes at these positions; a line end where a position lies before or behind the file."""
        inside = (positions >= 0) & (positions < len(self._data))
        return np.where(inside, self._data[np.where(inside, positions, 0)], _LF).astype(np.uint8)

    @staticmethod
    def _check(fine: NDArray[np.bool_]) -> None:
        if not fine.all():
            raise _Irregular
