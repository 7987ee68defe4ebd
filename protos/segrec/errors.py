"""All errors of the client, each with its gRPC status, a machine-readable reason and the wrong field.

SegrecError
├── InvalidArgument      INVALID_ARGUMENT     a request field, a local file or an option is wrong
├── NotFound             NOT_FOUND            a release or segment that the request names does not exist
├── Unavailable          UNAVAILABLE          no server answers, or the server cannot answer now; try again
├── DeadlineExceeded     DEADLINE_EXCEEDED    no answer in time
│   └── StreamStalled    DEADLINE_EXCEEDED    a stream made no progress for too long
├── Overloaded           RESOURCE_EXHAUSTED   too much work is waiting, or a message is too large
├── FailedPrecondition   FAILED_PRECONDITION  the server's state does not allow the call
├── PermissionDenied     PERMISSION_DENIED    the caller lacks a role; or UNAUTHENTICATED: its credentials
└── DataLoss             DATA_LOSS            a stream's answers or counts do not match
Every other status is a plain SegrecError.
"""

import random
from typing import Any

import grpc
from google.protobuf.message import DecodeError
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status

REQUEST_ID_KEY = "x-request-id"
"""Metadata key of a request id. The server returns the id in the trailing metadata of its answer."""
STATUS_METADATA_KEY = "grpc-status-details-bin"
"""Trailing metadata in which the server sends a serialized `google.rpc.Status`."""
DOMAIN = "segrec.dev"
"""The domain of the server's reasons in `google.rpc.ErrorInfo`; `segrec.v1.ErrorReason` lists them."""

# grpc.aio reports this text when a stream ends during a write, whatever the cause (grpc/grpc#36066). The next
# connection shows the real cause.
_FAILED_WRITE = "Internal error from Core"
_OWN_CANCELS = ("Locally cancelled", "Channel closed")
"""Starts of gRPC's words for a call that the caller itself has cancelled; otherwise the server did."""

_CODES = {code.value[0]: code for code in grpc.StatusCode}


class SegrecError(Exception):
    """Base class of all client errors. `str(error)` is one sentence: what is wrong, where, and how to correct it."""

    default_code = grpc.StatusCode.UNKNOWN

    def __init__(
        self,
        message: str,
        *,
        code: grpc.StatusCode | None = None,
        reason: str = "",
        field: str = "",
        details: str = "",
        retry_seconds: float | None = None,
        request_id: str = "",
    ) -> None:
        super().__init__(message)
        self.code = code or self.default_code
        """The gRPC status."""
        self.reason = reason or self.code.name
        """Machine-readable reason in UPPER_SNAKE_CASE; the name of the gRPC status when the server sent no reason."""
        self.field = field
        """Path of the wrong request field, such as `events[3].value`; empty when no field is wrong."""
        self.details = details
        """gRPC's own error text, for logs; may be empty."""
        self.retry_seconds = retry_seconds
        """How long the server says to wait before the same call is worth another try; None when it says nothing."""
        self.request_id = request_id
        """By which the server's log names the call; empty when no server has answered."""


class InvalidArgument(SegrecError):
    """A request field, a local file or an option is wrong; `field` names a wrong request field."""

    default_code = grpc.StatusCode.INVALID_ARGUMENT


class NotFound(SegrecError):
    """A release or segment that the request names does not exist; `field` says which field names it."""

    default_code = grpc.StatusCode.NOT_FOUND


class Unavailable(SegrecError):
    """No server answers, or the server cannot answer now; the call may be repeated."""

    default_code = grpc.StatusCode.UNAVAILABLE


class DeadlineExceeded(SegrecError):
    """No answer came in time; the call may be repeated."""

    default_code = grpc.StatusCode.DEADLINE_EXCEEDED


class StreamStalled(DeadlineExceeded):
    """A stream received no answer for `stall_seconds`."""


class Overloaded(SegrecError):
    """Too much work is waiting, or a message is larger than allowed."""

    default_code = grpc.StatusCode.RESOURCE_EXHAUSTED


class FailedPrecondition(SegrecError):
    """The server's current state does not allow the call."""

    default_code = grpc.StatusCode.FAILED_PRECONDITION


class PermissionDenied(SegrecError):
    """The caller lacks the permission for this call, or sent no credentials."""

    default_code = grpc.StatusCode.PERMISSION_DENIED


class DataLoss(SegrecError):
    """A stream's rows do not match the requested users, or the server's counts differ from the client's."""

    default_code = grpc.StatusCode.DATA_LOSS


_ERROR_TYPES: tuple[type[SegrecError], ...] = (
    InvalidArgument,
    NotFound,
    Unavailable,
    DeadlineExceeded,
    Overloaded,
    FailedPrecondition,
    PermissionDenied,
    DataLoss,
)
_BY_CODE = {error_type.default_code: error_type for error_type in _ERROR_TYPES} | {
    grpc.StatusCode.UNAUTHENTICATED: PermissionDenied
}


def status_code(number: int) -> grpc.StatusCode:
    """The gRPC status of a `google.rpc.Code` number; UNKNOWN for a number that has no name."""
    return _CODES.get(number, grpc.StatusCode.UNKNOWN)


