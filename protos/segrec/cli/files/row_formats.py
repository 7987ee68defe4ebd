"""The rows of a stream as bytes: CSV, NDJSON, and an Arrow IPC stream."""

import csv
import io
from collections.abc import Callable, Iterable, Sequence
from typing import IO, Any, NamedTuple, Protocol

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
from segrec.v1.segrec_service_pb2 import RecommendRow, SegmentRow

Row = SegmentRow | RecommendRow
RUN_COLUMNS = ("input_row", "run_time")
"""Columns of every row: the user's row in the input, from 1, and when the run began (ISO 8601, UTC)."""
CHANGE_COLUMNS = ("previous_segment_id",)
"""Columns beside an earlier file: the user's segment there; None for a user that it lacks or has without a segment."""
_INTEGERS = ("segment_id", "runner_up_segment_id", "release", "history_event_count", "rank", "input_row")
_FLOATS = ("confidence", "distance", "score")
_BOOLEANS = ("short_history", "degraded")


class Answer(NamedTuple):
    """A row of the stream, and what the output says besides."""

    row: Row
    extra: Record
    """Values of RUN_COLUMNS, and of CHANGE_COLUMNS beside an earlier file."""


class RowFormat:
    """How answers become records and bytes. `columns` are those of a flat row."""

    def __init__(self, name: str, *, recommend: bool, changes: bool) -> None:
        """`name`: csv, ndjson, or flat (NDJSON with one line for each flat row). Others raise InvalidArgument."""
        self.name = name
        extra = RUN_COLUMNS + CHANGE_COLUMNS * changes
        self.columns = (ITEM_COLUMNS if recommend else SEGMENT_COLUMNS) + extra
        self._recommend = recommend

    @property
    def header(self) -> bytes:
        """What the output begins with."""
        return (",".join(self.columns) + "\n").encode() if self.name == "csv" else b""

    def encode(self, answers: Iterable[Answer]) -> bytes:
        """The answers as lines."""
        if self.name == "csv":
            return csv_bytes(self.columns, self.records(answers))
        return json_bytes(map(self._nested, answers) if self.name == "ndjson" else self.records(answers))

    def records(self, answers: Iterable[Answer]) -> Iterable[Record]:
        """Flat records: one for each user, or one for each recommended item."""
        for row, extra in answers:
            flat = item_records(row) if isinstance(row, RecommendRow) else [segment_record(row)]
            yield from (record | extra for record in flat)

    def _nested(self, answer: Answer) -> Record:
        row, extra = answer
        return (recommend_record(row) if isinstance(row, RecommendRow) else segment_record(row)) | extra


def json_bytes(records: Iterable[Record]) -> bytes:
    """One JSON object on each line."""
    return "".join(json_line(record) + "\n" for record in records).encode()


def csv_bytes(columns: Sequence[str], records: Iterable[Record]) -> bytes:
    """Lines of CSV without a header."""
    rows = [[_csv_value(record[name]) for name in columns] for record in records]
    text = _csv_text(rows, csv.QUOTE_MINIMAL)
    # Lines end with LF, so the writer leaves a CR within a value bare, which readers take for the end of a line.
    return (_csv_text(rows, csv.QUOTE_ALL) if "\r" in text else text).encode()


def _csv_text(rows: list[list[object]], quoting: int) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n", quoting=quoting).writerows(rows)  # type: ignore[arg-type]
    return text.getvalue()


def _csv_value(value: object) -> object:
    return str(value).lower() if isinstance(value, bool) else value


def typed(columns: Iterable[str], integer: Any, real: Any, boolean: Any, text: Any) -> dict[str, Any]:
    """The type of each column, of the types that a library has for whole numbers, float32, booleans and texts."""
    types = dict.fromkeys(_INTEGERS, integer) | dict.fromkeys(_FLOATS, real) | dict.fromkeys(_BOOLEANS, boolean)
    return {name: types.get(name, text) for name in columns}


class RowWriter(Protocol):
    """Writes answers one batch after another."""

    def write(self, answers: Sequence[Answer]) -> None: ...

    def end(self) -> None: ...


class LineWriter:
    """Writes CSV or NDJSON to an open file, and flushes each batch."""

    def __init__(self, sink: IO[bytes], form: RowFormat) -> None:
        self._sink, self._format = sink, form
        sink.write(form.header)

    def write(self, answers: Sequence[Answer]) -> None:
        self._sink.write(self._format.encode(answers))
        self._sink.flush()

    def end(self) -> None:
        self._sink.flush()


class ArrowWriter:
    """Writes an Arrow IPC stream, one record batch for each batch of answers. Needs pyarrow (InvalidArgument)."""

    def __init__(self, sink: IO[bytes], form: RowFormat) -> None:
        try:
            import pyarrow
        except ImportError:
            message = "An Arrow stream needs pyarrow, which is not installed: `pip install pyarrow`, or --format csv"
            raise InvalidArgument(message) from None
        types = typed(form.columns, pyarrow.int64(), pyarrow.float32(), pyarrow.bool_(), pyarrow.string())
        self._schema = pyarrow.schema(list(types.items()))
        self._to_batch: Callable[..., Any] = pyarrow.RecordBatch.from_pylist
        self._sink, self._format = sink, form
        self._stream = pyarrow.ipc.new_stream(sink, self._schema)

    def write(self, answers: Sequence[Answer]) -> None:
        self._stream.write_batch(self._to_batch(list(self._format.records(answers)), schema=self._schema))
        self._sink.flush()

    def end(self) -> None:
        self._stream.close()
        self._sink.flush()
