"""Converts answers to flat records, and records to aligned text tables."""

import json
import re
import unicodedata
from collections.abc import Iterable, Sequence
from datetime import UTC
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc.status_pb2 import Status

from segrec.errors import error_of_status
from segrec.v1.common_pb2 import AnswerInfo, DegradedReason
from segrec.v1.segrec_service_pb2 import (
    ItemReason,
    RecommendedItem,
    RecommendRow,
    ScorePart,
    SegmentAssignment,
    SegmentRow,
    SegmentState,
    Strategy,
)
from segrec.visible import visible

Record = dict[str, Any]
_INDEX_IN_CHUNK = re.compile(r"\buser_ids\[\d+\]")

SEGMENT_COLUMNS = (
    "user_id",
    "state",
    "segment_id",
    "label",
    "confidence",
    "distance",
    "runner_up_segment_id",
    "short_history",
    "release",
    "history_event_count",
    "degraded",
    "code",
    "reason",
    "message",
)
"""Columns of one user. `code` is OK or the gRPC status; `reason` says why the answer failed or is degraded."""
ITEM_COLUMNS = (
    "user_id",
    "rank",
    "item_id",
    "title",
    "score",
    "reason",
    "state",
    "segment_id",
    "confidence",
    "short_history",
    "release",
    "history_event_count",
    "degraded",
    "code",
    "message",
)
"""Columns of one recommended item. A user without items has one record without rank; a failed user has the status's
`reason` there."""


def segment_record(row: SegmentRow) -> Record:
    """One record with SEGMENT_COLUMNS; the answer's columns of a failed row are None."""
    if not row.HasField("result"):
        return dict.fromkeys(SEGMENT_COLUMNS) | {"user_id": row.user_id} | _failure(row.status)
    return {"user_id": row.user_id} | _assignment(row.result.assignment) | _info(row.result.info)


def recommend_record(row: RecommendRow) -> Record:
    """One record for the user; `items` is a list of records."""
    if not row.HasField("result"):
        return {"user_id": row.user_id, "items": []} | _failure(row.status)
    result = row.result
    items = [_item(item) | _explanation(item) for item in result.items]
    record = {"user_id": row.user_id, "items": items} | _assignment(result.assignment) | _info(result.info)
    strategy = Strategy.Name(result.strategy).removeprefix("STRATEGY_").lower()
    return record | {"strategy": strategy, "removed_item_count": result.removed_item_count}


def item_records(row: RecommendRow) -> list[Record]:
    """Records with ITEM_COLUMNS, one for each item; a single record when there are no items."""
    base: Record = dict.fromkeys(ITEM_COLUMNS)
    base["user_id"] = row.user_id
    if not row.HasField("result"):
        return [base | _failure(row.status)]
    answer = _assignment(row.result.assignment) | _info(row.result.info)
    base |= {name: answer[name] for name in ITEM_COLUMNS if name in answer}
    items = [base | _item(item) | {"rank": rank} for rank, item in enumerate(row.result.items, start=1)]
    for item in items:
        del item["seen"]
    return items or [base]


def _assignment(assignment: SegmentAssignment) -> Record:
    has_segment = bool(assignment.segment_id)
    return {
        "state": SegmentState.Name(assignment.state).removeprefix("SEGMENT_STATE_").lower(),
        "segment_id": assignment.segment_id or None,
        "label": assignment.label or None,
        "confidence": plain_float(assignment.confidence) if assignment.HasField("confidence") else None,
        "distance": plain_float(assignment.distance) if has_segment else None,
        "runner_up_segment_id": assignment.runner_up_segment_id or None,
        "short_history": assignment.short_history,
    }


def _info(info: AnswerInfo) -> Record:
    reason = DegradedReason.Name(info.degraded_reason).removeprefix("DEGRADED_REASON_") if info.degraded else ""
    return {
        "release": info.release,
        "history_event_count": info.history_event_count,
        "degraded": info.degraded,
        "code": "OK",
        "reason": reason,
        "message": "",
    }


def _failure(status: Status) -> Record:
    error = error_of_status(status)
    return {"code": error.code.name, "reason": error.reason, "message": _shown_message(status)}


def message_of(row: SegmentRow | RecommendRow) -> str:
    """Why a row failed, without the index in a chunk of the stream, which means nothing to a reader of files."""
    return _shown_message(row.status)


def _shown_message(status: Status) -> str:
    return _INDEX_IN_CHUNK.sub("The user id", status.message)


def _item(item: RecommendedItem) -> Record:
    return {
        "item_id": item.item_id,
        "title": item.title,
        "score": plain_float(item.score),
        "reason": ItemReason.Name(item.reason).removeprefix("ITEM_REASON_").lower(),
        "seen": item.seen,
    }


def _explanation(item: RecommendedItem) -> Record:
    """The base and the parts of the score by name, and the items of the history, if the answer has them."""
    if not item.HasField("explanation"):
        return {}
    parts = {
        ScorePart.Name(one.part).removeprefix("SCORE_PART_").lower(): plain_float(one.value)
        for one in item.explanation.parts
    }
    history_items = [
        {"item_id": one.item_id, "title": one.title, "event_count": one.event_count, "value": plain_float(one.value)}
        for one in item.explanation.history_items
    ]
    return {"base": plain_float(item.explanation.base), "parts": parts, "history_items": history_items}


def plain_float(value: float) -> float:
    """A float32 value rounded to its seven significant digits."""
    return float(f"{value:.7g}")


def iso_time(time: Timestamp) -> str:
    """ISO 8601 in UTC, with milliseconds when the time has a fraction of a second.

    A time outside the years 1 to 9999, as a damaged store may have, is given in seconds since 1970.
    """
    try:
        moment = time.ToDatetime(UTC)
    except (ValueError, OverflowError):
        return f"{time.seconds} s since 1970"
    return moment.isoformat(timespec="milliseconds" if moment.microsecond else "seconds").replace("+00:00", "Z")


def json_line(record: Record) -> str:
    """One JSON object on one line."""
    return visible(json.dumps(record, ensure_ascii=False))


def table(headers: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    """Lines of columns aligned by their width on a terminal, numbers on the right. None and False become blanks."""
    cells = [[_cell(value) for value in row] for row in rows]
    is_number = [_holds_numbers(column) for column in zip(*cells, strict=True)] or [False] * len(headers)
    lines = [list(headers), *cells]
    widths = [max(_width(line[n]) for line in lines) for n in range(len(headers))]
    return ["  ".join(_padded(*cell) for cell in zip(line, widths, is_number, strict=True)).rstrip() for line in lines]


def _cell(value: object) -> str:
    if value is None or value is False:
        return ""
    if isinstance(value, float):
        return f"{value:.4f}"
    if isinstance(value, int):
        return f"{value:,}"
    return visible(str(value))


def _holds_numbers(column: Iterable[str]) -> bool:
    return all(not cell.strip("0123456789.,-%") for cell in column)


def _padded(text: str, width: int, is_number: bool) -> str:
    blanks = " " * (width - _width(text))
    return blanks + text if is_number else text + blanks


def _width(text: str) -> int:
    return sum(
        0 if unicodedata.combining(character) else 1 + (unicodedata.east_asian_width(character) in "WF")
        for character in text
    )
