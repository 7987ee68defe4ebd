"""Which users have another segment than in an earlier output of `segrec stream`."""

from contextlib import suppress
from pathlib import Path

from segrec.cli.files.input_file import InputFile
from segrec.cli.files.row_formats import CHANGE_COLUMNS, Row
from segrec.errors import InvalidArgument
from segrec.v1.segrec_service_pb2 import SegmentRow

_OLD = "not an output of `segrec stream`: give a CSV, NDJSON or Parquet file of an earlier run without --recommend"


class EarlierSegments:
    """The segments of an earlier output, by user; the last row of a user counts. About 150 bytes a user in memory.

    Raises InvalidArgument when the file is no such output. Its rows of failed or degraded users say nothing.
    """

    def __init__(self, path: str) -> None:
        self._segments: dict[str, int] = {}
        with InputFile(path) as file:
            if CHANGE_COLUMNS[0] in file.column_names:
                raise InvalidArgument(
                    f"{path} holds changes only: give --since a whole output, written without --since"
                )
            try:
                rows = file.column_values("user_id", "segment_id", "code", "degraded")
                for user_id, segment_id, code, degraded in rows:
                    if code == "OK" and str(degraded).lower() == "false":
                        self._segments[str(user_id)] = int(segment_id or 0)
            except (ValueError, TypeError) as error:
                raise InvalidArgument(f"{path} is {_OLD}") from error

    def previous(self, user_id: str) -> int | None:
        """The user's segment; None for a user whom the file lacks or has without a segment."""
        return self._segments.get(user_id) or None

    def is_change(self, row: Row) -> bool:
        """Whether the row is a full answer with another segment. A user without a segment, then and now, is none."""
        if not isinstance(row, SegmentRow) or not row.HasField("result") or row.result.info.degraded:
            return False
        return (row.result.assignment.segment_id or None) != self.previous(row.user_id)


def fingerprint(path: str) -> str:
    """Name, size and time of a file, by which a resumed run knows that the file is the same."""
    with suppress(OSError):
        found = Path(path).stat()
        return f"{path} {found.st_size} {found.st_mtime_ns}"
    return path
