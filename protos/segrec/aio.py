"""The asyncio clients, with the methods of the blocking clients."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack

import grpc
from google.protobuf.message import Message

from segrec.async_streaming import AsyncRowStream, UserIds
from segrec.calls import Call, CallOptions, named_arguments
from segrec.channel import (
    DEFAULT_ADDRESS,
    DEFAULT_MODEL_ADDRESS,
    DEFAULT_TIMEOUT_SECONDS,
    PICK_FIRST,
    ROUND_ROBIN,
    Tls,
    open_aio_channel,
    token_metadata,
)
from segrec.errors import error_of_call, pause_before_retry
from segrec.paging import add_page, first_page_size, next_page
from segrec.requests import (
    MAX_EVENTS_PER_CALL,
    MAX_PAGE_SIZE,
    TRAFFIC_CHANGE_SECONDS,
    RecommendCall,
    SimilarCall,
    add_response,
    build,
    checked_type,
    pin_fields,
    recommend_request,
    record_requests,
    segment_request,
    sendable,
    similar_request,
    split_arguments,
    stream_recommend_config,
    stream_segment_config,
    traffic_request,
)
from segrec.v1.catalogue_service_pb2 import (
    Action,
    Category,
    GetItemRequest,
    Item,
    ListActionsRequest,
    ListCategoriesRequest,
    ListItemsRequest,
    SimilarItemsResponse,
)
from segrec.v1.catalogue_service_pb2_grpc import CatalogueServiceStub
from segrec.v1.common_pb2 import Event
from segrec.v1.event_service_pb2 import (
    EraseUserRequest,
    EraseUserResponse,
    ListEventsRequest,
    ListEventsResponse,
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
        self._channel = open_aio_channel(address, tls, policy, interceptors)

    async def _call(
        self,
        method: Callable[..., Awaitable[MessageT]],
        request: Message,
        options: CallOptions,
        default_timeout: float = 0.0,
        *,
        repeat: bool = True,
    ) -> MessageT:
        call = Call.of(options, self._metadata, default_timeout or self._timeout_seconds)
        while True:
            try:
                return await method(request, timeout=call.seconds_left(), metadata=call.metadata)
            except grpc.RpcError as error:
                failure = error_of_call(error, self._address, call.timeout)
                pause = pause_before_retry(failure, call.end - time.monotonic())
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

    @named_arguments
    def __init__(
        self,
        address: str = DEFAULT_ADDRESS,
        *,
        tls: Tls | None = None,
        timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS,
        token: str = "",
        interceptors: Sequence[Any] = (),
    ) -> None:
        super().__init__(address, tls, timeout_seconds, token, interceptors, ROUND_ROBIN)
        self._segrec = SegrecServiceStub(self._channel)
        self._events = EventServiceStub(self._channel)
        self._catalogue = CatalogueServiceStub(self._channel)

    @named_arguments
    async def segment(
        self,
        user_id: str | None = None,
        *,
        events: Iterable[Event] | None = None,
        release: int | str = 0,
        session_key: str = "",
        **options: Unpack[CallOptions],
    ) -> SegmentResponse:
        return await self._call(self._segrec.Segment, segment_request(user_id, events, release, session_key), options)

    @named_arguments
    async def recommend(
        self,
        user_id: str | None = None,
        *,
        events: Iterable[Event] | None = None,
        release: int | str = 0,
        session_key: str = "",
        **arguments: Unpack[RecommendCall],
    ) -> RecommendResponse:
        fields, options = split_arguments(arguments)
        request = recommend_request(user_id, events, release, session_key, fields)
        return await self._call(self._segrec.Recommend, request, options)

    @named_arguments
    def stream_segment(
        self,
        user_ids: UserIds,
        *,
        release: int | str = 0,
        chunk_size: int = 1024,
        max_in_flight: int = 8,
        stall_seconds: float = STALL_SECONDS,
        base_release: int = 0,
        **options: Unpack[CallOptions],
    ) -> AsyncRowStream[SegmentRow]:
        settings = StreamSettings(chunk_size, max_in_flight, stall_seconds)
        window = Window(stream_segment_config(release), SegmentRow, settings.max_in_flight, base_release)
        call = Call.of(options, self._metadata, None)
        open_call = call.stream_opener(self._segrec.StreamSegment)
        return AsyncRowStream(open_call, window, user_ids, settings, self._address)

    @named_arguments
    def stream_recommend(
        self,
        user_ids: UserIds,
        *,
        release: int | str = 0,
        chunk_size: int = 1024,
        max_in_flight: int = 8,
        stall_seconds: float = STALL_SECONDS,
        base_release: int = 0,
        **arguments: Unpack[RecommendCall],
    ) -> AsyncRowStream[RecommendRow]:
        settings = StreamSettings(chunk_size, max_in_flight, stall_seconds)
        fields, options = split_arguments(arguments)
        config = stream_recommend_config(release, fields)
        window = Window(config, RecommendRow, settings.max_in_flight, base_release)
        call = Call.of(options, self._metadata, None)
        open_call = call.stream_opener(self._segrec.StreamRecommend)
        return AsyncRowStream(open_call, window, user_ids, settings, self._address)

    @named_arguments
    async def record(self, events: Iterable[UserEvent], **options: Unpack[CallOptions]) -> RecordEventsResponse:
        total = RecordEventsResponse()
        for number, request in enumerate(record_requests(events)):
            add_response(
                total, await self._call(self._events.RecordEvents, request, options), number * MAX_EVENTS_PER_CALL
            )
        return total

    @named_arguments
    async def history(self, user_id: str, limit: int = 100, **options: Unpack[CallOptions]) -> ListEventsResponse:
        request = build(ListEventsRequest, user_id=sendable(user_id), page_size=first_page_size(limit))
        listed = await self._call(self._events.ListEvents, request, options)
        while next_page(request, listed.next_page_token, limit - len(listed.events)):
            add_page(listed, await self._call(self._events.ListEvents, request, options))
        return listed

    @named_arguments
    async def erase(self, user_id: str, **options: Unpack[CallOptions]) -> EraseUserResponse:
        request = build(EraseUserRequest, user_id=sendable(user_id))
        return await self._call(self._events.EraseUser, request, options)

    @named_arguments
    async def list_segments(self, release: int | str = 0, **options: Unpack[CallOptions]) -> ListSegmentsResponse:
        request = build(ListSegmentsRequest, page_size=MAX_PAGE_SIZE, **pin_fields(release))
        listed = await self._call(self._segrec.ListSegments, request, options)
        while next_page(request, listed.next_page_token):
            add_page(listed, await self._call(self._segrec.ListSegments, request, options))
        return listed

    @named_arguments
    async def get_segment(
        self, segment_id: int, release: int | str = 0, **options: Unpack[CallOptions]
    ) -> GetSegmentResponse:
        request = build(GetSegmentRequest, segment_id=segment_id, **pin_fields(release))
        return await self._call(self._segrec.GetSegment, request, options)

    @named_arguments
    def list_items(
        self,
        *,
        category: str = "",
        title_prefix: str = "",
        release: int | str = 0,
        **options: Unpack[CallOptions],
    ) -> AsyncIterator[Item]:
        filters = {"category": category, "title_prefix": title_prefix, "page_size": MAX_PAGE_SIZE}
        request = build(ListItemsRequest, **filters, **pin_fields(release))
        return self._pages(self._catalogue.ListItems, request, "items", options)

    @named_arguments
    async def get_item(self, item_id: str, release: int | str = 0, **options: Unpack[CallOptions]) -> Item:
        checked_type(item_id, "item_id")
        request = build(GetItemRequest, item_id=item_id, **pin_fields(release))
        return (await self._call(self._catalogue.GetItem, request, options)).item

    @named_arguments
    async def similar_items(
        self, item_id: str, *, release: int | str = 0, **arguments: Unpack[SimilarCall]
    ) -> SimilarItemsResponse:
        request, options = similar_request(item_id, release, arguments)
        return await self._call(self._catalogue.SimilarItems, request, options)

    @named_arguments
    def list_categories(self, release: int | str = 0, **options: Unpack[CallOptions]) -> AsyncIterator[Category]:
        request = build(ListCategoriesRequest, page_size=MAX_PAGE_SIZE, **pin_fields(release))
        return self._pages(self._catalogue.ListCategories, request, "categories", options)

    @named_arguments
    def list_actions(self, release: int | str = 0, **options: Unpack[CallOptions]) -> AsyncIterator[Action]:
        request = build(ListActionsRequest, page_size=MAX_PAGE_SIZE, **pin_fields(release))
        return self._pages(self._catalogue.ListActions, request, "actions", options)

    async def _pages(
        self, method: Callable[..., Any], request: Any, field: str, options: CallOptions
    ) -> AsyncIterator[Any]:
        while True:
            response = await self._call(method, request, options)
            for entry in getattr(response, field):
                yield entry
            if not response.next_page_token:
                return
            request.page_token = response.next_page_token


class AsyncModelClient(_AsyncClient):
    """ModelClient for asyncio; ModelClient documents the methods. Create the client inside the running event loop."""

    @named_arguments
    def __init__(
        self,
        address: str = DEFAULT_MODEL_ADDRESS,
        *,
        tls: Tls | None = None,
        timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS,
        token: str = "",
        interceptors: Sequence[Any] = (),
    ) -> None:
        # Not in turn: servers follow a change of the traffic within a second, and who has made it wants to read it.
        super().__init__(address, tls, timeout_seconds, token, interceptors, PICK_FIRST)
        self._models = ModelServiceStub(self._channel)

    @named_arguments
    async def list_releases(self, **options: Unpack[CallOptions]) -> list[Release]:
        return list((await self.overview(**options)).releases)

    @named_arguments
    async def get_release(self, release: int, **options: Unpack[CallOptions]) -> Release:
        response = await self._call(self._models.GetRelease, build(GetReleaseRequest, release=release), options)
        return response.release

    @named_arguments
    async def overview(self, **options: Unpack[CallOptions]) -> ListReleasesResponse:
        request = ListReleasesRequest(page_size=MAX_PAGE_SIZE)
        listed = await self._call(self._models.ListReleases, request, options)
        while next_page(request, listed.next_page_token):
            add_page(listed, await self._call(self._models.ListReleases, request, options))
        return listed

    @named_arguments
    async def set_traffic(
        self,
        stable: int = 0,
        *,
        canary: int = 0,
        canary_share: float = 0.0,
        shadow: int = 0,
        guard: Guard | None = None,
        reason: str = "",
        changed_by: str = "",
        etag: str = "",
        **options: Unpack[CallOptions],
    ) -> TrafficRecord:
        request = traffic_request(stable, canary, canary_share, shadow, guard, changed_by, reason, etag)
        response = await self._call(self._models.SetTraffic, request, options, TRAFFIC_CHANGE_SECONDS, repeat=False)
        return response.traffic

    @named_arguments
    async def rollback(
        self,
        *,
        reason: str = "",
        changed_by: str = "",
        etag: str = "",
        **options: Unpack[CallOptions],
    ) -> RollbackResponse:
        request = build(RollbackRequest, changed_by=changed_by, reason=reason, etag=etag)
        return await self._call(self._models.Rollback, request, options, TRAFFIC_CHANGE_SECONDS, repeat=False)
