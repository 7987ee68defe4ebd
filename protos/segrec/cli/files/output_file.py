"""Writes the rows of a stream to a file so that an interrupted run can resume.

`FILE.part` holds the rows until the output is complete; `FILE.progress` says how many of its bytes and rows are good.
"""

import json
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from typing import Any

from segrec.cli.files.failed_rows import FailedFormat
from segrec.cli.files.input_file import NDJSON_SUFFIXES
from segrec.cli.files.input_tables import polars
from segrec.cli.files.part_file import PartFile, part_of
from segrec.cli.files.row_formats import Answer, RowFormat, typed
from segrec.cli.stream_counts import StreamCounts
from segrec.errors import InvalidArgument
from segrec.window import readable

_CHECKPOINT_SECONDS = 1.0
_FORMATS = {".csv": "csv", ".parquet": "flat"} | dict.fromkeys(NDJSON_SUFFIXES, "ndjson")


@dataclass(frozen=True, slots=True)
class OutputProgress:
    """The content of `FILE.progress`: how much of the output is on disk."""

    request: dict[str, Any] = field(default_factory=dict)
    """The options of the run; a run with other options must not resume it."""
    run_time: str = ""
    """When the first of the runs began: ISO 8601, UTC."""
    output_bytes: int = 0
    failed_bytes: int = 0
    counts: StreamCounts = field(default_factory=StreamCounts)
    base_release: int = 0
    """The release of the stream, with which a resumed run goes on; 0 until it is known."""
    users_digest: str = ""
    """Hash of the written user ids, in order; a resumed input must start with the same ids."""


