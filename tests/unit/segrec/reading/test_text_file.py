"""Text of files in any encoding and compression."""

import os
import sys
import threading
from pathlib import Path

import pytest
import zstandard
from segrec.reading.refusals import Refused
from segrec.reading.text_file import TextFile

from tests.support.gz import gz

CHINESE = "用户,商品\n甲,茶叶\n"
LINE = "a," + "b" * 1021
LONG = 3 << 10  # as many lines are more than a block


def lines_of(path: Path) -> list[str]:
    with TextFile(path) as file:
        first = list(file.lines())
        assert list(file.lines()) == first, "a second reading differs"
        return first


@pytest.mark.parametrize(
    "data",
    [
        CHINESE.encode(),
        b"\xef\xbb\xbf" + CHINESE.encode(),
        CHINESE.encode("utf-16"),
        b"\xfe\xff" + CHINESE.encode("utf-16-be"),
        CHINESE.encode("gb18030"),
        gz(CHINESE.encode()),
        gz("用户,商品\n".encode()) + gz("甲,茶叶\n".encode()),
        gz(CHINESE.encode("gb18030")),
        zstandard.compress(CHINESE.encode()),
        zstandard.compress("用户,商品\n".encode()) + zstandard.compress("甲,茶叶\n".encode()),
    ],
)
def test_encodings_and_compressions(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "any.name"
    path.write_bytes(data)
    assert lines_of(path) == ["用户,商品\n", "甲,茶叶\n"]


def test_line_ends_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes("a\nb\r\nc\rd\u2028e".encode())
    assert lines_of(path) == ["a\n", "b\r\n", "c\r", "d\u2028e"]


def test_an_empty_file_has_no_lines(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.touch()
    assert lines_of(path) == []


def test_gb18030_that_begins_after_the_first_block(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(f"{LINE}\n".encode() * LONG + "茶叶\n".encode("gb18030"))
    assert lines_of(path)[-1] == "茶叶\n"


@pytest.mark.parametrize("end", ["\n", "\r", "\r\n"])
def test_bad_bytes_anywhere_are_refused_with_their_line(tmp_path: Path, end: str) -> None:
    path = tmp_path / "f.csv"
    path.write_bytes(f"{LINE}{end}".encode() * LONG + b"caf\xe9 bleu" + end.encode() + "茶叶".encode("gb18030"))
    message = rf"f\.csv, line {LONG + 1:,}: the text is neither UTF-8 nor GB18030; .* `iconv -f WINDOWS-1252"
    with pytest.raises(Refused, match=message):
        TextFile(path)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"\xff\xfea\0\n\0b", "line 2: the bytes are not UTF-16"),
        ("a,b\nc,d\n".encode("utf-16-le"), "as UTF-16 without a byte order mark has"),
        (b"PAR1....", "is a Parquet file: name it .parquet"),
        (b"PK\x03\x04....", "a ZIP archive or an Excel workbook"),
        (gz(b"a,b\n" * 9000)[:-9], "the compressed data is cut off or damaged"),
        (gz(b"a,b\n") + b"more", "the compressed data is cut off or damaged"),
        (gz(b"a,b\n")[:12] + b"\xff" * 20, "the compressed data is cut off or damaged"),
        (zstandard.compress(os.urandom(9000))[:-9], "the compressed data is cut off or damaged"),
        (zstandard.compress(b"a,b\n") + b"more", "the compressed data is cut off or damaged"),
        (gz(b"caf\xe9 bleu"), "line 1: the text is neither"),
    ],
)
def test_what_is_no_text_is_refused(tmp_path: Path, data: bytes, message: str) -> None:
    path = tmp_path / "f"
    path.write_bytes(data)
    with pytest.raises(Refused, match=message) as caught:
        TextFile(path)
    assert str(path) in str(caught.value)


def test_a_missing_file_and_a_directory_are_refused(tmp_path: Path) -> None:
    with pytest.raises(Refused, match=f"Cannot read {tmp_path}/none: No such file"):
        TextFile(tmp_path / "none")
    with pytest.raises(Refused, match="is a directory: give one file"):
        TextFile(tmp_path)
    with pytest.raises(Refused, match=r"Cannot read .*null byte"):
        TextFile("a\0b")


def test_zstandard_without_the_library_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "f.csv.zst"
    path.write_bytes(zstandard.compress(b"a"))
    monkeypatch.setitem(sys.modules, "zstandard", None)
    with pytest.raises(Refused, match=r"`pip install zstandard`, or unpack the file with `zstd -d f\.csv\.zst`"):
        TextFile(path)


def test_a_pipe_is_read_to_its_end(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    writer = threading.Thread(target=path.write_bytes, args=(b"a\nb\n",))
    writer.start()
    assert lines_of(path) == ["a\n", "b\n"]
    writer.join()
