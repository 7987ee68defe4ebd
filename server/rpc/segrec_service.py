"""`segrec.v1.SegrecService`: segments and recommendations, single and in streams."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, field
from time import monotonic
from typing import TypeVar

from segrec.v1 import segrec_service_pb2 as pb
from segrec.v1 import segrec_service_pb2_grpc
from segrec.v1.common_pb2 import EventList

from server.core.errors import InvalidArgument, NoRelease, NotFound, ReleaseGone, SegrecError, ShuttingDown
from server.core.history import History
from server.core.ranking.query import Query
from server.core.release import Release
from server.monitoring.metrics import Metrics
from server.monitoring.shadow import Shadow
from server.releases.routing import NO_PIN, Pin, Route, Routing
from server.rpc.deadlines import seconds_left
from server.rpc.explanations import explained
from server.rpc.grpc_types import Context
from server.rpc.messages.conversion import fill_recommend, migration_message, profile_of, segment_state
from server.rpc.messages.errors import status_of
from server.rpc.messages.listing import page_of
from server.rpc.messages.request_warnings import RequestWarnings, warnings_of
from server.rpc.messages.segment_response import segment_response
from server.rpc.messages.validation import (
    MAX_USERS_PER_CHUNK,
    Clock,
    checked_id,
    inline_history,
    pin_of,
    query_of,
    routing_key,
)
from server.rpc.streams.parts import ChunkPart, configured_chunks, parts_by_items, whole_chunks
from server.rpc.streams.release import StreamRelease
from server.rpc.streams.rows import (
    ReleaseRows,
    Row,
    Tally,
    by_release,
    recommend_chunk,
    refused_recommend_chunk,
    rows_of,
    segment_chunk,
)
from server.rpc.streams.slots import answered_in_order, until_stopped
from server.serving.answer import Answer, Degraded
from server.serving.memory import HistoryMemory
from server.serving.pipeline import Patience, Pipeline

PartT = TypeVar("PartT")
ResponseT = TypeVar("ResponseT")

STREAM_MEMORY_BYTES = 256 * 1024 * 1024
"""Memory for the histories of all chunks in progress over all streams."""
LARGE_HISTORY_EVENTS = 256
"""Inline histories from this size on are read in a thread; 4,096 events take some 30 ms."""

_ENDS_STREAM = (NoRelease, ReleaseGone, ShuttingDown)
"""Errors that end a stream, whose caller can go on with another connection; all others cost a chunk only."""


_AWAY = (Degraded.ENCODER_UNAVAILABLE, Degraded.STORE_UNAVAILABLE, Degraded.STALE_EMBEDDING)
"""Why a stopping server does not send a row: another server may do better."""


@dataclass(frozen=True, slots=True)
class StreamLimits:
    """`patience_seconds`: how long a chunk waits for a store or an encoder that does not answer, before its rows are
    degraded. `idle_seconds`: a stream without chunks for so long lets go of its release."""

    patience_seconds: float = 60.0
    idle_seconds: float = 10.0


class SegrecServicer(segrec_service_pb2_grpc.SegrecServiceServicer):
    """Answers from the pipeline; each call holds a lease on its release until the call has ended."""

    def __init__(
        self,
        pipeline: Pipeline,
        routing: Routing,
        metrics: Metrics,
        clock: Clock,
        encode_timeout_seconds: float,
        shadow: Shadow,
        stream_limits: StreamLimits,
        stopping: asyncio.Event,
    ) -> None:
        """When `stopping` is set, streams answer what they have accepted, and end."""
        self._pipeline = pipeline
        self._routing = routing
        self._metrics = metrics
        self._clock = clock
        self._encode_timeout = encode_timeout_seconds
        self._shadow = shadow
        self._stream_limits = stream_limits
        self._memory = HistoryMemory(STREAM_MEMORY_BYTES)
        self._stopping = stopping

    async def Segment(self, request: pb.SegmentRequest, context: Context) -> bytes:  # type: ignore[override]
        async def respond(release: Release, answer: Answer) -> bytes:
            prepared = segment_response(release, answer, request)
            if prepared is not answer.prepared and request.user_id:
                self._pipeline.keep_prepared(release, request.user_id, answer, prepared)
            return prepared[1]

        return await self._respond(request, context, respond)

    async def Recommend(self, request: pb.RecommendRequest, context: Context) -> pb.RecommendResponse:
        query = query_of(request.options)

        async def respond(release: Release, answer: Answer) -> pb.RecommendResponse:
            [ranking] = await self._pipeline.recommend(release, query, [answer])
            response = pb.RecommendResponse()
            if query.explain:
                seconds = seconds_left(context, self._encode_timeout)
                told = await explained(self._pipeline, self._metrics, request, (release, answer, ranking), seconds)
                answer, ranking = told.answer, told.ranking
                response.warnings.extend(told.warnings)
            fill_recommend(response, release, answer, ranking)
            response.warnings.extend(warnings_of(release, request, request.options))
            return response

        return await self._respond(request, context, respond)

    async def _respond(
        self,
        request: pb.SegmentRequest | pb.RecommendRequest,
        context: Context,
        respond: Callable[[Release, Answer], Awaitable[ResponseT]],
    ) -> ResponseT:
        """Answer a unary call from its release, which stays loaded meanwhile; errors count in its figures.

        The active release answers for one that Triton has lost.
        """
        start = monotonic()
        pin = pin_of(request)
        with (
            self._routing.lease(pin, routing_key(request)) as release,
            self._metrics.release_stats.counting_errors(release.number, 1),
        ):
            answer = await self._answer_from(release, request, context)
            if answer.degraded is not Degraded.RELEASE_NOT_LOADED or pin:
                return await self._responded(release, answer, respond, start)
            with self._routing.lease() as active:
                if active is not release:
                    answer = await self._answer_from(active, request, context)
                return await self._responded(active, answer, respond, start)

    async def _responded(
        self,
        release: Release,
        answer: Answer,
        respond: Callable[[Release, Answer], Awaitable[ResponseT]],
        start: float,
    ) -> ResponseT:
        if answer.degraded is not Degraded.NO:
            self._metrics.degraded.labels(answer.degraded.name).inc()
        self._metrics.count_states([segment_state(answer)])
        response = await respond(release, answer)
        self._record_answers(release, [answer], seconds=monotonic() - start)
        return response

    async def StreamSegment(
        self, request_iterator: AsyncIterator[pb.StreamSegmentRequest], context: Context
    ) -> AsyncIterator[pb.StreamSegmentResponse]:
        """One answer per chunk, then the summary."""
        stream = self._open_stream("StreamSegment")

        def configure(config: pb.StreamSegmentConfig) -> None:
            stream.pin, stream.release = self._release_of_stream(config)

        async def answer(part: ChunkPart) -> pb.StreamSegmentResponse:
            return pb.StreamSegmentResponse(chunk=await self._segment_chunk(part, stream))

        parts = whole_chunks(configured_chunks(request_iterator, configure))
        async with aclosing(self._answers(parts, answer, stream)) as responses:
            async for response in responses:
                yield response
        yield pb.StreamSegmentResponse(summary=stream.tally.summary())

    async def StreamRecommend(
        self, request_iterator: AsyncIterator[pb.StreamRecommendRequest], context: Context
    ) -> AsyncIterator[pb.StreamRecommendResponse]:
        """One answer per chunk, or several when it has many items, then the summary."""
        stream = self._open_stream("StreamRecommend")

        def configure(config: pb.StreamRecommendConfig) -> None:
            stream.query, stream.options = query_of(config.options), config.options
            stream.pin, stream.release = self._release_of_stream(config)

        async def answer(part: ChunkPart) -> pb.StreamRecommendResponse:
            return pb.StreamRecommendResponse(chunk=await self._recommend_chunk(part, stream))

        parts = parts_by_items(configured_chunks(request_iterator, configure), lambda: stream.query.top_k)
        async with aclosing(self._answers(parts, answer, stream)) as responses:
            async for response in responses:
                yield response
        yield pb.StreamRecommendResponse(summary=stream.tally.summary())

    def _open_stream(self, method: str) -> "_Stream":
        return _Stream(Tally(self._metrics, method), StreamRelease(self._routing, self._stream_limits.idle_seconds))

    def _release_of_stream(
        self, config: pb.StreamSegmentConfig | pb.StreamRecommendConfig
    ) -> tuple[Pin, StreamRelease]:
        """The pinned release, which is there; and the one of a stream without a pin."""
        pin = pin_of(config)
        if pin:
            self._routing.get(pin)
        base_release = config.base_release if config.HasField("base_release") else 0
        if config.HasField("base_release") and base_release < 1:
            raise InvalidArgument(
                f"base_release is {base_release}; give the release of a chunk, or leave it unset",
                "base_release",
                reason="RELEASE_OUT_OF_RANGE",
            )
        return pin, StreamRelease(self._routing, self._stream_limits.idle_seconds, base_release)

    async def _answers(
        self,
        parts: AsyncGenerator[PartT, None],
        answer: Callable[[PartT], Awaitable[ResponseT]],
        stream: "_Stream",
    ) -> AsyncGenerator[ResponseT, None]:
        """The answers to the parts of all chunks, in order, until the stream or the server ends."""
        try:
            async with (
                aclosing(parts),
                aclosing(until_stopped(parts, self._stopping)) as accepted,
                aclosing(answered_in_order(accepted, answer)) as responses,
            ):
                async for response in responses:
                    yield response
        finally:
            stream.release.close()

    async def ListSegments(self, request: pb.ListSegmentsRequest, context: Context) -> pb.ListSegmentsResponse:
        page, pin = page_of(request)
        release = self._routing.get(pin)
        ordered = sorted(release.segments, key=lambda segment: -segment.user_count)
        cut = page.cut(ordered, release.number)
        return pb.ListSegmentsResponse(
            segments=[profile_of(release, segment) for segment in cut.entries],
            next_page_token=cut.next_page_token,
            total_size=cut.total_size,
            release=release.number,
            migration=migration_message(release.migration),
        )

    async def GetSegment(self, request: pb.GetSegmentRequest, context: Context) -> pb.GetSegmentResponse:
        release = self._routing.get(pin_of(request))
        for segment in release.segments:
            if segment.segment_id == request.segment_id:
                migration = release.migration and release.migration.touching(segment.segment_id)
                return pb.GetSegmentResponse(
                    segment=profile_of(release, segment), release=release.number, migration=migration_message(migration)
                )
        raise NotFound(
            f"release {release.number} has no segment {request.segment_id}", "segment_id", reason="SEGMENT_NOT_FOUND"
        )

    def _record_answers(
        self, release: Release, answers: Sequence[Answer], *, is_batch: bool = False, seconds: float | None = None
    ) -> None:
        """Count the answers in the release's figures, and offer them to the shadow for a comparison."""
        self._metrics.release_stats.answered(release.number, answers, is_batch, seconds)
        self._shadow.offer(release, answers)

    async def _answer_from(
        self, release: Release, request: pb.SegmentRequest | pb.RecommendRequest, context: Context
    ) -> Answer:
        subject = request.WhichOneof("subject")
        timeout = seconds_left(context, self._encode_timeout)
        if subject == "user_id":
            return await self._pipeline.answer_user(release, checked_id(request.user_id, "user_id"), timeout)
        if subject == "events":
            history = await self._inline_history(request.events)
            return await self._pipeline.answer_events(release, history, timeout)
        raise InvalidArgument("give user_id or events", "user_id", reason="SUBJECT_MISSING")

    async def _inline_history(self, events: EventList) -> History:
        if len(events.events) < LARGE_HISTORY_EVENTS:
            return inline_history(events, self._clock())
        return await asyncio.to_thread(inline_history, events, self._clock())

    async def _segment_chunk(self, part: ChunkPart, stream: "_Stream") -> pb.SegmentChunk:
        try:
            _check_size(part.user_ids)
            async with self._memory.hold(len(part.user_ids)):
                with self._lease_chunk(stream) as route:
                    rows, groups = await self._answered_rows(route, part)
                    chunk = await asyncio.to_thread(segment_chunk, part.chunk_id, rows)
                    chunk.release = route.stable.number
                    for group in groups:
                        self._record_answers(group.release, group.answers, is_batch=True)
        except _ENDS_STREAM:
            raise
        except SegrecError as error:
            stream.tally.add_refused(part)
            return pb.SegmentChunk(chunk_id=part.chunk_id, status=status_of(error))
        stream.tally.add(part, rows)
        return chunk

    async def _recommend_chunk(self, part: ChunkPart, stream: "_Stream") -> pb.RecommendChunk:
        try:
            _check_size(part.user_ids)
            async with self._memory.hold(len(part.user_ids)):
                with self._lease_chunk(stream) as route:
                    rows, groups = await self._answered_rows(route, part)
                    await asyncio.gather(*(self._rank(group, stream.query) for group in groups))
                    chunk = await asyncio.to_thread(recommend_chunk, part.chunk_id, rows)
                    chunk.release = route.stable.number
                    found = RequestWarnings(route.stable)
                    found.add_options(stream.options, "config.options")
                    chunk.warnings.extend(found.messages())
                    for group in groups:
                        self._record_answers(group.release, group.answers, is_batch=True)
        except _ENDS_STREAM:
            raise
        except SegrecError as error:
            stream.tally.add_refused(part)
            return refused_recommend_chunk(part, status_of(error))
        stream.tally.add(part, rows)
        chunk.has_more = not part.is_last
        return chunk

    @contextmanager
    def _lease_chunk(self, stream: "_Stream") -> Iterator[Route]:
        """The releases for a chunk: the pinned one, or the stream's own and the canary."""
        if stream.pin:
            with self._routing.lease(stream.pin) as pinned:
                yield Route(pinned)
            return
        with stream.release.lease() as current, self._routing.lease_chunk(current) as route:
            yield route

    async def _answered_rows(self, route: Route, part: ChunkPart) -> tuple[list[Row], list[ReleaseRows]]:
        """One row per user, answered by the user's release or with an error; and the valid rows by release."""
        stable = route.stable
        rows = rows_of(part, stable)
        if route.canary is not None:
            for row in rows:
                row.release = route.release_for(row.user_id)
        groups = by_release(rows)
        await asyncio.gather(*(self._fill_answers(group, stable) for group in groups))
        lost = [row for row in rows if row.answer.degraded is Degraded.RELEASE_NOT_LOADED and row.release is not stable]
        if lost:
            for row in lost:
                row.release = stable
            await self._fill_answers(ReleaseRows(stable, lost), stable)
            groups = by_release(rows)
        return rows, groups

    async def _fill_answers(self, group: ReleaseRows, stable: Release) -> None:
        """Fill in the answers of one release; `stable` answers in the place of one that Triton has not loaded."""
        user_ids = [row.user_id for row in group.rows]
        patience = Patience(self._stream_limits.patience_seconds, self._stopping, group.release is stable)
        with self._metrics.release_stats.counting_errors(group.release.number, len(user_ids), is_batch=True):
            answers = await self._pipeline.answer_users(group.release, user_ids, self._encode_timeout, patience)
        self._memory.add(answer.history for answer in answers)
        if self._stopping.is_set() and any(answer.degraded in _AWAY for answer in answers):
            raise ShuttingDown("this server is stopping: go on with another one, or when it is back")
        for row, answer in zip(group.rows, answers, strict=True):
            row.answer = answer

    async def _rank(self, group: ReleaseRows, query: Query) -> None:
        with self._metrics.release_stats.counting_errors(group.release.number, len(group.rows), is_batch=True):
            rankings = await self._pipeline.recommend(group.release, query, group.answers)
        for row, ranking in zip(group.rows, rankings, strict=True):
            row.ranking = ranking


@dataclass(slots=True)
class _Stream:
    """What one open stream keeps from chunk to chunk; its configuration sets all but the tally."""

    tally: Tally
    release: StreamRelease
    pin: Pin = NO_PIN
    query: Query = field(default_factory=lambda: query_of(pb.RecommendOptions()))
    options: pb.RecommendOptions = field(default_factory=pb.RecommendOptions)


def _check_size(user_ids: Sequence[str]) -> None:
    if len(user_ids) > MAX_USERS_PER_CHUNK:
        raise InvalidArgument(
            f"the chunk has {len(user_ids)} user ids; at most {MAX_USERS_PER_CHUNK} are allowed",
            "user_ids",
            reason="CHUNK_TOO_LARGE",
        )