class Output:
    """The output file of a stream, and the file of its failed rows, if one is named.

    A checkpoint each second puts the rows on disk. A Parquet file cannot be continued, so its rows are collected as
    NDJSON and converted at the end. Raises InvalidArgument when the output cannot be written or resumed, and when the
    file is there already, unless `force`.
    """

    def __init__(
        self, path: Path, failed: Path | None, request: dict[str, Any], run_time: str, *, resume: bool, force: bool
    ) -> None:
        self.path = path
        self._failed_format = FailedFormat(failed) if failed else None
        self.format = _format_of(path, request)
        self._progress_path = Path(f"{path}.progress")
        self.progress = self._start(OutputProgress(request, run_time), failed, resume=resume, force=force)
        self.resumed_count = self.progress.counts.read
        self._digest = blake2b(digest_size=16)
        self._file = PartFile(path, self.progress.output_bytes, self.format.header)
        self._failed = (
            PartFile(failed, self.progress.failed_bytes, self._failed_format.header)
            if failed and self._failed_format
            else None
        )
        self.checkpoint()

    def _start(self, new: OutputProgress, failed: Path | None, *, resume: bool, force: bool) -> OutputProgress:
        if self._progress_path.exists() and resume:
            return self._read_progress(new.request, failed)
        if force:
            return new
        if resume and self.path.exists():
            raise InvalidArgument(f"Nothing to resume: {self.path} is complete. Add --force to start again")
        if self._progress_path.exists():
            raise InvalidArgument(
                f"{part_of(self.path)} is the output of an interrupted run: add --resume to continue, or --force to "
                "start again"
            )
        for path in filter(None, (self.path, failed)):
            if path.exists():
                raise InvalidArgument(f"{path} is there already: add --force to replace it, or give another name")
        return new

    def _read_progress(self, request: dict[str, Any], failed: Path | None) -> OutputProgress:
        try:
            values = json.loads(self._progress_path.read_text(encoding="utf-8"))
            progress = OutputProgress(**values | {"counts": StreamCounts(**values["counts"])})
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise InvalidArgument(f"Cannot resume: {self._progress_path} is not readable ({error})") from error
        if progress.request != request:
            raise InvalidArgument(f"Cannot resume: {self.path} was started with other options: {progress.request}")
        sizes = [(self.path, progress.output_bytes), *([(failed, progress.failed_bytes)] if failed else [])]
        for path, size in sizes:
            part = part_of(path)
            if (part.stat().st_size if part.exists() else 0) < size:
                raise InvalidArgument(f"Cannot resume: {part} is shorter than {self._progress_path} says")
        return progress

    def skip(self, user_ids: Iterator[str]) -> None:
        """Skips the users that the output already holds. Raises InvalidArgument when the input has other users."""
        self._add_to_digest(readable(user_id) for user_id in islice(user_ids, self.resumed_count))
        if self.resumed_count and self._digest.hexdigest() != self.progress.users_digest:
            part = part_of(self.path)
            raise InvalidArgument(f"Cannot resume: the input does not start with the users that {part} holds")

    def _add_to_digest(self, user_ids: Iterable[str]) -> None:
        for user_id in user_ids:
            data = user_id.encode()
            self._digest.update(len(data).to_bytes(4, "little") + data)

    def write(
        self, answers: Sequence[Answer], written: Sequence[Answer], counts: StreamCounts, base_release: int
    ) -> None:
        """Appends the `written` ones of the answers; a checkpoint follows when the last one is over a second old."""
        self._file.write(self.format.encode(written))
        if self._failed and self._failed_format:
            self._failed.write(self._failed_format.encode(answers))
        self._add_to_digest(answer.row.user_id for answer in answers)
        # One assignment: after an earlier interrupt the counts are still right, and resuming cuts the new bytes off.
        self.progress = replace(
            self.progress,
            output_bytes=self._file.size,
            failed_bytes=self._failed.size if self._failed else 0,
            counts=counts,
            base_release=base_release,
            users_digest=self._digest.hexdigest(),
        )
        if time.monotonic() - self._checkpoint_time >= _CHECKPOINT_SECONDS:
            self.checkpoint()

    def checkpoint(self) -> None:
        """Syncs the rows to disk, then replaces the progress file by rename."""
        progress = self.progress
        for file in self._files():
            file.sync()
        staged = Path(f"{self._progress_path}.new")
        staged.write_text(json.dumps(asdict(progress)), encoding="utf-8")
        staged.replace(self._progress_path)
        self._checkpoint_time = time.monotonic()

    def _files(self) -> list[PartFile]:
        return [self._file, *([self._failed] if self._failed else [])]

    def suspend(self) -> None:
        """Closes the output so that it can be resumed; deletes an output without rows."""
        with suppress(OSError):
            self.checkpoint()
            for file in self._files():
                file.close()
            if not self.progress.counts.read:
                self._progress_path.unlink()
                for file in self._files():
                    file.delete()

    def abandon(self) -> None:
        """Closes the output and keeps its rows for inspection; the output cannot be resumed."""
        for file in self._files():
            file.close()
        self._progress_path.unlink()

    def finish(self) -> None:
        """Renames or converts `FILE.part` to the complete output, and removes the progress file."""
        self.checkpoint()
        for file in self._files():
            file.close()
        if self._failed:
            self._failed.complete()
        if self.format.name == "flat":
            self._convert()
            self._file.delete()
        else:
            self._file.complete()
        self._progress_path.unlink()

    def _convert(self) -> None:
        pl = polars()
        schema = typed(self.format.columns, pl.Int64, pl.Float32, pl.Boolean, pl.String)
        staged = Path(f"{self.path}.new")
        if self._file.size:
            pl.scan_ndjson(self._file.part, schema=schema).sink_parquet(staged)
        else:
            pl.DataFrame(schema=schema).write_parquet(staged)
        staged.replace(self.path)


def _format_of(path: Path, request: dict[str, Any]) -> RowFormat:
    suffix = path.suffix.lower()
    if suffix not in _FORMATS:
        raise InvalidArgument(f"Unknown output suffix {suffix or '(none)'}: use .csv, .ndjson or .parquet")
    if suffix == ".parquet":
        polars()
    return RowFormat(_FORMATS[suffix], recommend=request["recommend"], changes=bool(request["since"]))
