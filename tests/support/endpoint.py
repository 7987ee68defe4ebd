"""The server's own kind of gRPC endpoint in this process, with a ModelService that answers without a release."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import grpc
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from segrec.v1 import model_service_pb2

from server.access.control import AccessControl, AccessFile
from server.monitoring.metrics import Metrics
from server.rpc.certificates import ServerCertificates
from server.rpc.endpoint import Endpoint, Service
from server.settings import Settings

SERVICE = model_service_pb2.DESCRIPTOR.services_by_name["ModelService"]


async def _answer(response: type[Message], request: Message, context: Any) -> Message:
    return response()


def _add(server: grpc.aio.Server) -> None:
    handlers: dict[str, Any] = {
        method.name: grpc.unary_unary_rpc_method_handler(
            partial(_answer, GetMessageClass(method.output_type)),
            GetMessageClass(method.input_type).FromString,
            GetMessageClass(method.output_type).SerializeToString,
        )
        for method in SERVICE.methods
    }
    server.add_registered_method_handlers(SERVICE.full_name, handlers)


@asynccontextmanager
async def serving(
    certificates: ServerCertificates | None = None,
    *,
    host: str = "127.0.0.1",
    access_file: Path | None = None,
    settings: Settings | None = None,
) -> AsyncIterator[str]:
    """An endpoint on a free port of `host`; yields its address on this machine."""
    file = AccessFile(access_file) if access_file else None
    has_mutual_tls = certificates is not None
    access = AccessControl(file, f"{host}:0", lambda *_: None, has_mutual_tls=has_mutual_tls)
    service = Service(SERVICE, _add)
    endpoint = Endpoint(settings or Settings(), f"{host}:0", [service], Metrics(), access, certificates)
    await endpoint.start()
    try:
        yield f"127.0.0.1:{endpoint.port}"
    finally:
        await endpoint.stop(0.0)
