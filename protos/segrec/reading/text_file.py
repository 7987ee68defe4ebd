"""Text of a file as lines, whatever its encoding, compression and line ends. No byte is replaced or left out."""

import codecs
import gzip
import io
import re
import shutil
import tempfile
import zlib
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self, cast

from segrec.reading.refusals import Refused

_BLOCK_BYTES = 1 << 20
_HEAD_BYTES = 4096
_GB2312_SHARE = 0.8  # least share of two-byte characters in Chinese text; accented Latin text has almost none
_ZERO_SHARE = 0.25  # UTF-16 text of Latin letters has half its bytes zero
_GZIP, _ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
_OTHER_KINDS = {
    b"PAR1": "a Parquet file: name it .parquet",
    b"PK\x03\x04": "a ZIP archive or an Excel workbook: unpack it, or save the sheet as CSV in UTF-8",
    b"BZh": "compressed with bzip2: unpack it, or use gzip",
    b"\xfd7zXZ\x00": "compressed with xz: unpack it, or use gzip",
}


class TextFile:
    """A text file, opened: plain, gzip or Zstandard by its first bytes; UTF-8, UTF-16 with a mark, or GB18030.

    The encoding is found from the whole file before the first line is read; a pipe is first copied to its end. Raises
    Refused for a file that cannot be opened or is not text, and names the line of the first bytes that are no text.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        try:
            self._raw = _seekable(self.path)
        except IsADirectoryError:
            raise Refused(f"{path} is a directory: give one file") from None
        except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
            raise Refused(f"Cannot read {path}: {getattr(error, 'strerror', None) or error}") from error
        try:
            self._magic = self._raw.read(_HEAD_BYTES)
            self.encoding = self._encoding()
            """The name of the encoding in Python; a byte order mark at the beginning is no part of the first line."""
        except BaseException:
            self._raw.close()
            raise

    def lines(self) -> Iterator[str]:
        """The lines from the first one on, each with its end: LF, CR LF or CR. May be called again, from the start."""
        lines = io.TextIOWrapper(self._bytes(), self.encoding, newline="")
        yield from (line.removeprefix("\ufeff") for line in islice(lines, 1))
        yield from lines

    def close(self) -> None:
        self._raw.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.close()

    def _bytes(self) -> IO[bytes]:
        self._raw.seek(0)
        plain = cast(IO[bytes], _Open(self._raw))
        if self._magic.startswith(_GZIP):
            return cast(IO[bytes], gzip.GzipFile(fileobj=plain))
        if self._magic.startswith(_ZSTD):
            return cast(IO[bytes], io.BufferedReader(_Zstandard(plain, self.path)))
        return plain

    def _encoding(self) -> str:
        for magic, kind in _OTHER_KINDS.items():
            if self._magic.startswith(magic):
                raise Refused(f"{self.path} is {kind}")
        try:
            return self._checked_encoding()
        except (_Damaged, EOFError, OSError, zlib.error) as error:
            reason = getattr(error, "strerror", None)
            if reason:
                raise Refused(f"Cannot read {self.path}: {reason}") from error
            raise Refused(
                f"{self.path}: the compressed data is cut off or damaged ({error}); make or fetch the file again"
            ) from error

    def _checked_encoding(self) -> str:
        head = self._bytes().read(_HEAD_BYTES)
        name = self.path.name
        marked = _marked_utf16(head)
        if marked is None and head.count(0) > len(head) * _ZERO_SHARE:
            raise Refused(
                f"{self.path} has a zero byte beside every letter, as UTF-16 without a byte order mark has: save it as "
                f"UTF-8, for instance with `iconv -f UTF-16LE -t UTF-8 {name} > utf8-{name}`"
            )
        bad = self._first_bad_line(marked or "utf-8")
        if bad is None:
            return marked or "utf-8"
        line, block = bad
        if marked:
            raise Refused(
                f"{self.path}, line {line:,}: the bytes are not UTF-16, as the first two bytes of the file say"
            )
        if _gb2312_share(block) >= _GB2312_SHARE and self._first_bad_line("gb18030") is None:
            return "gb18030"
        raise Refused(
            f"{self.path}, line {line:,}: the text is neither UTF-8 nor GB18030; save the file as UTF-8, for instance "
            f"with `iconv -f WINDOWS-1252 -t UTF-8 {name} > utf8-{name}` if it is of western Windows"
        )

    def _first_bad_line(self, encoding: str) -> tuple[int, bytes] | None:
        """The line of the first bytes that are not of this encoding, and a block of bytes from there on."""
        decoder = codecs.getincrementaldecoder(encoding)()
        source, line, last = self._bytes(), 1, ""
        block = b"-"
        while block:
            block = source.read(_BLOCK_BYTES)
            try:
                text = decoder.decode(block, final=not block)
            except UnicodeDecodeError as error:
                text = error.object[: error.start].decode(encoding, errors="ignore")
                return line + _line_ends(text, last), error.object[error.start :]
            line, last = line + _line_ends(text, last), text[-1:] or last
        return None


def _line_ends(text: str, before: str) -> int:
    """How many LF, CR LF and CR the text holds; `before` is the character before it."""
    split = before == "\r" and text.startswith("\n")
    return text.count("\n") + text.count("\r") - text.count("\r\n") - split


def _seekable(path: Path) -> IO[bytes]:
    file = path.open("rb")
    if file.seekable():
        return file
    with file:
        copy = cast(IO[bytes], tempfile.TemporaryFile())  # noqa: SIM115 - closed by the TextFile
        shutil.copyfileobj(file, copy)
    copy.seek(0)
    return copy


class _Damaged(Exception):
    """Zstandard data that cannot be decompressed."""


class _Open(io.RawIOBase):
    """The bytes of a file that stays open when its reader is closed or collected."""

    def __init__(self, raw: Any) -> None:
        self._source = raw

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        return int(self._source.readinto(buffer))


class _Zstandard(io.RawIOBase):
    """The bytes of Zstandard frames; unlike the library's own reader, a frame that is cut off is an error."""

    def __init__(self, source: IO[bytes], path: Path) -> None:
        try:
            import zstandard
        except ImportError:
            raise Refused(
                f"{path} needs the library zstandard, which is not installed: `pip install zstandard`, or unpack the "
                f"file with `zstd -d {path.name}`"
            ) from None
        self._library: Any = zstandard
        self._source = source
        self._frame: Any = None
        self._data = b""
        self._rest = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._data:
            block = self._rest or self._source.read(_BLOCK_BYTES)
            if not block:
                if self._frame is not None:
                    raise _Damaged("a frame does not end")
                return 0
            self._frame = self._frame or self._library.ZstdDecompressor().decompressobj()
            try:
                self._data = self._frame.decompress(block)
            except self._library.ZstdError as error:
                raise _Damaged(str(error)) from error
            self._rest = self._frame.unused_data
            if self._frame.eof:
                self._frame = None
        size = min(len(buffer), len(self._data))
        buffer[:size], self._data = self._data[:size], self._data[size:]
        return size


def _marked_utf16(head: bytes) -> str | None:
    marks = {codecs.BOM_UTF16_LE: "utf-16-le", codecs.BOM_UTF16_BE: "utf-16-be"}
    return marks.get(head[:2])


def _gb2312_share(data: bytes) -> float:
    """Share of the non-ASCII characters whose second byte is 0xA1 or more, as in everyday Chinese."""
    second_bytes = re.findall(rb"[\x80-\xff]([\x00-\xff])", data, re.DOTALL)
    return sum(byte >= b"\xa1" for byte in second_bytes) / len(second_bytes) if second_bytes else 0.0
