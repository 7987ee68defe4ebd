"""The asyncio clients, with the methods of the blocking clients."""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable
from contextlib import aclosing
from functools import partial
from types import TracebackType
from typing import Any, Generic, Self, TypeVar, Unpack

import grpc
from google.protobuf.message import Message

from segrec.channel import DEFAULT_ADDRESS, DEFAULT_MODEL_ADDRESS, Tls, open_aio_channel, token_metadata
from segrec.errors import SegrecError, StreamStalled, error_of_call, pause_before_retry
from segrec.requests import (
    MAX_EVENTS_PER_CALL,
    TRAFFIC_CHANGE_SECONDS,
    RecommendArguments,
    add_response,
    build,
    pin_fields,
    recommend_options,
    recommend_request,
    record_requests,
    segment_request,
    sendable,
    stream_recommend_request,
    stream_segment_request,
    traffic_request,
)
from segrec.v1.common_pb2 import Event
from segrec.v1.event_service_pb2 import (
    EraseUserRequest,
    EraseUserResponse,
    GetUserHistoryRequest,
    GetUserHistoryResponse,
    RecordEventsResponse,
    UserEvent,
)
from segrec.v1.event_service_pb2_grpc import EventServiceStub
from segrec.v1.model_service_pb2 import (
    GetReleaseRequest,
    Guard,
    ListReleasesRequest,
    ListReleasesResponse,
    Release,
    RollbackRequest,
    RollbackResponse,
    TrafficRecord,
)
from segrec.v1.model_service_pb2_grpc import ModelServiceStub
from segrec.v1.segrec_service_pb2 import (
    GetSegmentRequest,
    GetSegmentResponse,
    ListSegmentsRequest,
    ListSegmentsResponse,
    RecommendResponse,
    RecommendRow,
    SegmentResponse,
    SegmentRow,
    StreamSummary,
)
from segrec.v1.segrec_service_pb2_grpc import SegrecServiceStub
from segrec.window import STALL_SECONDS, Request, Response, RowT, StreamSettings, Window, can_resume

MessageT = TypeVar("MessageT", bound=Message)
OpenCall = Callable[..., Any]
UserIds = Iterable[str] | AsyncIterable[str]


class AsyncRowStream(Generic[RowT]):
    """`segrec.streaming.RowStream` for `async for`.

    Close the stream, or use `async with`, when the loop may end before the stream does.
    """

    def __init__(
        self,
        open_call: OpenCall,
        window: Window[RowT],
        user_ids: UserIds,
        settings: StreamSettings,
        address: str,
    ) -> None:
        self._open_call = open_call
        self._window = window
        self._user_ids = aiter(user_ids) if isinstance(user_ids, AsyncIterable) else _as_async(user_ids)
        self._settings = settings
        self._address = address
        self._is_exhausted = False
        self._chunks = self._run()

    @property
    def counts(self) -> StreamSummary:
        """Counts of the rows received so far, over all connections."""
        return self._window.counts

    @property
    def summary(self) -> StreamSummary | None:
        """The server's counts for the last connection; None until the stream has ended.

        They equal the client's, where a degraded row that was asked again counts twice.
        """
        return self._window.summary

    @property
    def base_release(self) -> int:
        """The release that answers users outside the canary, on all connections; 0 until it is known."""
        return self._window.base_release

    def chunks(self) -> AsyncIterator[list[RowT]]:
        """Lists of rows, one list for each answered chunk."""
        return self._chunks

    async def __aiter__(self) -> AsyncIterator[RowT]:
        async with aclosing(self._chunks):
            async for rows in self._chunks:
                for row in rows:
                    yield row

    async def close(self) -> None:
        """Cancels the call; unanswered chunks are dropped."""
        await self._chunks.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        await self.close()

    async def _run(self) -> AsyncGenerator[list[RowT], None]:
        while True:
            connection = _Connection(self._open_call, self._window.reconnect(), self._address)
            try:
                async with aclosing(self._exchange(connection)) as chunks:
                    async for rows in chunks:
                        yield rows
                return
            except SegrecError as error:
                pause = self._window.back_off(error) if can_resume(error) else None
                if pause is None:
                    raise
            finally:
                connection.close()
            await asyncio.sleep(pause)

    async def _exchange(self, connection: "_Connection") -> AsyncGenerator[list[RowT], None]:
        while True:
            await self._fill(connection)
            response = await connection.receive(self._settings.stall_seconds)
            if response is None:
                self._window.check_end()
                return
            for rows in self._window.accept(response):
                yield rows

    async def _fill(self, connection: "_Connection") -> None:
        for request in self._window.repeats():
            connection.send(request)
        while not self._window.is_full and not self._is_exhausted:
            user_ids: list[str] = []
            while len(user_ids) < self._settings.chunk_size:
                user_id = await anext(self._user_ids, None)
                if user_id is None:
                    break
                user_ids.append(user_id)
            if user_ids:
                connection.send(self._window.add(user_ids))
            else:
                self._is_exhausted = True
        if self._is_exhausted and self._window.is_empty and not connection.is_finished:
            connection.finish()


