"""An in-process gRPC server with rule-based answers, for tests of the client alone.

Rules: an id that is empty or starts with `bad` is refused; `cold…` has no history; `slow…` is answered degraded;
`torn…` has no confident segment; every other id has segment `1 + len(id) % 3`. Release 9 does not exist. Item `i<k>` is
the k-th best of every user.
"""

# ruff: noqa: N802 - gRPC names the methods

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self, TypeVar

import grpc
from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc.status_pb2 import Status
from segrec.errors import STATUS_METADATA_KEY, InvalidArgument, NotFound, Overloaded, status_of
from segrec.v1 import (
    common_pb2,
    event_service_pb2,
    event_service_pb2_grpc,
    model_service_pb2,
    model_service_pb2_grpc,
    segrec_service_pb2_grpc,
)
from segrec.v1 import segrec_service_pb2 as pb

WAIT_SECONDS = 20.0
RowT = TypeVar("RowT", pb.SegmentRow, pb.RecommendRow)


@dataclass
class Script:
    """What the fake does besides answering, and what it saw. Counts are over all streams."""

    answered_chunks: int = 0
    received_chunks: int = 0
    unary_calls: int = 0
    before_answer: Callable[[int], None] = lambda number: None
    """Called with the number of the chunk about to be answered, from 1; may block or raise."""
    summary_error: int = 0
    """Added to the summary's received and answered counts."""
    unary_failures: int = 0
    """How many unary calls fail with UNAVAILABLE before one succeeds."""
    unary_refusals: int = 0
    """How many unary calls are refused for overload, with a delay of 0.1 s, before one succeeds."""
    skip_row: bool = False
    """Leave the last row out of every chunk."""
    stored: dict[str, list[common_pb2.Event]] = field(default_factory=dict)
    event_ids: set[str] = field(default_factory=set)
    lock: threading.Lock = field(default_factory=threading.Lock)


OVERLOADED = status_of(Overloaded("Too many calls wait", reason="OVERLOADED", retry_seconds=0.1))


class StreamLost(Exception):
    """Raised from `before_answer` to end the stream as if the server had gone."""


def abort(context: grpc.ServicerContext, status: Status) -> None:
    """Ends a call as the real server does, with the status in trailing metadata."""
    context.set_trailing_metadata(((STATUS_METADATA_KEY, status.SerializeToString()),))
    code = next(code for code in grpc.StatusCode if code.value[0] == status.code)
    context.abort(code, status.message)


def refusal(user_id: str, path: str) -> Status | None:
    if user_id and not user_id.startswith("bad"):
        return None
    return status_of(InvalidArgument("The user id is bad", reason="ID_EMPTY", field=path))


def info_of(user_id: str, release: int) -> common_pb2.AnswerInfo:
    is_slow = user_id.startswith("slow")
    return common_pb2.AnswerInfo(
        release=release or 1,
        history_event_count=0 if user_id.startswith("cold") else 5,
        degraded=is_slow,
        degraded_reason=common_pb2.DEGRADED_REASON_STALE_EMBEDDING
        if is_slow
        else common_pb2.DEGRADED_REASON_UNSPECIFIED,
    )


def assignment_of(user_id: str) -> pb.SegmentAssignment:
    if user_id.startswith("cold"):
        return pb.SegmentAssignment(state=pb.SEGMENT_STATE_NO_HISTORY)
    segment_id = 1 + len(user_id) % 3
    is_torn = user_id.startswith("torn")
    return pb.SegmentAssignment(
        state=pb.SEGMENT_STATE_NO_CONFIDENT_SEGMENT if is_torn else pb.SEGMENT_STATE_ASSIGNED,
        segment_id=segment_id,
        label=f"Segment {segment_id}",
        distance=0.25,
        runner_up_segment_id=4,
        runner_up_distance=0.5,
        confidence=0.25 if is_torn else 0.875,
        short_history=is_torn,
    )


def segment_of(user_id: str, release: int) -> pb.SegmentResponse:
    return pb.SegmentResponse(assignment=assignment_of(user_id), info=info_of(user_id, release))


