"""The blocking clients. Threads may share one client."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Unpack

from segrec.blocking import BlockingClient
from segrec.calls import Call, CallOptions, named_arguments
from segrec.channel import (
    DEFAULT_ADDRESS,
    DEFAULT_MODEL_ADDRESS,
    DEFAULT_TIMEOUT_SECONDS,
    PICK_FIRST,
    ROUND_ROBIN,
    Tls,
)
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
from segrec.streaming import RowStream
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


class SegrecClient(BlockingClient):
    """Segments, recommendations and events. Every method raises an error of `segrec.errors` when it fails.

    `address` is `host:port` or another target of gRPC's; the servers of a name with several addresses, or of
    `ipv4:10.0.0.1:50051,10.0.0.2:50051`, are asked in turn. `timeout_seconds` is the deadline of every call except the
    streams, retries included: a call that reaches no server is repeated up to three times before the deadline, and a
    call that an overloaded server refuses is repeated after the delay that the server names, if the deadline allows
    it. Without `tls` the connection is not encrypted. `token` says who calls, at a server with an access file.
    `interceptors` are client interceptors of gRPC, such as OpenTelemetry's, the outermost first.

    Every method also takes `timeout`, `metadata` and `request_id` for its call; see `segrec.calls.CallOptions`.
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
    def segment(
        self,
        user_id: str | None = None,
        *,
        events: Iterable[Event] | None = None,
        release: int | str = 0,
        session_key: str = "",
        **options: Unpack[CallOptions],
    ) -> SegmentResponse:
        """The segment of a user of the history store, or of an inline history of 1 to 4,096 `events`.

        `release` pins a release by number, or as "stable" or "canary"; with 0 the traffic chooses the release, by the
        user id, or for `events` by `session_key`; without a key the active release answers them. The answer's
        `warnings` say what the release does not know of the request; see `segrec.warning_sentence`.
        """
        return self._call(self._segrec.Segment, segment_request(user_id, events, release, session_key), options)

    @named_arguments
    def recommend(
        self,
        user_id: str | None = None,
        *,
        events: Iterable[Event] | None = None,
        release: int | str = 0,
        session_key: str = "",
        **arguments: Unpack[RecommendCall],
    ) -> RecommendResponse:
        """Items for a user of the history store, or for an inline history, best first; see `segment`.

        `arguments` are the fields of `segrec.v1.RecommendOptions` by name: top_k, strategy ("hybrid", "personal",
        "segment", "popular"), exclude_seen, exclude_item_ids, exclude_categories, include_categories,
        candidate_item_ids, diversity, include_variants, explain.
        """
        fields, options = split_arguments(arguments)
        request = recommend_request(user_id, events, release, session_key, fields)
        return self._call(self._segrec.Recommend, request, options)

    @named_arguments
    def stream_segment(
        self,
        user_ids: Iterable[str],
        *,
        release: int | str = 0,
        chunk_size: int = 1024,
        max_in_flight: int = 8,
        stall_seconds: float = STALL_SECONDS,
        base_release: int = 0,
        **options: Unpack[CallOptions],
    ) -> RowStream[SegmentRow]:
        """The segments of any number of users; see RowStream and StreamSettings. There is no overall deadline
        unless `timeout` is given.

        `base_release` goes on with an interrupted stream: it is the `RowStream.base_release` of that one.
        """
        settings = StreamSettings(chunk_size, max_in_flight, stall_seconds)
        window = Window(stream_segment_config(release), SegmentRow, settings.max_in_flight, base_release)
        call = Call.of(options, self._metadata, None)
        open_call = call.stream_opener(self._segrec.StreamSegment)
        return RowStream(open_call, window, user_ids, settings, self._address)

    @named_arguments
    def stream_recommend(
        self,
        user_ids: Iterable[str],
        *,
        release: int | str = 0,
        chunk_size: int = 1024,
        max_in_flight: int = 8,
        stall_seconds: float = STALL_SECONDS,
        base_release: int = 0,
        **arguments: Unpack[RecommendCall],
    ) -> RowStream[RecommendRow]:
        """Items for any number of users; see `recommend`, RowStream and StreamSettings."""
        settings = StreamSettings(chunk_size, max_in_flight, stall_seconds)
        fields, options = split_arguments(arguments)
        config = stream_recommend_config(release, fields)
        window = Window(config, RecommendRow, settings.max_in_flight, base_release)
        call = Call.of(options, self._metadata, None)
        open_call = call.stream_opener(self._segrec.StreamRecommend)
        return RowStream(open_call, window, user_ids, settings, self._address)

    @named_arguments
    def record(self, events: Iterable[UserEvent], **options: Unpack[CallOptions]) -> RecordEventsResponse:
        """Stores events durably, 1,024 per request. The response names refused events by their index in `events`.

        The server stores an event once: it recognises the event by its id, or without an id by item, action and time.
        An event with neither id nor time gets a random id, written into the event. So a call that failed may be
        repeated with the same events.
        """
        total = RecordEventsResponse()
        for number, request in enumerate(record_requests(events)):
            add_response(total, self._call(self._events.RecordEvents, request, options), number * MAX_EVENTS_PER_CALL)
        return total

    @named_arguments
    def history(self, user_id: str, limit: int = 100, **options: Unpack[CallOptions]) -> ListEventsResponse:
        """The newest `limit` events of a user, the newest first; empty for an unknown user. `total_size` counts all."""
        request = build(ListEventsRequest, user_id=sendable(user_id), page_size=first_page_size(limit))
        listed = self._call(self._events.ListEvents, request, options)
        while next_page(request, listed.next_page_token, limit - len(listed.events)):
            add_page(listed, self._call(self._events.ListEvents, request, options))
        return listed

    @named_arguments
    def erase(self, user_id: str, **options: Unpack[CallOptions]) -> EraseUserResponse:
        """Deletes everything stored about a user, durably."""
        request = build(EraseUserRequest, user_id=sendable(user_id))
        return self._call(self._events.EraseUser, request, options)

    @named_arguments
    def list_segments(self, release: int | str = 0, **options: Unpack[CallOptions]) -> ListSegmentsResponse:
        """The segments of a release, largest first. `release`: a number, "stable" or "canary"; 0 is the active one."""
        request = build(ListSegmentsRequest, page_size=MAX_PAGE_SIZE, **pin_fields(release))
        listed = self._call(self._segrec.ListSegments, request, options)
        while next_page(request, listed.next_page_token):
            add_page(listed, self._call(self._segrec.ListSegments, request, options))
        return listed

    @named_arguments
    def get_segment(
        self, segment_id: int, release: int | str = 0, **options: Unpack[CallOptions]
    ) -> GetSegmentResponse:
        """A segment by its stable id. Raises NotFound when the release has no such segment."""
        request = build(GetSegmentRequest, segment_id=segment_id, **pin_fields(release))
        return self._call(self._segrec.GetSegment, request, options)

    @named_arguments
    def list_items(
        self,
        *,
        category: str = "",
        title_prefix: str = "",
        release: int | str = 0,
        **options: Unpack[CallOptions],
    ) -> Iterator[Item]:
        """The items of a release, the most popular first, page by page as they are iterated.

        Only those of `category`, and whose title begins with `title_prefix` whatever its case. Raises NotFound while
        iterating when the release has no such category.
        """
        filters = {"category": category, "title_prefix": title_prefix, "page_size": MAX_PAGE_SIZE}
        request = build(ListItemsRequest, **filters, **pin_fields(release))
        return self._pages(self._catalogue.ListItems, request, "items", options)

    @named_arguments
    def get_item(self, item_id: str, release: int | str = 0, **options: Unpack[CallOptions]) -> Item:
        """An item of a release. Raises NotFound when the release does not know it."""
        checked_type(item_id, "item_id")
        request = build(GetItemRequest, item_id=item_id, **pin_fields(release))
        return self._call(self._catalogue.GetItem, request, options).item

    @named_arguments
    def similar_items(
        self, item_id: str, *, release: int | str = 0, **arguments: Unpack[SimilarCall]
    ) -> SimilarItemsResponse:
        """Items like an item, the most similar first. Raises NotFound when the release does not know the item.

        `arguments`: top_k, exclude_item_ids, exclude_categories, include_categories, candidate_item_ids,
        include_variants.
        """
        request, options = similar_request(item_id, release, arguments)
        return self._call(self._catalogue.SimilarItems, request, options)

    @named_arguments
    def list_categories(self, release: int | str = 0, **options: Unpack[CallOptions]) -> Iterator[Category]:
        """The categories of a release, those with the most items first."""
        request = build(ListCategoriesRequest, page_size=MAX_PAGE_SIZE, **pin_fields(release))
        return self._pages(self._catalogue.ListCategories, request, "categories", options)

    @named_arguments
    def list_actions(self, release: int | str = 0, **options: Unpack[CallOptions]) -> Iterator[Action]:
        """The actions of a release, as events name them, the heaviest first."""
        request = build(ListActionsRequest, page_size=MAX_PAGE_SIZE, **pin_fields(release))
        return self._pages(self._catalogue.ListActions, request, "actions", options)


