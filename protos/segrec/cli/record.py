"""`segrec record`: sends the events of a file to the server."""

import argparse
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any, TypeVar

from segrec.cli.exit_codes import OK, ROWS_FAILED
from segrec.cli.files.input_file import InputFile, InputRow
from segrec.cli.files.reading_options import Rules, rules_of
from segrec.cli.records import json_line
from segrec.cli.terminal import complain, say
from segrec.client import SegrecClient
from segrec.errors import InvalidArgument, error_of_status
from segrec.names import warning_sentence
from segrec.reading.columns import DEFAULT_ACTION
from segrec.reading.refusals import Unreadable
from segrec.requests import MAX_EVENTS_PER_CALL, MAX_WARNINGS, id_problem
from segrec.v1.common_pb2 import (
    Event,
    Warning,  # noqa: A004 - the name is that of the API
)
from segrec.v1.event_service_pb2 import UserEvent

ValueT = TypeVar("ValueT")
REQUIRED = ("user_id", "item_id")
OPTIONAL = ("action", "value", "timestamp", "event_id")
_MAX_PRINTED_REFUSALS = 50


@dataclass
class _Counts:
    read: int = 0
    stored: int = 0
    duplicate: int = 0
    too_old: int = 0
    refused: int = 0
    unknown: set[tuple[int, str]] = field(default_factory=set)
    """What was warned about: reasons and values."""


def record_file(client: SegrecClient, options: argparse.Namespace) -> int:
    """Runs the command and returns its exit code. Raises SegrecError. A repeated run stores no event twice."""
    counts = _Counts()
    rules = rules_of(options)
    with InputFile(options.file, rules) as source:
        chunk: list[tuple[InputRow, UserEvent]] = []
        try:
            for row in source.rows(REQUIRED, OPTIONAL):
                counts.read += 1
                try:
                    event = event_of(row.values, f"{Path(options.file).name}\0{row.number}", rules)
                except InvalidArgument as error:
                    _refuse(counts, row, "INVALID_ARGUMENT", str(error), as_json=options.json)
                else:
                    chunk.append((row, event))
                if len(chunk) == MAX_EVENTS_PER_CALL:
                    _send(client, chunk, counts, as_json=options.json)
                    chunk = []
            _send(client, chunk, counts, as_json=options.json)
        finally:
            _report(counts, as_json=options.json)
    return ROWS_FAILED if counts.refused else OK


def _send(client: SegrecClient, chunk: list[tuple[InputRow, UserEvent]], counts: _Counts, *, as_json: bool) -> None:
    if not chunk:
        return
    response = client.record(event for _, event in chunk)
    counts.stored += response.stored_count
    counts.duplicate += response.duplicate_count
    counts.too_old += response.too_old_count
    for warning in response.warnings:
        _warn(counts, chunk, warning)
    for refused in response.refused:
        error = error_of_status(refused.status)
        _refuse(counts, chunk[refused.index][0], error.reason, str(error), as_json=as_json)


def _warn(counts: _Counts, chunk: list[tuple[InputRow, UserEvent]], warning: Warning) -> None:
    """Tells once of an item or an action that the release does not know, by its first row; 20 are told at most."""
    known = (warning.reason, warning.value)
    if known in counts.unknown or len(counts.unknown) >= MAX_WARNINGS:
        return
    counts.unknown.add(known)
    index = re.search(r"\d+", warning.field)
    row = chunk[int(index[0])][0] if index else chunk[0][0]
    warning.ClearField("field")  # the row says where
    complain(f"{row.place}: warning: {warning_sentence(warning)}")


def _refuse(counts: _Counts, row: InputRow, reason: str, message: str, *, as_json: bool) -> None:
    counts.refused += 1
    if as_json:
        place = {"row": row.number} if row.line is None else {"row": row.number, "line": row.line}
        say(json_line({**place, "reason": reason, "message": message}))
    elif counts.refused <= _MAX_PRINTED_REFUSALS:
        complain(f"{row.place}: {message}")
    elif counts.refused == _MAX_PRINTED_REFUSALS + 1:
        complain("More rows are refused; --json lists all of them")


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
        say(json_line(record))
        return
    too_old = f"+ older than what is kept {counts.too_old:,} " if counts.too_old else ""
    rest = f" + not sent {counts.read - done:,}" if counts.read != done else ""
    say(
        f"read {counts.read:,} = stored {counts.stored:,} + already there {counts.duplicate:,} "
        f"{too_old}+ refused {counts.refused:,}{rest}"
    )


def event_of(row: Mapping[str, Any], place: str, rules: Rules) -> UserEvent:
    """The event of a row's values by role. An event without id and time gets an id made from its content and `place`.

    Raises InvalidArgument, which says what is wrong with the row.
    """
    user_id, item_id = (_id(row, name, rules) for name in REQUIRED)
    action = _id(row, "action", rules) if "action" in row else DEFAULT_ACTION
    event = Event(item_id=item_id, action=action, event_id=_id(row, "event_id", rules, is_required=False))
    value = _read("value", row.get("value"), rules.number_of)
    if value is not None:
        event.value = value
    milliseconds = _read("timestamp", row.get("timestamp"), rules.milliseconds_of)
    if milliseconds is not None:
        event.timestamp.FromMilliseconds(milliseconds)
    elif not event.event_id:
        content = f"{place}\0{user_id}\0{item_id}\0{action}\0{row.get('value')}"
        event.event_id = blake2b(content.encode(errors="surrogatepass"), digest_size=16).hexdigest()
    return UserEvent(user_id=user_id, event=event)


def _id(row: Mapping[str, Any], name: str, rules: Rules, *, is_required: bool = True) -> str:
    text = _read(name, row.get(name), rules.id_of)
    if text is None:
        if is_required:
            raise InvalidArgument(f"{name} is missing")
        return ""
    problem = id_problem(text)
    if problem:
        raise InvalidArgument(f"{name} {problem}")
    return text


def _read(name: str, value: object, read: Callable[[object], ValueT | None]) -> ValueT | None:
    try:
        return read(value)
    except Unreadable as error:
        raise InvalidArgument(f"{name} {error}") from None
