"""The blocking clients. Threads may share one client."""

import time
from collections.abc import Iterable
from functools import partial
from types import TracebackType
from typing import Self, TypeVar, Unpack

import grpc
from google.protobuf.message import Message

from segrec.channel import DEFAULT_ADDRESS, DEFAULT_MODEL_ADDRESS, Tls, open_channel, token_metadata
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
from segrec.streaming import RowStream
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

RequestT = TypeVar("RequestT", bound=Message)
ResponseT = TypeVar("ResponseT", bound=Message)


class _Client:
    def __init__(self, address: str, tls: Tls | None, timeout_seconds: float, token: str) -> None:
        self._address = address
        self._metadata = token_metadata(token, address, tls)
        self._timeout_seconds = timeout_seconds
        self._channel = open_channel(address, tls)

    def _call(
        self,
        method: "grpc.UnaryUnaryMultiCallable[RequestT, ResponseT]",
        request: RequestT,
        timeout_seconds: float = 0.0,
        *,
        repeat: bool = True,
    ) -> ResponseT:
        timeout_seconds = timeout_seconds or self._timeout_seconds
        end = time.monotonic() + timeout_seconds
        while True:
            try:
                return method(request, timeout=end - time.monotonic(), metadata=self._metadata)
            except grpc.RpcError as error:
                failure = error_of_call(error, self._address, timeout_seconds)
                pause = pause_before_retry(failure, end - time.monotonic())
                if pause is None or not repeat:
                    raise failure from error
            time.sleep(pause)

    def close(self) -> None:
        """Closes the connection; running calls are cancelled."""
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.close()


