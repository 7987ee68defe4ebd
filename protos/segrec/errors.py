"""All errors of the client, each with its gRPC status, machine-readable reason and the field at fault.

SegrecError
├── InvalidArgument      INVALID_ARGUMENT     a field of the request, or a file or option given here, is wrong
├── NotFound             NOT_FOUND            a named thing does not exist
├── Unavailable          UNAVAILABLE          no server answers, or it says that it cannot now; try again
├── DeadlineExceeded     DEADLINE_EXCEEDED    no answer in time
│   └── StreamStalled    DEADLINE_EXCEEDED    a stream made no progress for too long
├── Overloaded           RESOURCE_EXHAUSTED   too much work is waiting, or a message is too large
├── FailedPrecondition   FAILED_PRECONDITION  the server is not in a state to do it
├── PermissionDenied     PERMISSION_DENIED    also UNAUTHENTICATED
└── DataLoss             DATA_LOSS            answers and counts of a stream do not add up
Every other status is a plain SegrecError.
"""

from typing import Any

import grpc
from google.protobuf.message import DecodeError

from segrec.v1.common_pb2 import RowStatus

STATUS_METADATA_KEY = "segrec-error-bin"
"""Trailing metadata in which the server sends a serialized `segrec.v1.RowStatus`."""

# What grpc.aio says when a stream ends while it writes, whatever ended it (grpc/grpc#36066); connecting again tells.
_FAILED_WRITE = "Internal error from Core"

_CODES = {code.value[0]: code for code in grpc.StatusCode}


class SegrecError(Exception):
    """Base of the tree. `str(error)` is a sentence for people: what, where, and how to mend it."""

    default_code = grpc.StatusCode.UNKNOWN

    def __init__(
        self, message: str, *, code: grpc.StatusCode | None = None, reason: str = "", field: str = "", details: str = ""
    ) -> None:
        super().__init__(message)
        self.code = code or self.default_code
        """The gRPC status."""
        self.reason = reason or self.code.name
        """Machine-readable, UPPER_SNAKE_CASE; the name of the status where the server gave none."""
        self.field = field
        """Path of the request's field at fault, such as `events[3].value`; empty where none is."""
        self.details = details
        """What gRPC itself said, for logs; may be empty."""


class InvalidArgument(SegrecError):
    """A field of the request is wrong; names the field."""

    default_code = grpc.StatusCode.INVALID_ARGUMENT


class NotFound(SegrecError):
    """A thing that the request names does not exist; names the field."""

    default_code = grpc.StatusCode.NOT_FOUND


class Unavailable(SegrecError):
    """No server answers, or it cannot now; the call may be repeated."""

    default_code = grpc.StatusCode.UNAVAILABLE


class DeadlineExceeded(SegrecError):
    """No answer came in time; the call may be repeated."""

    default_code = grpc.StatusCode.DEADLINE_EXCEEDED


class StreamStalled(DeadlineExceeded):
    """A stream got no answer for `stall_seconds` although chunks were waiting for one."""


class Overloaded(SegrecError):
    """Too much work is waiting, or a message is larger than allowed."""

    default_code = grpc.StatusCode.RESOURCE_EXHAUSTED


class FailedPrecondition(SegrecError):
    """The server is not in a state to do what was asked."""

    default_code = grpc.StatusCode.FAILED_PRECONDITION


class PermissionDenied(SegrecError):
    """The caller may not do this, or did not say who it is."""

    default_code = grpc.StatusCode.PERMISSION_DENIED


class DataLoss(SegrecError):
    """A stream's answers do not match what was asked, or its counts do not add up."""

    default_code = grpc.StatusCode.DATA_LOSS


_KINDS: tuple[type[SegrecError], ...] = (
    InvalidArgument,
    NotFound,
    Unavailable,
    DeadlineExceeded,
    Overloaded,
    FailedPrecondition,
    PermissionDenied,
    DataLoss,
)
_BY_CODE = {kind.default_code: kind for kind in _KINDS} | {grpc.StatusCode.UNAUTHENTICATED: PermissionDenied}


def status_code(number: int) -> grpc.StatusCode:
    """The gRPC status of a `google.rpc.Code` number; UNKNOWN for numbers that have no name."""
    return _CODES.get(number, grpc.StatusCode.UNKNOWN)


def error_of_status(status: RowStatus) -> SegrecError:
    """The error that a row's status describes, for callers that would rather raise than look."""
    code = status_code(status.code)
    kind = _BY_CODE.get(code, SegrecError)
    return kind(status.message, code=code, reason=status.reason, field=status.field)


def error_of_call(error: grpc.RpcError, address: str, timeout_seconds: float | None = None) -> SegrecError:
    """The error that a failed call to `address` describes: the server's own words where it sent any."""
    code, details = _code_and_details(error)
    status = _sent_status(error)
    if status is not None:
        result = error_of_status(status)
        result.details = details
        return result
    kind = _BY_CODE.get(code, SegrecError)
    return kind(_sentence(code, details, address, timeout_seconds), code=code, details=details)


def _code_and_details(error: grpc.RpcError) -> tuple[grpc.StatusCode, str]:
    # Every error that gRPC raises from a call is a call too, sync and async alike; their common type does not say so.
    code = error.code() if hasattr(error, "code") else None
    details = error.details() if hasattr(error, "details") else str(error)
    if code is grpc.StatusCode.INTERNAL and details == _FAILED_WRITE:
        code = grpc.StatusCode.UNAVAILABLE
    return code or grpc.StatusCode.UNKNOWN, details or ""


def _sent_status(error: grpc.RpcError) -> RowStatus | None:
    trailing: Any = error.trailing_metadata() if hasattr(error, "trailing_metadata") else None
    for key, value in trailing or ():
        if key == STATUS_METADATA_KEY:
            try:
                return RowStatus.FromString(value)
            except DecodeError:
                return None
    return None


def _sentence(code: grpc.StatusCode, details: str, address: str, timeout_seconds: float | None) -> str:
    if code is grpc.StatusCode.UNAVAILABLE:
        return _unavailable_sentence(details, address)
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        within = f" within {timeout_seconds:g} s" if timeout_seconds else " in time"
        return f"{address} did not answer{within}: try again, or allow more time"
    if code is grpc.StatusCode.UNIMPLEMENTED:
        return f"The server at {address} does not know this call: is it a Segrec server, and is this the right port?"
    return f"{address}: {details or code.name}"


def _unavailable_sentence(details: str, address: str) -> str:
    if details == _FAILED_WRITE:
        return f"The connection to {address} was lost"
    lower = details.lower()
    if "handshake" in lower or "certificate" in lower or "tlsv1" in lower:
        return f"No TLS connection to {address}: {details.split('; last error: ')[-1]}"
    return f"No server answers at {address}: start it with `segrec-serve`, or give the address of one that runs"
