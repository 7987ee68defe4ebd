"""Writes the rows of a stream so that an interrupted run can resume.

`FILE.part` holds the rows until the output is complete; `FILE.progress` says how many of its bytes and rows are good.
"""

import csv
import io
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from typing import Any

from segrec.cli.input_file import NDJSON_SUFFIXES
from segrec.cli.input_tables import polars
from segrec.cli.records import (
    ITEM_COLUMNS,
    SEGMENT_COLUMNS,
    Record,
    item_records,
    json_line,
    recommend_record,
    segment_record,
)
from segrec.errors import InvalidArgument
from segrec.v1.segrec_service_pb2 import RecommendRow, SegmentRow, SegmentState
from segrec.window import readable

Row = SegmentRow | RecommendRow
_CHECKPOINT_SECONDS = 1.0
_INTEGERS = ("segment_id", "runner_up_segment_id", "release", "history_event_count", "rank")
_FLOATS = ("confidence", "distance", "score")
_BOOLEANS = ("short_history", "degraded")


@dataclass(frozen=True, slots=True)
class OutputProgress:
    """The content of `FILE.progress`: how much of the output is on disk."""

    request: dict[str, Any] = field(default_factory=dict)
    """The options of the run; a run with other options must not resume it."""
    output_bytes: int = 0
    read_count: int = 0
    answered_count: int = 0
    failed_count: int = 0
    degraded_count: int = 0
    no_history_count: int = 0
    base_release: int = 0
    """The release of the stream, with which a resumed run goes on; 0 until it is known."""
    users_digest: str = ""
    """Hash of the written user ids, in order; a resumed input must start with the same ids."""


