"""The interceptor of every RPC: request id, trace, decoding, errors as gRPC status, metrics and access log."""

import logging
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from time import monotonic
from typing import Any

import grpc
from google.protobuf.descriptor import Descriptor
from grpc.aio import ServerInterceptor
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

Trailing = tuple[tuple[str, str | bytes], ...]


class CallInterceptor(ServerInterceptor):
    """Wraps the handlers of Segrec's services; gRPC's own handlers (health, reflection) stay unchanged.

    `request_types` maps a full method name, such as `/segrec.v1.SegrecService/Segment`, to its request type.
    """

    def __init__(
        self,
        metrics: Metrics,
        request_types: dict[str, Descriptor],
        access: AccessControl,
        calls: Room,
        streams: Room,
    ) -> None:
        """Unary calls need a place in `calls`, streams one in `streams`."""
        self._metrics = metrics
        self._access = access
        self._request_types = request_types
        self._calls = calls
        self._streams = streams
        self._refused = logs.RefusedCalls()
        self._refusing: dict[str, Handler] = {}
        self._wrapped: dict[str, Handler] = {}

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler | None:
        """Return the wrapped handler of the method, which is made at the first call.

        While there is no room for unary calls, it is one that does not even parse the request.
        """
        method: str = handler_call_details.method
        if self._calls.is_full and method in self._refusing:
            return self._refusing[method]
        wrapped = self._wrapped.get(method)
        if wrapped is not None:
            return wrapped
        handler = await continuation(handler_call_details)
        if handler is None or method not in self._request_types:
            return handler
        self._wrapped[method] = self._wrap(handler, method)
        return self._wrapped[method]

    def _wrap(self, handler: Any, method: str) -> Handler:
        deserializer = tolerant_deserializer(handler.request_deserializer, self._request_types[method])
        name, path = method.rsplit("/", 1)[-1], method.removeprefix("/")
        if handler.stream_stream:
            return grpc.stream_stream_rpc_method_handler(
                self._streaming(handler.stream_stream, name, path), deserializer, handler.response_serializer
            )
        self._refusing[method] = grpc.unary_unary_rpc_method_handler(self._unary(self._refuse, name, path))
        return grpc.unary_unary_rpc_method_handler(
            self._unary(handler.unary_unary, name, path), deserializer, handler.response_serializer
        )

    def _unary(self, handler: Callable[[Any, Any], Awaitable[Any]], name: str, path: str) -> Any:
        seconds = self._metrics.call_seconds.labels(name)
        succeeded = self._metrics.calls.labels(name, "OK")
        pace = Pace(self._calls)

        async def call(request: Any, context: Context) -> Any:
            start = monotonic()
            request_id = self._begin(context)
            with tracing.call_span(path, context.invocation_metadata()):
                try:
                    self._access.admit(path, context)
                    pace.refuse_late(context.time_remaining())
                    with self._calls:
                        response = await handler(_readable(request), context)
                except Exception as error:
                    await self._abort(context, name, error, request_id, start)
                finally:
                    seconds.observe(monotonic() - start)
                pace.add(monotonic() - start)
                succeeded.inc()
                logs.log_call(name, "OK", monotonic() - start)
                return response

        return call

    def _streaming(self, handler: Callable[[Any, Any], AsyncGenerator[Any, None]], name: str, path: str) -> Any:
        seconds = self._metrics.call_seconds.labels(name)
        succeeded = self._metrics.calls.labels(name, "OK")

        async def call(requests: Any, context: Context) -> AsyncIterator[Any]:
            start = monotonic()
            request_id = self._begin(context)
            with tracing.call_span(path, context.invocation_metadata()):
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

    def _begin(self, context: Context) -> str:
        """The id of a call, which its answer also carries."""
        request_id = logs.begin_request(_request_id(context))
        context.set_trailing_metadata(((REQUEST_ID_KEY, request_id),))
        return request_id

    async def _refuse(self, _request: bytes, _context: Context) -> Any:
        raise self._calls.refusal()

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


def _readable(request: Any) -> Any:
    if request is UNREADABLE:
        raise InvalidArgument(
            "the request is not a message of this method: use the protos of segrec.v1", reason="MESSAGE_UNREADABLE"
        )
    return request


async def _all_readable(requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
    async for request in requests:
        yield _readable(request)


def _request_id(context: Context) -> str:
    for key, value in context.invocation_metadata() or ():
        if key == REQUEST_ID_KEY and isinstance(value, str):
            return value[:_LONGEST_REQUEST_ID]
    return ""
