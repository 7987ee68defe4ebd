"""Errors in responses: google.rpc.Status with ErrorInfo, BadRequest and RetryInfo, for calls and for rows alike."""

import grpc
from google.protobuf.any_pb2 import Any
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status

from server.core.errors import SegrecError

DOMAIN = "segrec.dev"
"""The domain of the reasons in ErrorInfo, which `segrec.v1.ErrorReason` lists."""


def status_of(error: SegrecError, request_id: str = "") -> Status:
    """The error as the status of a call or of a row."""
    info = ErrorInfo(reason=error.reason, domain=DOMAIN, metadata={"request_id": request_id} if request_id else {})
    status = Status(code=grpc.StatusCode[error.code].value[0], message=str(error), details=[_packed(info)])
    if error.field:
        violation = BadRequest.FieldViolation(field=error.field, description=str(error), reason=error.reason)
        status.details.append(_packed(BadRequest(field_violations=[violation])))
    if error.retry_seconds is not None:
        wait = RetryInfo()
        wait.retry_delay.FromNanoseconds(round(error.retry_seconds * 1e9))
        status.details.append(_packed(wait))
    return status


def trailing_metadata(error: SegrecError, request_id: str) -> tuple[tuple[str, bytes], ...]:
    """The trailing metadata of a failed call: its google.rpc.Status, where every gRPC library looks for it."""
    return (("grpc-status-details-bin", status_of(error, request_id).SerializeToString()),)


def _packed(message: ErrorInfo | BadRequest | RetryInfo) -> Any:
    packed = Any()
    packed.Pack(message)
    return packed