class Output:
    """The output file of a stream, written as `FILE.part` until it is complete.

    A checkpoint each second puts the rows on disk. A Parquet file cannot be continued, so its rows are collected as
    NDJSON and converted at the end. Raises InvalidArgument when the output cannot be written or resumed.
    """

    def __init__(self, path: str, request: dict[str, Any], *, resume: bool) -> None:
        self.path = Path(path)
        self.is_parquet = self.path.suffix.lower() == ".parquet"
        if self.is_parquet:
            polars()
        self._part = Path(f"{path}.part")
        self._progress_path = Path(f"{path}.progress")
        self._columns = ITEM_COLUMNS if request["recommend"] else SEGMENT_COLUMNS
        self._encode = _encoder(self.path.suffix.lower(), recommend=request["recommend"])
        self.progress = self._start(request, resume=resume)
        self.resumed_count = self.progress.read_count
        self._digest = blake2b(digest_size=16)
        self._file = self._open()
        self.checkpoint()

    def _start(self, request: dict[str, Any], *, resume: bool) -> OutputProgress:
        if not self._progress_path.exists():
            if resume and self.path.exists():
                raise InvalidArgument(f"Nothing to resume: {self.path} is complete. Leave out --resume to start again")
            return OutputProgress(request)
        if not resume:
            message = f"{self._part} is the output of an interrupted run: add --resume to continue, or delete "
            raise InvalidArgument(f"{message}{self._progress_path} to start again")
        return self._read_progress(request)

    def _read_progress(self, request: dict[str, Any]) -> OutputProgress:
        try:
            progress = OutputProgress(**json.loads(self._progress_path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as error:
            raise InvalidArgument(f"Cannot resume: {self._progress_path} is not readable ({error})") from error
        if progress.request != request:
            raise InvalidArgument(f"Cannot resume: {self.path} was started with other options: {progress.request}")
        size = self._part.stat().st_size if self._part.exists() else 0
        if size < progress.output_bytes:
            raise InvalidArgument(f"Cannot resume: {self._part} is shorter than {self._progress_path} says")
        return progress

    def _open(self) -> io.BufferedRandom:
        try:
            file = open(self._part, "r+b" if self.progress.output_bytes else "w+b")  # noqa: SIM115 - closed by close()
        except OSError as error:
            raise InvalidArgument(f"Cannot write {self._part}: {error.strerror}") from error
        file.truncate(self.progress.output_bytes)
        file.seek(self.progress.output_bytes)
        if not self.progress.output_bytes and self.path.suffix.lower() == ".csv":
            header = (",".join(self._columns) + "\n").encode()
            file.write(header)
            self.progress = replace(self.progress, output_bytes=len(header))
        return file

    def skip(self, user_ids: Iterator[str]) -> None:
        """Skips the users that the output already holds. Raises InvalidArgument when the input has other users."""
        self._add_to_digest(readable(user_id) for user_id in islice(user_ids, self.resumed_count))
        if self.resumed_count and self._digest.hexdigest() != self.progress.users_digest:
            raise InvalidArgument(f"Cannot resume: the input does not start with the users that {self._part} holds")

    def _add_to_digest(self, user_ids: Iterable[str]) -> None:
        for user_id in user_ids:
            data = user_id.encode()
            self._digest.update(len(data).to_bytes(4, "little") + data)

    def write(self, rows: Sequence[Row], base_release: int) -> None:
        """Appends rows, and makes a checkpoint when the last one is more than a second old."""
        data = self._encode(rows)
        self._file.write(data)
        self._add_to_digest(row.user_id for row in rows)
        failed = sum(row.HasField("status") for row in rows)
        results = [row.result for row in rows if row.HasField("result")]
        degraded = sum(result.info.degraded for result in results)
        no_history = sum(result.assignment.state == SegmentState.SEGMENT_STATE_NO_HISTORY for result in results)
        # One assignment: after an earlier interrupt the counts are still right, and resuming cuts the new bytes off.
        self.progress = OutputProgress(
            request=self.progress.request,
            output_bytes=self.progress.output_bytes + len(data),
            read_count=self.progress.read_count + len(rows),
            answered_count=self.progress.answered_count + len(rows) - failed,
            failed_count=self.progress.failed_count + failed,
            degraded_count=self.progress.degraded_count + degraded,
            no_history_count=self.progress.no_history_count + no_history,
            base_release=base_release,
            users_digest=self._digest.hexdigest(),
        )
        if time.monotonic() - self._checkpoint_time >= _CHECKPOINT_SECONDS:
            self.checkpoint()

    def checkpoint(self) -> None:
        """Syncs the rows to disk, then replaces the progress file by rename."""
        progress = self.progress
        self._file.flush()
        os.fsync(self._file.fileno())
        staged = Path(f"{self._progress_path}.new")
        staged.write_text(json.dumps(asdict(progress)), encoding="utf-8")
        staged.replace(self._progress_path)
        self._checkpoint_time = time.monotonic()

    def suspend(self) -> None:
        """Closes the output so that it can be resumed; deletes an output without rows."""
        self.checkpoint()
        self._file.close()
        if not self.progress.read_count:
            self._progress_path.unlink()
            self._part.unlink()

    def abandon(self) -> None:
        """Closes the output and keeps its rows for inspection; the output cannot be resumed."""
        self._file.close()
        self._progress_path.unlink()

    def finish(self) -> None:
        """Renames or converts `FILE.part` to the complete output, and removes the progress file."""
        self.checkpoint()
        self._file.close()
        if self.is_parquet:
            self._convert()
            self._part.unlink()
        else:
            self._part.replace(self.path)
        self._progress_path.unlink()

    def _convert(self) -> None:
        pl = polars()
        schema = {name: _parquet_type(pl, name) for name in self._columns}
        staged = Path(f"{self.path}.new")
        if self._part.stat().st_size:
            pl.scan_ndjson(self._part, schema=schema).sink_parquet(staged)
        else:
            pl.DataFrame(schema=schema).write_parquet(staged)
        staged.replace(self.path)


def _parquet_type(pl: Any, name: str) -> Any:
    if name in _INTEGERS:
        return pl.Int64
    if name in _FLOATS:
        return pl.Float32
    return pl.Boolean if name in _BOOLEANS else pl.String


def _encoder(suffix: str, *, recommend: bool) -> Callable[[Sequence[Any]], bytes]:
    flat: Callable[[Any], list[Record]] = item_records if recommend else lambda row: [segment_record(row)]
    nested: Callable[[Any], Record] = recommend_record if recommend else segment_record
    columns = ITEM_COLUMNS if recommend else SEGMENT_COLUMNS
    if suffix in NDJSON_SUFFIXES:
        return lambda rows: _json_bytes(nested(row) for row in rows)
    if suffix == ".parquet":
        return lambda rows: _json_bytes(record for row in rows for record in flat(row))
    if suffix == ".csv":
        return lambda rows: _csv_bytes(columns, (record for row in rows for record in flat(row)))
    raise InvalidArgument(f"Unknown output suffix {suffix or '(none)'}: use .csv, .ndjson or .parquet")


def _json_bytes(records: Iterable[Record]) -> bytes:
    return "".join(json_line(record) + "\n" for record in records).encode()


def _csv_bytes(columns: Sequence[str], records: Iterable[Record]) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([_csv_value(record[name]) for name in columns] for record in records)
    return text.getvalue().encode()


def _csv_value(value: object) -> object:
    return str(value).lower() if isinstance(value, bool) else value