def items_of(user_id: str, release: int, options: pb.RecommendOptions) -> pb.RecommendResponse:
    top_k = options.top_k if options.HasField("top_k") else 10
    reason = pb.ITEM_REASON_POPULAR if options.strategy == pb.STRATEGY_POPULAR else pb.ITEM_REASON_PERSONAL
    excluded = set(options.exclude_item_ids)
    names = [f"i{k}" for k in range(1, top_k + len(excluded) + 1) if f"i{k}" not in excluded]
    items = [
        pb.RecommendedItem(item_id=name, title=f"Item, {name}", score=1.0 / rank, reason=reason)
        for rank, name in enumerate(names[:top_k], start=1)
    ]
    return pb.RecommendResponse(items=items, assignment=assignment_of(user_id), info=info_of(user_id, release))


def no_release(release: int) -> Status | None:
    if release != 9:
        return None
    return status_of(NotFound("Release 9 is not loaded", reason="RELEASE_NOT_LOADED", field="release"))


class FakeSegrecService(segrec_service_pb2_grpc.SegrecServiceServicer):
    def __init__(self, script: Script) -> None:
        self.script = script

    def _check(self, request: pb.SegmentRequest | pb.RecommendRequest, context: Any) -> str:
        with self.script.lock:
            self.script.unary_calls += 1
            fails = self.script.unary_failures > 0
            self.script.unary_failures -= fails
            refuses = not fails and self.script.unary_refusals > 0
            self.script.unary_refusals -= refuses
        if fails:
            context.abort(grpc.StatusCode.UNAVAILABLE, "not now")
        if refuses:
            abort(context, OVERLOADED)
        user_id = "inline" if request.HasField("events") else request.user_id
        problem = refusal(user_id, "user_id") or no_release(request.release)
        if problem:
            abort(context, problem)
        return user_id

    def Segment(self, request: pb.SegmentRequest, context: Any) -> pb.SegmentResponse:
        return segment_of(self._check(request, context), request.release)

    def Recommend(self, request: pb.RecommendRequest, context: Any) -> pb.RecommendResponse:
        return items_of(self._check(request, context), request.release, request.options)

    def StreamSegment(self, request_iterator: Any, context: Any) -> Iterator[pb.StreamSegmentResponse]:
        summary = pb.StreamSummary()
        config = next(request_iterator).config
        problem = no_release(config.release)
        if problem:
            abort(context, problem)
        for request in request_iterator:
            self._begin_answer(context)
            chunk = pb.SegmentChunk(chunk_id=request.chunk.chunk_id)
            rows = [self._segment_row(user_id, n, config) for n, user_id in enumerate(request.chunk.user_ids)]
            chunk.rows.extend(self._kept(chunk, rows))
            self._count(summary, chunk, rows)
            yield pb.StreamSegmentResponse(chunk=chunk)
        summary.received_count += self.script.summary_error
        summary.answered_count += self.script.summary_error
        yield pb.StreamSegmentResponse(summary=summary)

    def StreamRecommend(self, request_iterator: Any, context: Any) -> Iterator[pb.StreamRecommendResponse]:
        summary = pb.StreamSummary()
        config = next(request_iterator).config
        problem = no_release(config.release)
        if problem:
            abort(context, problem)
        for request in request_iterator:
            self._begin_answer(context)
            chunk = pb.RecommendChunk(chunk_id=request.chunk.chunk_id)
            rows = [self._recommend_row(user_id, n, config) for n, user_id in enumerate(request.chunk.user_ids)]
            chunk.rows.extend(self._kept(chunk, rows))
            self._count(summary, chunk, rows)
            yield pb.StreamRecommendResponse(chunk=chunk)
        yield pb.StreamRecommendResponse(summary=summary)

    def _begin_answer(self, context: Any) -> None:
        with self.script.lock:
            self.script.received_chunks += 1
            number = self.script.answered_chunks + 1
        try:
            self.script.before_answer(number)
        except StreamLost:
            context.abort(grpc.StatusCode.UNAVAILABLE, "Socket closed")
        with self.script.lock:
            self.script.answered_chunks += 1

    def _segment_row(self, user_id: str, number: int, config: pb.StreamSegmentConfig) -> pb.SegmentRow:
        problem = refusal(user_id, f"user_ids[{number}]")
        if problem:
            return pb.SegmentRow(user_id=user_id, status=problem)
        return pb.SegmentRow(user_id=user_id, result=segment_of(user_id, config.release))

    def _recommend_row(self, user_id: str, number: int, config: pb.StreamRecommendConfig) -> pb.RecommendRow:
        problem = refusal(user_id, f"user_ids[{number}]")
        if problem:
            return pb.RecommendRow(user_id=user_id, status=problem)
        return pb.RecommendRow(user_id=user_id, result=items_of(user_id, config.release, config.options))

    def _kept(self, chunk: pb.SegmentChunk | pb.RecommendChunk, rows: list[RowT]) -> list[RowT]:
        if chunk.HasField("status"):
            return []
        return rows[:-1] if self.script.skip_row else rows

    def _count(self, summary: pb.StreamSummary, chunk: Any, rows: list[RowT]) -> None:
        failed = len(rows) if chunk.HasField("status") else sum(row.HasField("status") for row in rows)
        summary.chunk_count += 1
        summary.received_count += len(rows)
        summary.failed_count += failed
        summary.answered_count += len(rows) - failed
        if not chunk.HasField("status"):
            summary.degraded_count += sum(row.result.info.degraded for row in rows)

    def ListSegments(self, request: pb.ListSegmentsRequest, context: Any) -> pb.ListSegmentsResponse:
        problem = no_release(request.release)
        if problem:
            abort(context, problem)
        return pb.ListSegmentsResponse(segments=[profile(1), profile(2)], release=1, migration=MIGRATION)

    def GetSegment(self, request: pb.GetSegmentRequest, context: Any) -> pb.GetSegmentResponse:
        if request.segment_id not in (1, 2):
            message = f"Release 1 has no segment {request.segment_id}"
            abort(context, status_of(NotFound(message, reason="SEGMENT_NOT_FOUND", field="segment_id")))
        return pb.GetSegmentResponse(segment=profile(request.segment_id), release=1)