class SegrecClient(_Client):
    """Segments, recommendations and events. Every method raises an error of `segrec.errors` when it fails.

    `address` is `host:port`. `timeout_seconds` is the deadline of every call except the streams, retries included: a
    call that reaches no server is repeated up to three times before the deadline, and a call that an overloaded server
    refuses is repeated after the delay that the server names, if the deadline allows it. Without `tls` the connection
    is not encrypted. `token` says who calls, at a server with an access file.
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

    def segment(
        self, user_id: str | None = None, *, events: Iterable[Event] | None = None, release: int | str = 0
    ) -> SegmentResponse:
        """The segment of a user of the history store, or of an inline history of 1 to 4,096 `events`.

        `release` pins a release by number, or as "stable" or "canary"; with 0 the traffic chooses the release.
        """
        return self._call(self._segrec.Segment, segment_request(user_id, events, release))

    def recommend(
        self,
        user_id: str | None = None,
        *,
        events: Iterable[Event] | None = None,
        release: int | str = 0,
        **arguments: Unpack[RecommendArguments],
    ) -> RecommendResponse:
        """Items for a user of the history store, or for an inline history, best first; see `segment`.

        `arguments` are the fields of `segrec.v1.RecommendOptions` by name: top_k, strategy ("hybrid", "personal",
        "segment", "popular"), exclude_seen, exclude_item_ids, exclude_categories, include_categories,
        candidate_item_ids, diversity.
        """
        return self._call(self._segrec.Recommend, recommend_request(user_id, events, release, arguments))

    def stream_segment(
        self,
        user_ids: Iterable[str],
        *,
        release: int | str = 0,
        chunk_size: int = 1024,
        max_in_flight: int = 8,
        stall_seconds: float = STALL_SECONDS,
        base_release: int = 0,
    ) -> RowStream[SegmentRow]:
        """The segments of any number of users; see RowStream and StreamSettings. There is no overall deadline.

        `base_release` goes on with an interrupted stream: it is the `RowStream.base_release` of that one.
        """
        settings = StreamSettings(chunk_size, max_in_flight, stall_seconds)
        window = Window(stream_segment_config(release), SegmentRow, settings.max_in_flight, base_release)
        return RowStream(
            partial(self._segrec.StreamSegment, metadata=self._metadata), window, user_ids, settings, self._address
        )

    def stream_recommend(
        self,
        user_ids: Iterable[str],
        *,
        release: int | str = 0,
        chunk_size: int = 1024,
        max_in_flight: int = 8,
        stall_seconds: float = STALL_SECONDS,
        base_release: int = 0,
        **arguments: Unpack[RecommendArguments],
    ) -> RowStream[RecommendRow]:
        """Items for any number of users; see `recommend`, RowStream and StreamSettings."""
        settings = StreamSettings(chunk_size, max_in_flight, stall_seconds)
        config = stream_recommend_config(release, arguments)
        window = Window(config, RecommendRow, settings.max_in_flight, base_release)
        return RowStream(
            partial(self._segrec.StreamRecommend, metadata=self._metadata), window, user_ids, settings, self._address
        )

    def record(self, events: Iterable[UserEvent]) -> RecordEventsResponse:
        """Stores events durably, 1,024 per request. The response names refused events by their index in `events`.

        The server stores an event once: it recognises the event by its id, or without an id by item, action and time.
        An event with neither id nor time gets a random id, written into the event. So a call that failed may be
        repeated with the same events.
        """
        total = RecordEventsResponse()
        for number, request in enumerate(record_requests(events)):
            add_response(total, self._call(self._events.RecordEvents, request), number * MAX_EVENTS_PER_CALL)
        return total

    def history(self, user_id: str, limit: int = 100) -> GetUserHistoryResponse:
        """The newest `limit` (1 to 4,096) events of a user, oldest first; empty for an unknown user."""
        request = build(GetUserHistoryRequest, user_id=sendable(user_id), limit=limit)
        return self._call(self._events.GetUserHistory, request)

    def erase(self, user_id: str) -> EraseUserResponse:
        """Deletes everything stored about a user, durably."""
        return self._call(self._events.EraseUser, build(EraseUserRequest, user_id=sendable(user_id)))

    def list_segments(self, release: int | str = 0) -> ListSegmentsResponse:
        """The segments of a release, largest first. `release`: a number, "stable" or "canary"; 0 is the active one."""
        return self._call(self._segrec.ListSegments, build(ListSegmentsRequest, **pin_fields(release)))

    def get_segment(self, segment_id: int, release: int | str = 0) -> GetSegmentResponse:
        """A segment by its stable id. Raises NotFound when the release has no such segment."""
        return self._call(
            self._segrec.GetSegment, build(GetSegmentRequest, segment_id=segment_id, **pin_fields(release))
        )


class ModelClient(_Client):
    """Releases and the traffic between them. ModelService listens on a separate address.

    `token` says who calls, at a server with an access file; changes of the traffic need the role `operate`.
    """

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

    def list_releases(self) -> list[Release]:
        """The releases in the model repository, newest first; `failure` says what is wrong with a damaged release."""
        return list(self._call(self._models.ListReleases, ListReleasesRequest()).releases)

    def get_release(self, release: int) -> Release:
        """Raises NotFound when the release does not exist."""
        return self._call(self._models.GetRelease, build(GetReleaseRequest, release=release)).release

    def overview(self) -> ListReleasesResponse:
        """The releases, the traffic in force, and what is wrong with the traffic file, if anything."""
        return self._call(self._models.ListReleases, ListReleasesRequest())

    def set_traffic(
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
        """Replaces the traffic and returns the traffic in force. The arguments are the fields of `segrec.v1.Traffic`.

        `stable` 0 is the newest good release. The call may have to wait until a release is loaded. It is not repeated
        after a lost answer. With the `etag` of a `TrafficRecord`, it raises FailedPrecondition when that traffic is no
        longer in force.
        """
        request = traffic_request(stable, canary, canary_percent, shadow, guard, changed_by, reason, etag)
        return self._call(self._models.SetTraffic, request, timeout_seconds, repeat=False).traffic

    def rollback(
        self,
        *,
        reason: str = "",
        changed_by: str = "",
        etag: str = "",
        timeout_seconds: float = TRAFFIC_CHANGE_SECONDS,
    ) -> RollbackResponse:
        """Removes the canary; without a canary, makes the previous stable release stable again.

        Not repeated after a lost answer. With an `etag`, a second call of the same cannot go a second step back; see
        `set_traffic`.
        """
        request = build(RollbackRequest, changed_by=changed_by, reason=reason, etag=etag)
        return self._call(self._models.Rollback, request, timeout_seconds, repeat=False)