class _Connection:
    """One streaming call. A stall cancels the whole call, because a cancelled read leaks memory in grpc.aio."""

    def __init__(self, open_call: OpenCall, requests: list[Request], address: str) -> None:
        self._address = address
        self._requests: asyncio.Queue[Request | None] = asyncio.Queue()
        self._has_stalled = False
        self.is_finished = False
        for request in requests:
            self._requests.put_nowait(request)
        self._call = open_call(self._outgoing())

    async def _outgoing(self) -> AsyncIterator[Request]:
        while (request := await self._requests.get()) is not None:
            yield request

    def send(self, request: Request) -> None:
        self._requests.put_nowait(request)

    def finish(self) -> None:
        """Closes the sending side; the server may still answer."""
        self.is_finished = True
        self._requests.put_nowait(None)

    async def receive(self, timeout_seconds: float) -> Response | None:
        """The next answer; None at the end of the stream."""
        watchdog = asyncio.get_running_loop().call_later(timeout_seconds, self._cancel_stalled)
        try:
            response = await self._call.read()
        except grpc.RpcError as error:
            raise error_of_call(error, self._address) from error
        except asyncio.CancelledError:
            if not self._has_stalled:
                raise
            message = f"{self._address} has sent no answer for {timeout_seconds:g} s, so the stream was cancelled"
            raise StreamStalled(message, reason="STREAM_STALLED") from None
        finally:
            watchdog.cancel()
        return None if response is grpc.aio.EOF else response

    def _cancel_stalled(self) -> None:
        self._has_stalled = True
        self._call.cancel()

    def close(self) -> None:
        self._call.cancel()
        self._requests.put_nowait(None)


async def _as_async(user_ids: Iterable[str]) -> AsyncIterator[str]:
    for user_id in user_ids:
        yield user_id


class _AsyncClient:
    def __init__(self, address: str, tls: Tls | None, timeout_seconds: float, token: str) -> None:
        self._address = address
        self._metadata = token_metadata(token, address, tls)
        self._timeout_seconds = timeout_seconds
        self._channel = open_aio_channel(address, tls)

    async def _call(
        self,
        method: Callable[..., Awaitable[MessageT]],
        request: Message,
        timeout_seconds: float = 0.0,
        *,
        repeat: bool = True,
    ) -> MessageT:
        timeout_seconds = timeout_seconds or self._timeout_seconds
        end = time.monotonic() + timeout_seconds
        while True:
            try:
                return await method(request, timeout=end - time.monotonic(), metadata=self._metadata)
            except grpc.RpcError as error:
                failure = error_of_call(error, self._address, timeout_seconds)
                pause = pause_before_retry(failure, end - time.monotonic())
                if pause is None or not repeat:
                    raise failure from error
            await asyncio.sleep(pause)

    async def close(self) -> None:
        """Closes the connection; calls in flight are cancelled."""
        await self._channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        await self.close()


