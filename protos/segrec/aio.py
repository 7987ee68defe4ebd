"""The asyncio clients, with the methods of the blocking clients."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from types import TracebackType
from typing import Self, TypeVar, Unpack

import grpc
from google.protobuf.message import Message

from segrec.async_streaming import AsyncRowStream, UserIds
from segrec.channel import DEFAULT_ADDRESS, DEFAULT_MODEL_ADDRESS, Tls, open_aio_channel, token_metadata
from segrec.errors import error_of_call, pause_before_retry
from segrec.requests import (
    MAX_EVENTS_PER_CALL,
    TRAFFIC_CHANGE_SECONDS,
    RecommendArguments,
    add_response,
    build,
    pin_fields,
    recommend_request,
    record_requests,
    segment_request,
    sendable,
    stream_recommend_config,
    stream_segment_config,
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
)
from segrec.v1.segrec_service_pb2_grpc import SegrecServiceStub
from segrec.window import STALL_SECONDS, StreamSettings, Window

MessageT = TypeVar("MessageT", bound=Message)


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
        window = Window(stream_segment_config(release), SegmentRow, settings.max_in_flight, base_release)
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
        config = stream_recommend_config(release, arguments)
        window = Window(config, RecommendRow, settings.max_in_flight, base_release)
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
