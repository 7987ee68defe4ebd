"""The server's log: text or JSON, one line a record, with the id of the request that a record belongs to."""

import json
import logging
from collections.abc import Callable
from contextvars import ContextVar
from random import getrandbits
from time import monotonic
from typing import Any, Literal

from segrec.visible import visible, visible_lines

log = logging.getLogger(__name__)

LogFormat = Literal["text", "json"]

MOST_REFUSALS = 20
"""Lines a second that tell of refused calls."""

access_log = logging.getLogger("server.access")
"""One record for each call that ends, where the setting `access_log` asks for it."""

_request_id: ContextVar[str] = ContextVar("request_id", default="")


def configure(log_format: LogFormat, *, access: bool) -> None:
    """Send all records of level INFO and above to standard error.

    A JSON record has `timestamp` (UTC, ISO 8601), `level`, `logger`, `message`, `request_id` where there is one, and
    the fields of an access record: `method`, `code` and `milliseconds`.
    """
    handler = logging.StreamHandler()
    handler.addFilter(_add_request_id)
    handler.setFormatter(_formatter(log_format))
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    logging.getLogger("faiss").setLevel(logging.WARNING)
    access_log.setLevel(logging.INFO if access else logging.WARNING)


def begin_request(request_id: str) -> str:
    """Give all later records of this call its id: that of the caller, or a new one if it is empty. Returns the id."""
    request_id = request_id or f"{getrandbits(64):016x}"
    _request_id.set(request_id)
    return request_id


def log_call(method: str, code: str, seconds: float) -> None:
    """Write the access record of a call that has ended."""
    if access_log.isEnabledFor(logging.INFO):
        milliseconds = round(seconds * 1000, 3)
        access_log.info(
            "%s %s %.1f ms",
            method,
            code,
            milliseconds,
            extra={"method": method, "code": code, "milliseconds": milliseconds},
        )


class RefusedCalls:
    """Logs refused calls by method, code, reason and field path, never by a value; at most `MOST_REFUSALS` a second.

    `clock` is monotonic time in seconds.
    """

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        self._clock = clock
        self._start = clock()
        self._count = 0

    def add(self, method: str, code: str, reason: str, field: str) -> None:
        """Log one call; those beyond the limit are counted, and told with the first of a later second."""
        if self._clock() - self._start >= 1.0:
            if self._count > MOST_REFUSALS:
                other = _request_id.set("")  # the line is not of the call at hand
                log.info("%d more calls were refused and not logged", self._count - MOST_REFUSALS)
                _request_id.reset(other)
            self._start, self._count = self._clock(), 0
        self._count += 1
        if self._count <= MOST_REFUSALS:
            log.info(
                "%s was refused: %s", method, " ".join(dict.fromkeys(part for part in (code, reason, field) if part))
            )


def _add_request_id(record: logging.LogRecord) -> bool:
    request_id = _request_id.get()
    record.request_id = request_id or None
    record.request = f" (request {request_id})" if request_id else ""
    return True


def _formatter(log_format: LogFormat) -> logging.Formatter:
    if log_format == "text":
        return _TextFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s%(request)s")
    from pythonjsonlogger.core import RESERVED_ATTRS
    from pythonjsonlogger.json import JsonFormatter

    return JsonFormatter(
        ["levelname", "name", "message", "request_id"],
        rename_fields={"levelname": "level", "name": "logger"},
        reserved_attrs=[*RESERVED_ATTRS, "request"],
        timestamp=True,
        json_ensure_ascii=False,
        json_serializer=_json_line,
    )


class _TextFormatter(logging.Formatter):
    """One line a record, whatever texts of callers and files it has, then the lines of its traceback."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - the name is logging's
        return visible(super().formatMessage(record))

    def formatException(self, ei: Any) -> str:  # noqa: N802 - the name is logging's
        return visible_lines(super().formatException(ei))


def _json_line(record: dict[str, Any], **options: Any) -> str:
    return visible(json.dumps(record, **options))