class ModelClient(BlockingClient):
    """Releases and the traffic between them. ModelService listens on a separate address.

    `token` says who calls, at a server with an access file; changes of the traffic need the role `operate`. See
    `SegrecClient` for the other arguments and for those of each method; here the first server that answers is kept.
    """

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
    def list_releases(self, **options: Unpack[CallOptions]) -> list[Release]:
        """The releases in the model repository, newest first; `failure` says what is wrong with a damaged release."""
        return list(self.overview(**options).releases)

    @named_arguments
    def get_release(self, release: int, **options: Unpack[CallOptions]) -> Release:
        """Raises NotFound when the release does not exist."""
        return self._call(self._models.GetRelease, build(GetReleaseRequest, release=release), options).release

    @named_arguments
    def overview(self, **options: Unpack[CallOptions]) -> ListReleasesResponse:
        """The releases, the traffic in force, and what is wrong with the traffic file, if anything."""
        request = ListReleasesRequest(page_size=MAX_PAGE_SIZE)
        listed = self._call(self._models.ListReleases, request, options)
        while next_page(request, listed.next_page_token):
            add_page(listed, self._call(self._models.ListReleases, request, options))
        return listed

    @named_arguments
    def set_traffic(
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
        """Replaces the traffic and returns the traffic in force. The arguments are the fields of `segrec.v1.Traffic`.

        `stable` 0 is the newest good release. The call may have to wait until a release is loaded. It is not repeated
        after a lost answer. With the `etag` of a `TrafficRecord`, it raises FailedPrecondition when that traffic is no
        longer in force.
        """
        request = traffic_request(stable, canary, canary_share, shadow, guard, changed_by, reason, etag)
        return self._call(self._models.SetTraffic, request, options, TRAFFIC_CHANGE_SECONDS, repeat=False).traffic

    @named_arguments
    def rollback(
        self,
        *,
        reason: str = "",
        changed_by: str = "",
        etag: str = "",
        **options: Unpack[CallOptions],
    ) -> RollbackResponse:
        """Removes the canary; without a canary, makes the previous stable release stable again.

        Not repeated after a lost answer. With an `etag`, a second call of the same cannot go a second step back; see
        `set_traffic`.
        """
        request = build(RollbackRequest, changed_by=changed_by, reason=reason, etag=etag)
        return self._call(self._models.Rollback, request, options, TRAFFIC_CHANGE_SECONDS, repeat=False)
