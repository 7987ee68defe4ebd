"""Client of the Segrec services: segments and recommendations over gRPC."""

from segrec.aio import AsyncModelClient, AsyncSegrecClient
from segrec.channel import Tls
from segrec.client import ModelClient, SegrecClient
from segrec.errors import SegrecError
from segrec.names import enum_name, warning_sentence
from segrec.v1.common_pb2 import Event
from segrec.v1.event_service_pb2 import UserEvent
from segrec.v1.segrec_service_pb2 import Strategy

__all__ = [
    "AsyncModelClient",
    "AsyncSegrecClient",
    "Event",
    "ModelClient",
    "SegrecClient",
    "SegrecError",
    "Strategy",
    "Tls",
    "UserEvent",
    "enum_name",
    "warning_sentence",
]
