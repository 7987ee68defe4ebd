"""What the blocking clients have in common."""

import time
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar

import grpc
from google.protobuf.message import Message

from segrec.calls import Call, CallOptions
from segrec.channel import Tls, open_channel, token_metadata
from segrec.errors import error_of_call, pause_before_retry

RequestT = TypeVar("RequestT", bound=Message)
ResponseT = TypeVar("ResponseT", bound=Message)


class BlockingClient:
    """Opens the channel, makes calls, repeats them where that helps, and raises the errors of `segrec.errors`."""

    def __init__(
        self,
        address: str,
        tls: Tls | None,
        timeout_seconds: float,
        token: str,
        interceptors: Sequence[Any],
        policy: str,
    ) -> None:
        self._address = address
        self._metadata = token_metadata(token, address, tls)
        self._timeout_seconds = timeout_seconds
        self._channel = open_channel(address, tls, policy, interceptors)

    def _call(
        self,
        method: "grpc.UnaryUnaryMultiCallable[RequestT, ResponseT]",
        request: RequestT,
        options: CallOptions,
        default_timeout: float = 0.0,
        *,
        repeat: bool = True,
    ) -> ResponseT:
        call = Call.of(options, self._metadata, default_timeout or self._timeout_seconds)
        while True:
            try:
                return method(request, timeout=call.seconds_left(), metadata=call.metadata)
            except grpc.RpcError as error:
                failure = error_of_call(error, self._address, call.timeout)
                pause = pause_before_retry(failure, call.end - time.monotonic())
                if pause is None or not repeat:
                    raise failure from error
            time.sleep(pause)

    def _pages(self, method: Any, request: Any, field: str, options: CallOptions) -> Iterator[Any]:
        while True:
            response: Any = self._call(method, request, options)
            yield from getattr(response, field)
            if not response.next_page_token:
                return
            request.page_token = response.next_page_token

    def close(self) -> None:
        """Closes the connection; running calls are cancelled."""
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.close()
