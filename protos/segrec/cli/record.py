"""`segrec record`: sends the events of a file to the server."""

import argparse
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import blake2b
from pathlib import Path
from typing import Any

from segrec.cli.exit_codes import OK, ROWS_FAILED
from segrec.cli.input_file import InputFile
from segrec.cli.records import json_line
from segrec.client import SegrecClient
from segrec.errors import InvalidArgument
from segrec.requests import MAX_EVENTS_PER_CALL, id_problem
from segrec.v1.common_pb2 import Event
from segrec.v1.event_service_pb2 import UserEvent

_REQUIRED = ("user_id", "item_id", "action")
_OPTIONAL = ("value", "timestamp", "event_id")
_MAX_PRINTED_REFUSALS = 50
_MILLISECONDS_FROM = 1e11
"""Larger numbers are milliseconds since 1970; as seconds they would be after the year 5000."""


@dataclass
class _Counts:
    read: int = 0
    stored: int = 0
    duplicate: int = 0
    too_old: int = 0
    refused: int = 0


def record_file(client: SegrecClient, options: argparse.Namespace) -> int:
    """Runs the command and returns its exit code. Raises SegrecError. A repeated run stores no event twice."""
    counts = _Counts()
    with InputFile(options.file) as source:
        chunk: list[tuple[int, UserEvent]] = []
        try:
            for number, row in enumerate(source.rows(_REQUIRED, _OPTIONAL), start=1):
                counts.read += 1
                try:
                    chunk.append((number, event_of(row, f"{Path(options.file).name}\0{number}")))
                except InvalidArgument as error:
                    _refuse(counts, number, "INVALID_ARGUMENT", str(error), as_json=options.json)
                if len(chunk) == MAX_EVENTS_PER_CALL:
                    _send(client, chunk, counts, as_json=options.json)
                    chunk = []
            _send(client, chunk, counts, as_json=options.json)
        finally:
            _report(counts, as_json=options.json)
    return ROWS_FAILED if counts.refused else OK


def _send(client: SegrecClient, chunk: list[tuple[int, UserEvent]], counts: _Counts, *, as_json: bool) -> None:
    if not chunk:
        return
    response = client.record(event for _, event in chunk)
    counts.stored += response.stored_count
    counts.duplicate += response.duplicate_count
    counts.too_old += response.too_old_count
    for refused in response.refused:
        status = refused.status
        _refuse(counts, chunk[refused.index][0], status.reason, status.message, as_json=as_json)


def _refuse(counts: _Counts, number: int, reason: str, message: str, *, as_json: bool) -> None:
    counts.refused += 1
    if as_json:
        print(json_line({"row": number, "reason": reason, "message": message}))
    elif counts.refused <= _MAX_PRINTED_REFUSALS:
        print(f"Row {number}: {message}", file=sys.stderr)
    elif counts.refused == _MAX_PRINTED_REFUSALS + 1:
        print("More rows are refused; --json lists all of them", file=sys.stderr)


def _report(counts: _Counts, *, as_json: bool) -> None:
    if not counts.read:
        return
    done = counts.stored + counts.duplicate + counts.too_old + counts.refused
    record = {
        "read": counts.read,
        "stored": counts.stored,
        "duplicate": counts.duplicate,
        "too_old": counts.too_old,
        "refused": counts.refused,
        "not_sent": counts.read - done,
    }
    if as_json:
        print(json_line(record))
        return
    too_old = f"+ older than what is kept {counts.too_old:,} " if counts.too_old else ""
    rest = f" + not sent {counts.read - done:,}" if counts.read != done else ""
    print(
        f"read {counts.read:,} = stored {counts.stored:,} + already there {counts.duplicate:,} "
        f"{too_old}+ refused {counts.refused:,}{rest}"
    )


def event_of(row: dict[str, Any], place: str) -> UserEvent:
    """The event of a row. An event without id and time gets an id made from its content and `place`, file and row.

    Raises InvalidArgument, which says what is wrong with the row.
    """
    user_id, item_id, action = (_text(row, name) for name in _REQUIRED)
    event = Event(item_id=item_id, action=action, event_id=_text(row, "event_id", is_required=False))
    value = row.get("value")
    if value not in (None, ""):
        event.value = _number(value, "value")
    time = row.get("timestamp")
    if time not in (None, ""):
        _set_time(event, time)
    elif not event.event_id:
        content = f"{place}\0{user_id}\0{item_id}\0{action}\0{value}"
        event.event_id = blake2b(content.encode(), digest_size=16).hexdigest()
    return UserEvent(user_id=user_id, event=event)


def _text(row: dict[str, Any], name: str, *, is_required: bool = True) -> str:
    value = row.get(name)
    if value is None or value == "":
        if is_required:
            raise InvalidArgument(f"{name} is missing")
        return ""
    text = str(value)
    problem = id_problem(text)
    if problem:
        raise InvalidArgument(f"{name} {problem}")
    return text


def _number(value: object, name: str) -> float:
    try:
        return float(str(value))
    except ValueError:
        raise InvalidArgument(f"{name} {str(value)[:40]!r} is not a number") from None


def _set_time(event: Event, value: object) -> None:
    try:
        event.timestamp.FromMilliseconds(_milliseconds(value))
    except (ValueError, OverflowError):
        raise InvalidArgument(
            f"timestamp {str(value)[:40]!r} is neither ISO 8601 nor seconds or milliseconds since 1970"
        ) from None


def _milliseconds(value: object) -> int:
    if isinstance(value, datetime):
        moment = value
    else:
        try:
            number = float(str(value))
        except ValueError:
            moment = datetime.fromisoformat(str(value).strip())
        else:
            return round(number if abs(number) >= _MILLISECONDS_FROM else number * 1000)
    return round((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1000)
