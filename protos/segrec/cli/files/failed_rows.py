"""The rows that are worth asking again: failed and degraded ones, as a file that `--users` reads."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from segrec.cli.files.row_formats import Answer, csv_bytes, json_bytes
from segrec.cli.records import Record, recommend_record, segment_record
from segrec.errors import InvalidArgument
from segrec.v1.segrec_service_pb2 import RecommendRow

COLUMNS = ("user_id", "input_row", "code", "reason", "message")
"""Columns of a failed or degraded user. `code` is OK for a degraded answer."""


def is_good(answer: Answer) -> bool:
    """Whether the row has an answer that is not degraded."""
    return answer.row.HasField("result") and not answer.row.result.info.degraded


def failed_record(answer: Answer) -> Record:
    """One record with COLUMNS."""
    row = answer.row
    record = recommend_record(row) if isinstance(row, RecommendRow) else segment_record(row)
    record |= answer.extra
    return {name: record[name] for name in COLUMNS}


class FailedFormat:
    """Failed rows as CSV or NDJSON, by the file's suffix. Raises InvalidArgument for other suffixes."""

    def __init__(self, path: Path) -> None:
        if path.suffix.lower() not in (".csv", ".ndjson"):
            raise InvalidArgument(f"{path}: give --failed a name that ends with .csv or .ndjson")
        self._is_csv = path.suffix.lower() == ".csv"

    @property
    def header(self) -> bytes:
        """What the file begins with."""
        return (",".join(COLUMNS) + "\n").encode() if self._is_csv else b""

    def encode(self, answers: Sequence[Answer]) -> bytes:
        """The failed and degraded ones of the answers as lines."""
        records: Iterable[Record] = [failed_record(answer) for answer in answers if not is_good(answer)]
        return csv_bytes(COLUMNS, records) if self._is_csv else json_bytes(records)
