"""Errors in responses: google.rpc.Status with ErrorInfo, BadRequest and RetryInfo, and the API's own RowStatus."""

import grpc
from google.protobuf.any_pb2 import Any
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status
from segrec.v1.common_pb2 import RowStatus

from server.core.errors import SegrecError

DOMAIN = "segrec"
ROW_STATUS_KEY = "segrec-error-bin"
"""Key of the trailing metadata that holds a RowStatus of the whole call, for clients without googleapis packages."""


def row_status(error: SegrecError) -> RowStatus:
    """The error as the status of a row."""
    code = grpc.StatusCode[error.code].value[0]
    status = RowStatus(code=code, reason=error.reason, message=str(error), field=error.field)
    if error.retry_seconds is not None:
        status.retry_delay.FromNanoseconds(round(error.retry_seconds * 1e9))
    return status


def trailing_metadata(error: SegrecError, request_id: str) -> tuple[tuple[str, bytes], ...]:
    """The trailing metadata of a failed call: google.rpc.Status and RowStatus, serialized."""
    status = row_status(error)
    info = ErrorInfo(reason=error.reason, domain=DOMAIN, metadata={"request_id": request_id} if request_id else {})
    details = [info, *_bad_request(error), *_retry_info(error)]
    rich = Status(code=status.code, message=status.message, details=[_packed(detail) for detail in details])
    return (
        ("grpc-status-details-bin", rich.SerializeToString()),
        (ROW_STATUS_KEY, status.SerializeToString()),
    )


def _bad_request(error: SegrecError) -> list[BadRequest]:
    if not error.field:
        return []
    violation = BadRequest.FieldViolation(field=error.field, description=str(error), reason=error.reason)
    return [BadRequest(field_violations=[violation])]


def _retry_info(error: SegrecError) -> list[RetryInfo]:
    if error.retry_seconds is None:
        return []
    wait = RetryInfo()
    wait.retry_delay.FromNanoseconds(round(error.retry_seconds * 1e9))
    return [wait]


def _packed(message: ErrorInfo | BadRequest | RetryInfo) -> Any:
    packed = Any()
    packed.Pack(message)
    return packed
