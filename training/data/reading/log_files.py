"""Finds the files of a log: one file, several, a directory of parts, or a pattern; a path that exists is no pattern."""

import glob
import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from training.errors import LogError
from training.runs import fingerprint

_PARTITION = re.compile(r"([^/=]+)=(.*)")
_MISSING_PARTITION = "__HIVE_DEFAULT_PARTITION__"


@dataclass(frozen=True, slots=True)
class LogFile:
    """A file of a log, and the columns that its directories give, such as dt=2024-01-31."""

    path: Path
    partition: dict[str, str | None] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class LogFiles:
    """The files of one log, in the order in which they are read; `str()` names them for people."""

    files: tuple[LogFile, ...]

    @classmethod
    def of(cls, paths: Iterable[Path]) -> "LogFiles":
        """What the paths name, in their order; the parts of a directory or a pattern are sorted by name.

        In directories, names that begin with a dot or an underscore are left out. Raises LogError for a path that
        names no file.
        """
        return cls(tuple(file for path in paths for file in _files(path)))

    def __str__(self) -> str:
        first, others = self.files[0].path, len(self.files) - 1
        return f"{first} and {others} more file{'s' * (others > 1)}" if others else str(first)

    def fingerprint(self) -> dict[str, Any]:
        """File name, size in bytes and sha256; of several files `files` has each, and the sha256 is that of theirs."""
        each = [fingerprint(file.path) for file in self.files]
        if len(each) == 1:
            return each[0]
        digest = hashlib.sha256("".join(one["sha256"] for one in each).encode()).hexdigest()
        name = f"{each[0]['file']} and {len(each) - 1} more"
        return {"file": name, "bytes": sum(one["bytes"] for one in each), "sha256": digest, "files": each}


def _files(path: Path) -> Sequence[LogFile]:
    if path.is_file():
        return [LogFile(path)]
    if path.is_dir():
        found = [
            LogFile(part, _partition(part.relative_to(path))) for part in sorted(path.rglob("*")) if part.is_file()
        ]
        shown = [file for file in found if not _is_hidden(file.path.relative_to(path))]
        if not shown:
            raise LogError(f"The directory {path} has no files in it.")
        return shown
    matches = sorted(Path(match) for match in glob.glob(str(path), recursive=True)) if glob.has_magic(str(path)) else []
    files = [LogFile(match) for match in matches if match.is_file()]
    if not files:
        raise LogError(f"There is no file {path}{', and none of this pattern' * glob.has_magic(str(path))}.")
    return files


def _partition(part: Path) -> dict[str, str | None]:
    pairs = (match for match in map(_PARTITION.fullmatch, part.parts[:-1]) if match)
    return {
        unquote(name): None if value == _MISSING_PARTITION else unquote(value)
        for name, value in (m.groups() for m in pairs)
    }


def _is_hidden(part: Path) -> bool:
    return any(name.startswith((".", "_")) for name in part.parts)
