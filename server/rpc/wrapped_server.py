"""What every RPC has in common: request id, trace, decoding, errors as gRPC status, metrics and access log."""

import logging
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable
from contextlib import aclosing
from time import monotonic
from typing import Any

import grpc
from google.protobuf.descriptor import Descriptor, ServiceDescriptor
from grpc.aio import Server
from segrec.errors import REQUEST_ID_KEY

from server import logs, tracing
from server.access.control import AccessControl
from server.core.errors import InvalidArgument, SegrecError
from server.monitoring.metrics import Metrics
from server.rpc.grpc_types import Context, Handler
from server.rpc.messages.decoding import UNREADABLE, tolerant_deserializer
from server.rpc.messages.errors import trailing_metadata
from server.rpc.room import Pace, Room

log = logging.getLogger(__name__)


_LONGEST_REQUEST_ID = 128
_NO_ROOM = object()

Metadata = Iterable[tuple[str, str | bytes]]
Trailing = tuple[tuple[str, str | bytes], ...]


class WrappedServer:
    """Takes the handlers of Segrec's services and gives them, wrapped, to `server`.

    An interceptor of gRPC would be asked at every call, which takes a tenth of the time of a cached one.
    """

    def __init__(self, server: Server, metrics: Metrics, access: AccessControl, calls: Room, streams: Room) -> None:
        """Unary calls need a place in `calls`, streams one in `streams`."""
        self._server = server
        self._metrics = metrics
        self._access = access
        self._calls = calls
        self._streams = streams
        self._refused = logs.RefusedCalls()

    def add_service(self, descriptor: ServiceDescriptor, add: Callable[[Any], None]) -> None:
        """Add a service; `add` is the generated function, with its servicer."""
        taken = _Handlers()
        add(taken)
        handlers = {
            name: self._wrap(handler, descriptor.methods_by_name[name].input_type, f"{descriptor.full_name}/{name}")
            for name, handler in taken.handlers.items()
        }
        generic = grpc.method_handlers_generic_handler(descriptor.full_name, handlers)
        self._server.add_generic_rpc_handlers((generic,))

    def _wrap(self, handler: Any, request_type: Descriptor, path: str) -> Handler:
        name = path.rpartition("/")[2]
        deserializer = tolerant_deserializer(handler.request_deserializer, request_type)
        if handler.stream_stream:
            return grpc.stream_stream_rpc_method_handler(
                self._streaming(handler.stream_stream, name, path), deserializer, handler.response_serializer
            )
        calls = self._calls

        def deserialize(data: bytes) -> object:
            """A request that finds no room is not even parsed."""
            return _NO_ROOM if calls.is_full else deserializer(data)

        return grpc.unary_unary_rpc_method_handler(
            self._unary(handler.unary_unary, name, path), deserialize, _bytes_or(handler.response_serializer)
        )

    def _unary(self, handler: Callable[[Any, Any], Awaitable[Any]], name: str, path: str) -> Any:
        seconds = self._metrics.call_seconds.labels(name)
        succeeded = self._metrics.calls.labels(name, "OK")
        pace = Pace(self._calls)

        async def call(request: Any, context: Context) -> Any:
            start = monotonic()
            metadata = context.invocation_metadata() or ()
            request_id = self._begin(context, metadata)
            with tracing.call_span(path, metadata):
                try:
                    self._access.admit(path, context)
                    if request is _NO_ROOM:
                        raise self._calls.refusal()
                    pace.refuse_late(context.time_remaining())
                    with self._calls:
                        response = await handler(_readable(request), context)
                except Exception as error:
                    await self._abort(context, name, error, request_id, start)
                finally:
                    taken = monotonic() - start
                    seconds.observe(taken)
                pace.add(taken)
                succeeded.inc()
                logs.log_call(name, "OK", taken)
                return response

        return call

    def _streaming(self, handler: Callable[[Any, Any], AsyncGenerator[Any, None]], name: str, path: str) -> Any:
        seconds = self._metrics.call_seconds.labels(name)
        succeeded = self._metrics.calls.labels(name, "OK")

        async def call(requests: Any, context: Context) -> AsyncIterator[Any]:
            start = monotonic()
            metadata = context.invocation_metadata() or ()
            request_id = self._begin(context, metadata)
            with tracing.call_span(path, metadata):
                try:
                    self._access.admit_stream(path, context)
                    with self._streams:
                        readable = _all_readable(self._access.paced(requests, path, context))
                        async with aclosing(handler(readable, context)) as responses:
                            async for response in responses:
                                yield response
                except Exception as error:
                    await self._abort(context, name, error, request_id, start)
                finally:
                    seconds.observe(monotonic() - start)
                succeeded.inc()
                logs.log_call(name, "OK", monotonic() - start)

        return call

    def _begin(self, context: Context, metadata: Metadata) -> str:
        """The id of a call, which its answer also carries."""
        request_id = logs.begin_request(_request_id(metadata))
        context.set_trailing_metadata(((REQUEST_ID_KEY, request_id),))
        return request_id

    async def _abort(self, context: Context, name: str, error: Exception, request_id: str, start: float) -> None:
        if not isinstance(error, SegrecError):
            log.error("%s failed", name, exc_info=error)
            error = SegrecError("the server failed; its log holds the cause")
        self._metrics.calls.labels(name, error.code).inc()
        tracing.end_call(error.code)
        logs.log_call(name, error.code, monotonic() - start)
        if error.code != "INTERNAL":
            self._refused.add(name, error.code, error.reason, error.field)
        trailing: Trailing = (*trailing_metadata(error, request_id), (REQUEST_ID_KEY, request_id))
        await context.abort(grpc.StatusCode[error.code], str(error), trailing)


class _Handlers:
    """Stands for a server while a service adds its handlers."""

    def __init__(self) -> None:
        self.handlers: dict[str, Handler] = {}

    def add_generic_rpc_handlers(self, _: object) -> None:
        """Do nothing: these are the same handlers."""

    def add_registered_method_handlers(self, _: str, handlers: dict[str, Handler]) -> None:
        self.handlers.update(handlers)


def _bytes_or(serialize: Callable[[Any], bytes]) -> Callable[[Any], bytes]:
    """A serializer that passes on what a handler has serialized itself."""
    return lambda response: response if type(response) is bytes else serialize(response)


def _readable(request: Any) -> Any:
    if request is UNREADABLE:
        raise InvalidArgument(
            "the request is not a message of this method: use the protos of segrec.v1", reason="MESSAGE_UNREADABLE"
        )
    return request


async def _all_readable(requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
    async for request in requests:
        yield _readable(request)


def _request_id(metadata: Metadata) -> str:
    for key, value in metadata:
        if key == REQUEST_ID_KEY and isinstance(value, str):
            return value[:_LONGEST_REQUEST_ID]
    return ""
