"""One listening gRPC server: services, health, reflection, TLS."""

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import grpc
from google.protobuf.descriptor import ServiceDescriptor
from grpc.aio import Server
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from server.access.control import AccessControl, is_loopback
from server.core.errors import SetupError
from server.monitoring.metrics import Metrics
from server.rpc.certificates import ServerCertificates
from server.rpc.room import Room
from server.rpc.wrapped_server import WrappedServer
from server.settings import Settings

log = logging.getLogger(__name__)

MAX_PENDING_CALLS = 1 << 16
"""Calls that gRPC holds until their handlers start. Above its own limits of 1,000 and 3,000 gRPC cancels calls without
a reason; here `max_calls` refuses them with one."""
MAX_MESSAGE_BYTES = 4 * 1024 * 1024
"""Largest request. 1,024 ids of 256 bytes take a sixteenth of this size."""


@dataclass(frozen=True, slots=True)
class Service:
    """A gRPC service: its descriptor, and a function that adds its servicer to a server."""

    descriptor: ServiceDescriptor
    add: Callable[[Server], None]


class Endpoint:
    """A gRPC server on one address. Its health is NOT_SERVING until `set_serving(True)`. Raises `SetupError`."""

    def __init__(
        self,
        settings: Settings,
        address: str,
        services: Sequence[Service],
        metrics: Metrics,
        access: AccessControl,
        certificates: ServerCertificates | None = None,
        *,
        shares_port: bool = False,
    ) -> None:
        """Without `certificates`, calls are not encrypted. `shares_port`: other processes may listen on the port, too.

        The kernel then deals out the connections among them.
        """
        self._services = services
        self._names = ["", *(service.descriptor.full_name for service in services)]
        self._health = health.aio.HealthServicer()
        self._is_started = False
        self._start_lock = asyncio.Lock()
        self.rooms = {"calls": Room("calls", settings.max_calls), "streams": Room("streams", settings.max_streams)}
        """The limits of unary calls and of streams in progress, by kind."""
        self._server = grpc.aio.server(
            options=[
                ("grpc.so_reuseport", int(shares_port)),
                ("grpc.server.max_pending_requests", MAX_PENDING_CALLS),
                ("grpc.server.max_pending_requests_hard_limit", MAX_PENDING_CALLS),
                ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
                ("grpc.max_send_message_length", -1),
                ("grpc.http2.min_recv_ping_interval_without_data_ms", 20_000),  # clients ping idle calls
            ],
        )
        wrapped = WrappedServer(self._server, metrics, access, self.rooms["calls"], self.rooms["streams"])
        for service in services:
            wrapped.add_service(service.descriptor, service.add)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        if is_loopback(address) if settings.reflection is None else settings.reflection:
            names = [service.descriptor.full_name for service in services]
            reflection.enable_server_reflection([*names, health.SERVICE_NAME, reflection.SERVICE_NAME], self._server)
        self.port = self._listen(address, certificates)

    def _listen(self, address: str, certificates: ServerCertificates | None) -> int:
        try:
            if certificates is None:
                return int(self._server.add_insecure_port(address))
            return int(self._server.add_secure_port(address, certificates.credentials()))
        except RuntimeError as error:
            raise SetupError(
                f"cannot listen on {address}: choose another address, or stop the program that listens there"
            ) from error

    async def start(self) -> None:
        """Start to answer calls, with NOT_SERVING as the health; does nothing after the first call."""
        async with self._start_lock:
            if not self._is_started:
                await self.set_serving(False)
                await self._server.start()
                self._is_started = True

    async def set_serving(self, serving: bool) -> None:
        """Set the health of the server and of each service."""
        status = health_pb2.HealthCheckResponse.SERVING if serving else health_pb2.HealthCheckResponse.NOT_SERVING
        for name in self._names:
            await self._health.set(name, status)

    async def stop(self, grace_seconds: float) -> None:
        """Set health to NOT_SERVING, refuse new calls, and wait at most `grace_seconds` for accepted calls."""
        await self._health.enter_graceful_shutdown()
        await self._server.stop(grace_seconds)