MIGRATION = pb.Migration(
    previous_release=7,
    user_count=1200,
    flows=[pb.SegmentFlow(from_segment_id=3, to_segment_id=1, user_count=900, share=0.9)],
    born_segment_ids=[1, 2],
    splits=[pb.SegmentChange(from_segment_ids=[3], to_segment_ids=[1, 2])],
)


def profile(segment_id: int) -> pb.SegmentProfile:
    return pb.SegmentProfile(
        segment_id=segment_id,
        label=f"Segment {segment_id} 茶",
        user_count=1000 * segment_id,
        share=0.5,
        traits=[pb.Trait(kind=pb.TRAIT_KIND_CATEGORY, name="Tea", share=0.3, lift=2.5)],
        top_items=[pb.SegmentItem(item_id="i1", title="Item 1", user_share=0.6, lift=1.25, lift_low=0.75)],
        particular_items=[pb.SegmentItem(item_id="i2", title="Item 2", user_share=0.2, lift=4.0, lift_low=2.5)],
        mean_distance=0.4,
        silhouette=0.2,
        history=[pb.SegmentRecord(release=1, user_count=1000 * segment_id, share=0.5)],
    )


class FakeEventService(event_service_pb2_grpc.EventServiceServicer):
    def __init__(self, script: Script) -> None:
        self.script = script

    def RecordEvents(self, request: event_service_pb2.RecordEventsRequest, context: Any) -> Any:
        response = event_service_pb2.RecordEventsResponse()
        if len(request.events) > 1024:
            abort(context, status_of(InvalidArgument("Too many events", field="events")))
        for index, event in enumerate(request.events):
            self._record(index, event, response)
        return response

    def _record(self, index: int, event: event_service_pb2.UserEvent, response: Any) -> None:
        key = event.event.event_id or event.event.SerializeToString().hex()
        if event.user_id.startswith("bad") or event.event.value < 0:
            status = status_of(InvalidArgument("Refused", field=f"events[{index}]"))
            response.refused.add(index=index, status=status)
        elif f"{event.user_id} {key}" in self.script.event_ids:
            response.duplicate_count += 1
        else:
            self.script.event_ids.add(f"{event.user_id} {key}")
            self.script.stored.setdefault(event.user_id, []).append(event.event)
            response.stored_count += 1

    def ListEvents(self, request: event_service_pb2.ListEventsRequest, context: Any) -> Any:
        events = self.script.stored.get(request.user_id, [])[::-1]
        start = int(request.page_token or 0)
        end = start + request.page_size
        token = str(end) if end < len(events) else ""
        return event_service_pb2.ListEventsResponse(
            events=events[start:end], next_page_token=token, total_size=len(events)
        )

    def EraseUser(self, request: event_service_pb2.EraseUserRequest, context: Any) -> Any:
        left = event_service_pb2.Remainder(
            place=event_service_pb2.REMAINDER_PLACE_RELEASE,
            description="release 3 was trained before",
            release=3,
            expire_time=Timestamp(seconds=1_700_000_000),
        )
        count = len(self.script.stored.pop(request.user_id, []))
        return event_service_pb2.EraseUserResponse(erased_event_count=count, remainders=[left])


