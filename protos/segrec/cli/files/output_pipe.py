"""Writes the rows of a stream to standard output, for the next program of a pipe. Such a run cannot be resumed."""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from segrec.cli.files.failed_rows import FailedFormat
from segrec.cli.files.output_file import OutputProgress
from segrec.cli.files.part_file import PartFile
from segrec.cli.files.row_formats import Answer, ArrowWriter, LineWriter, RowFormat, RowWriter
from segrec.cli.stream_counts import StreamCounts
from segrec.errors import InvalidArgument


class OutputPipe:
    """Standard output as CSV, NDJSON or an Arrow IPC stream, with the methods of `Output`.

    The file of failed rows, if one is named, is complete when the stream is. Raises InvalidArgument when it is there
    already, unless `force`.
    """

    path = "standard output"
    resumed_count = 0

    def __init__(self, form: str, failed: Path | None, request: dict[str, Any], run_time: str, *, force: bool) -> None:
        self.progress = OutputProgress(request, run_time)
        self.format = RowFormat(form, recommend=request["recommend"], changes=bool(request["since"]))
        if failed and failed.exists() and not force:
            raise InvalidArgument(f"{failed} is there already: add --force to replace it, or give another name")
        self._failed_format = FailedFormat(failed) if failed else None
        header = self._failed_format.header if self._failed_format else b""
        self._failed = PartFile(failed, 0, header) if failed else None
        sink = sys.stdout.buffer
        self._writer: RowWriter = (ArrowWriter if form == "arrow" else LineWriter)(sink, self.format)

    def skip(self, user_ids: Iterator[str]) -> None:
        """Skips nothing: a pipe holds no rows of an earlier run."""

    def write(
        self, answers: Sequence[Answer], written: Sequence[Answer], counts: StreamCounts, base_release: int
    ) -> None:
        """Writes the `written` ones of the answers."""
        if written:
            self._writer.write(written)
        if self._failed and self._failed_format:
            self._failed.write(self._failed_format.encode(answers))
        self.progress = OutputProgress(
            self.progress.request, self.progress.run_time, counts=counts, base_release=base_release
        )

    def suspend(self) -> None:
        """Ends an interrupted run; what was written stays with the reader of the pipe."""
        if self._failed:
            self._failed.close()
            self._failed.delete()

    abandon = suspend

    def finish(self) -> None:
        """Ends the output."""
        self._writer.end()
        if self._failed:
            self._failed.sync()
            self._failed.close()
            self._failed.complete()