def error_of_status(status: Status) -> SegrecError:
    """The error that a row's status describes, ready to be raised."""
    code = status_code(status.code)
    info, bad_request, retry = ErrorInfo(), BadRequest(), RetryInfo()
    wait = None
    for detail in status.details:
        if detail.Unpack(retry):
            wait = retry.retry_delay.ToNanoseconds() / 1e9
        else:
            detail.Unpack(info) or detail.Unpack(bad_request)
    field = bad_request.field_violations[0].field if bad_request.field_violations else ""
    error_type = _BY_CODE.get(code, SegrecError)
    return error_type(status.message, code=code, reason=info.reason, field=field, retry_seconds=wait)


def status_of(error: SegrecError) -> Status:
    """The status of a row that describes this error."""
    status = Status(code=error.code.value[0], message=str(error))
    status.details.add().Pack(ErrorInfo(reason=error.reason, domain=DOMAIN))
    if error.field:
        violation = BadRequest.FieldViolation(field=error.field, description=str(error), reason=error.reason)
        status.details.add().Pack(BadRequest(field_violations=[violation]))
    if error.retry_seconds is not None:
        retry = RetryInfo()
        retry.retry_delay.FromNanoseconds(round(error.retry_seconds * 1e9))
        status.details.add().Pack(retry)
    return status


def pause_before_retry(error: SegrecError, seconds_left: float) -> float | None:
    """Seconds after which a refused call is worth another try, at random up to a quarter more than the server says.

    None when the server did not refuse the call for overload, or when the caller's `seconds_left` end before.
    """
    if error.code is not grpc.StatusCode.RESOURCE_EXHAUSTED or error.retry_seconds is None:
        return None
    pause = error.retry_seconds * random.uniform(1.0, 1.25)  # noqa: S311 - spreads clients, no secret
    return pause if pause < seconds_left else None


def error_of_call(error: grpc.RpcError, address: str, timeout_seconds: float | None = None) -> SegrecError:
    """The error of a failed call to `address`. The server's own status is used when the call carries one."""
    code, details = _code_and_details(error)
    status = _sent_status(error)
    if status is not None:
        result = error_of_status(status)
        result.details = details
        result.request_id = _trailing_value(error, REQUEST_ID_KEY) or ""
        return result
    error_type = _BY_CODE.get(code, SegrecError)
    return error_type(_sentence(code, details, address, timeout_seconds), code=code, details=details)


def _code_and_details(error: grpc.RpcError) -> tuple[grpc.StatusCode, str]:
    # Every RpcError that gRPC raises from a call also has the methods of a call; its declared type lacks them.
    code = error.code() if hasattr(error, "code") else None
    details = error.details() if hasattr(error, "details") else str(error)
    if code is grpc.StatusCode.INTERNAL and details == _FAILED_WRITE:
        code = grpc.StatusCode.UNAVAILABLE
    if code is grpc.StatusCode.CANCELLED and not (details or "").startswith(_OWN_CANCELS):
        code = grpc.StatusCode.UNAVAILABLE
    return code or grpc.StatusCode.UNKNOWN, details or ""


def _sent_status(error: grpc.RpcError) -> Status | None:
    try:
        return Status.FromString(_trailing_value(error, STATUS_METADATA_KEY))
    except (DecodeError, TypeError):
        return None


def _trailing_value(error: grpc.RpcError, name: str) -> Any:
    """The value of this name in the trailing metadata of a failed call; None without one."""
    trailing: Any = error.trailing_metadata() if hasattr(error, "trailing_metadata") else None
    return next((value for key, value in trailing or () if key == name), None)


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
    if "cancelled" in details.lower():
        return f"{address} ended the call before it had answered, as a server that stops does: try again"
    if details == _FAILED_WRITE:
        return f"The connection to {address} was lost"
    for text, sentence in _CONNECTION_FAILURES:
        if text in details:
            return sentence.format(address=address)
    if any(text in details for text in _CLOSED_BY_SERVER):
        # Before the first call the server has accepted the connection and closed it.
        return _CLOSED.format(address=address) if "last error" in details else f"The connection to {address} was lost"
    lower = details.lower()
    if "handshake" in lower or "certificate" in lower or "tlsv1" in lower:
        return f"No TLS connection to {address}: {details.split('; last error: ')[-1]}"
    return f"No server answers at {address}: start one with `segrec-serve`, or give the address of a running server"


_CLOSED = (
    "The server at {address} closes the connection. A server with TLS does so when the caller uses none "
    "(--tls-ca), and one with mutual TLS when the caller's certificate is missing, has expired or is of another "
    "authority (--tls-cert, --tls-key)"
)
# Parts of gRPC's texts for connections that fail, with what they mean; the first that fits counts.
_CONNECTION_FAILURES = (
    ("certificate has expired", "The certificate of the server at {address} has expired: have a new one issued for it"),
    (
        "CERTIFICATE_VERIFY_FAILED",
        "The certificate of the server at {address} is not of an authority that this client trusts: give the root "
        "certificates of its authority (--tls-ca)",
    ),
    (
        "Hostname Verification Check failed",
        "The server's certificate is not for the name in {address}: give the address by a name that it is for",
    ),
    (
        "WRONG_VERSION_NUMBER",
        "The server at {address} does not use TLS: leave out the TLS options, or ask it at another port",
    ),
    ("errors resolving", "The name in {address} is not known here: check the address"),
)
_CLOSED_BY_SERVER = ("last error: UNAVAILABLE", "Socket closed", "reset by peer", "HTTP/2", "Broken pipe")