class AsyncSegrecClient(_AsyncClient):
    """SegrecClient for asyncio; SegrecClient documents the methods. The streams also accept async iterables.

    Create the client inside the running event loop.
    """

    def __init__(
        self,
        address: str = DEFAULT_ADDRESS,
        *,
        tls: Tls | None = None,
        timeout_seconds: float = 2.0,
        token: str = "",
    ) -> None:
        super().__init__(address, tls, timeout_seconds, token)
        self._segrec = SegrecServiceStub(self._channel)
        self._events = EventServiceStub(self._channel)

    async def segment(
        self, user_id: str | None = None, *, events: Iterable[Event] | None = None, release: int | str = 0
    ) -> SegmentResponse:
        return await self._call(self._segrec.Segment, segment_request(user_id, events, release))

    async def recommend(
        self,
        user_id: str | None = None,
        *,
        events: Iterable[Event] | None = None,
        release: int | str = 0,
        **arguments: Unpack[RecommendArguments],
    ) -> RecommendResponse:
        return await self._call(self._segrec.Recommend, recommend_request(user_id, events, release, arguments))

    def stream_segment(
        self,
        user_ids: UserIds,
        *,
        release: int | str = 0,
        chunk_size: int = 1024,
        max_in_flight: int = 8,
        stall_seconds: float = STALL_SECONDS,
        base_release: int = 0,
    ) -> AsyncRowStream[SegmentRow]:
        settings = StreamSettings(chunk_size, max_in_flight, stall_seconds)
        make_request = partial(stream_segment_request, release=release)
        window = Window(make_request, SegmentRow, settings.max_in_flight, base_release)
        return AsyncRowStream(
            partial(self._segrec.StreamSegment, metadata=self._metadata), window, user_ids, settings, self._address
        )

    def stream_recommend(
        self,
        user_ids: UserIds,
        *,
        release: int | str = 0,
        chunk_size: int = 1024,
        max_in_flight: int = 8,
        stall_seconds: float = STALL_SECONDS,
        base_release: int = 0,
        **arguments: Unpack[RecommendArguments],
    ) -> AsyncRowStream[RecommendRow]:
        settings = StreamSettings(chunk_size, max_in_flight, stall_seconds)
        make_request = partial(stream_recommend_request, release=release, options=recommend_options(arguments))
        window = Window(make_request, RecommendRow, settings.max_in_flight, base_release)
        return AsyncRowStream(
            partial(self._segrec.StreamRecommend, metadata=self._metadata), window, user_ids, settings, self._address
        )

    async def record(self, events: Iterable[UserEvent]) -> RecordEventsResponse:
        total = RecordEventsResponse()
        for number, request in enumerate(record_requests(events)):
            add_response(total, await self._call(self._events.RecordEvents, request), number * MAX_EVENTS_PER_CALL)
        return total

    async def history(self, user_id: str, limit: int = 100) -> GetUserHistoryResponse:
        request = build(GetUserHistoryRequest, user_id=sendable(user_id), limit=limit)
        return await self._call(self._events.GetUserHistory, request)

    async def erase(self, user_id: str) -> EraseUserResponse:
        return await self._call(self._events.EraseUser, build(EraseUserRequest, user_id=sendable(user_id)))

    async def list_segments(self, release: int | str = 0) -> ListSegmentsResponse:
        return await self._call(self._segrec.ListSegments, build(ListSegmentsRequest, **pin_fields(release)))

    async def get_segment(self, segment_id: int, release: int | str = 0) -> GetSegmentResponse:
        return await self._call(
            self._segrec.GetSegment, build(GetSegmentRequest, segment_id=segment_id, **pin_fields(release))
        )


class AsyncModelClient(_AsyncClient):
    """ModelClient for asyncio; ModelClient documents the methods. Create the client inside the running event loop."""

    def __init__(
        self,
        address: str = DEFAULT_MODEL_ADDRESS,
        *,
        tls: Tls | None = None,
        timeout_seconds: float = 2.0,
        token: str = "",
    ) -> None:
        super().__init__(address, tls, timeout_seconds, token)
        self._models = ModelServiceStub(self._channel)

    async def list_releases(self) -> list[Release]:
        response = await self._call(self._models.ListReleases, ListReleasesRequest())
        return list(response.releases)

    async def get_release(self, release: int) -> Release:
        response = await self._call(self._models.GetRelease, build(GetReleaseRequest, release=release))
        return response.release

    async def overview(self) -> ListReleasesResponse:
        return await self._call(self._models.ListReleases, ListReleasesRequest())

    async def set_traffic(
        self,
        stable: int = 0,
        *,
        canary: int = 0,
        canary_percent: float = 0.0,
        shadow: int = 0,
        guard: Guard | None = None,
        reason: str = "",
        changed_by: str = "",
        etag: str = "",
        timeout_seconds: float = TRAFFIC_CHANGE_SECONDS,
    ) -> TrafficRecord:
        request = traffic_request(stable, canary, canary_percent, shadow, guard, changed_by, reason, etag)
        response = await self._call(self._models.SetTraffic, request, timeout_seconds, repeat=False)
        return response.traffic

    async def rollback(
        self,
        *,
        reason: str = "",
        changed_by: str = "",
        etag: str = "",
        timeout_seconds: float = TRAFFIC_CHANGE_SECONDS,
    ) -> RollbackResponse:
        request = build(RollbackRequest, changed_by=changed_by, reason=reason, etag=etag)
        return await self._call(self._models.Rollback, request, timeout_seconds, repeat=False)
