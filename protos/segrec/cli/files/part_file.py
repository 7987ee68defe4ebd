"""A file that is written as `FILE.part` until it is complete, and may be cut back to what is known to be good."""

import io
import os
from pathlib import Path

from segrec.errors import InvalidArgument


class PartFile:
    """`FILE.part`, open for writing behind its first `size` bytes. Raises InvalidArgument when it cannot be written."""

    def __init__(self, path: Path, size: int, header: bytes) -> None:
        """`header` begins a file of size 0."""
        self.path = path
        self.part = part_of(path)
        self.size = size
        """Bytes written so far, those of earlier runs included."""
        try:
            self._file: io.BufferedRandom = open(self.part, "r+b" if size else "w+b")  # noqa: SIM115 - see close()
        except OSError as error:
            raise InvalidArgument(f"Cannot write {self.part}: {error.strerror}") from error
        self._file.truncate(size)
        self._file.seek(size)
        if not size:
            self.write(header)

    def write(self, data: bytes) -> None:
        self._file.write(data)
        self.size += len(data)

    def sync(self) -> None:
        """Puts what was written on disk."""
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()

    def complete(self) -> None:
        """Renames the closed part to the file."""
        self.part.replace(self.path)

    def delete(self) -> None:
        """Removes the closed part."""
        self.part.unlink()


def part_of(path: Path) -> Path:
    """Where the rows of an incomplete file are."""
    return Path(f"{path}.part")