class FakeModelService(model_service_pb2_grpc.ModelServiceServicer):
    def ListReleases(self, request: Any, context: Any) -> model_service_pb2.ListReleasesResponse:
        return model_service_pb2.ListReleasesResponse(releases=[release_of(2), release_of(1)])

    def GetRelease(self, request: model_service_pb2.GetReleaseRequest, context: Any) -> Any:
        if request.release not in (1, 2):
            message = f"There is no release {request.release}"
            abort(context, status_of(NotFound(message, reason="RELEASE_NOT_FOUND", field="release")))
        return model_service_pb2.GetReleaseResponse(release=release_of(request.release))

    def SetTraffic(self, request: model_service_pb2.SetTrafficRequest, context: Any) -> Any:
        return model_service_pb2.SetTrafficResponse(traffic=record_of(request))

    def Rollback(self, request: model_service_pb2.RollbackRequest, context: Any) -> Any:
        record = record_of(model_service_pb2.SetTrafficRequest(changed_by=request.changed_by, reason=request.reason))
        return model_service_pb2.RollbackResponse(traffic=record, summary="Release 1 answers all.")


def record_of(request: model_service_pb2.SetTrafficRequest) -> model_service_pb2.TrafficRecord:
    return model_service_pb2.TrafficRecord(
        traffic=request.traffic, changed_by=request.changed_by, reason=request.reason
    )


def release_of(number: int) -> model_service_pb2.Release:
    state = model_service_pb2.RELEASE_STATE_ACTIVE if number == 2 else model_service_pb2.RELEASE_STATE_STANDBY
    return model_service_pb2.Release(
        release=number,
        state=state,
        parent_release=number - 1 or None,
        item_count=999,
        segment_count=2,
        figures=[model_service_pb2.Figure(protocol="as served", method="hybrid", metric="ndcg", k=10, value=0.1)],
        trained_on=model_service_pb2.TrainedOn(
            first_event_time=Timestamp(seconds=1_700_000_000),
            user_count=42,
            event_count=777,
            files=["log.csv", "i.csv"],
        ),
        forget_after_time=Timestamp(seconds=1_800_000_000),
    )


class FakeSegrec:
    """The fake server: `address` while it runs; `restart()` drops every connection and listens there again."""

    def __init__(self, script: Script | None = None, credentials: grpc.ServerCredentials | None = None) -> None:
        self.script = script or Script()
        self._credentials = credentials
        self._server = self._start("127.0.0.1:0")

    def _start(self, address: str) -> grpc.Server:
        server = grpc.server(ThreadPoolExecutor(8), options=[("grpc.so_reuseport", 0)])
        segrec_service_pb2_grpc.add_SegrecServiceServicer_to_server(FakeSegrecService(self.script), server)
        event_service_pb2_grpc.add_EventServiceServicer_to_server(FakeEventService(self.script), server)
        model_service_pb2_grpc.add_ModelServiceServicer_to_server(FakeModelService(), server)
        if self._credentials:
            port = server.add_secure_port(address, self._credentials)
        else:
            port = server.add_insecure_port(address)
        self.address = f"127.0.0.1:{port}"
        server.start()
        return server

    def stop(self) -> None:
        self._server.stop(grace=None).wait(WAIT_SECONDS)

    def restart(self) -> None:
        self.stop()
        self._server = self._start(self.address)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.stop()
