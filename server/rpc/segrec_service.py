"""`segrec.v1.SegrecService`."""

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, field

from segrec.v1 import segrec_service_pb2 as pb
from segrec.v1 import segrec_service_pb2_grpc

from server.core.errors import InvalidArgument, NotFound, SegrecError
from server.core.ranking import Query, Ranked
from server.core.release import Release
from server.monitoring.metrics import Metrics
from server.monitoring.shadow import Shadow
from server.releases.routing import Route, Routing
from server.rpc.conversion import fill_recommend, fill_segment, migration_message, profile_of, segment_state
from server.rpc.decoding import NOT_UTF8
from server.rpc.errors import row_status
from server.rpc.grpc_types import Context
from server.rpc.streams import answered_in_order
from server.rpc.validation import (
    MAX_USERS_PER_CHUNK,
    Clock,
    checked_id,
    inline_history,
    is_plain,
    pin_of,
    query_of,
)
from server.serving.answer import Answer, Degraded
from server.serving.pipeline import NO_ANSWER, Pipeline

REPLY_SECONDS = 0.05
"""Kept back from a caller's deadline for everything after the encoder."""


class SegrecServicer(segrec_service_pb2_grpc.SegrecServiceServicer):
    """Answers from the pipeline; holds the release of a call until it has ended."""

    def __init__(
        self,
        pipeline: Pipeline,
        routing: Routing,
        metrics: Metrics,
        clock: Clock,
        encode_timeout_seconds: float,
        shadow: Shadow,
    ) -> None:
        self._pipeline = pipeline
        self._routing = routing
        self._metrics = metrics
        self._clock = clock
        self._encode_timeout = encode_timeout_seconds
        self._shadow = shadow

    async def Segment(self, request: pb.SegmentRequest, context: Context) -> pb.SegmentResponse:
        """One user's segment."""
        with self._leased(request) as release:
            answer = await self._answer(release, request, context)
            response = pb.SegmentResponse()
            fill_segment(response, release, answer)
            self._answered(release, [answer])
            return response

    async def Recommend(self, request: pb.RecommendRequest, context: Context) -> pb.RecommendResponse:
        """Items for one user."""
        query = query_of(request.options)
        with self._leased(request) as release:
            answer = await self._answer(release, request, context)
            [ranked] = await self._pipeline.recommend(release, query, [answer])
            response = pb.RecommendResponse()
            fill_recommend(response, release, answer, ranked)
            self._answered(release, [answer])
            return response

    async def StreamSegment(
        self, request_iterator: AsyncIterator[pb.StreamSegmentRequest], context: Context
    ) -> AsyncIterator[pb.StreamSegmentResponse]:
        """Segments of many users."""
        tally = _Tally(self._metrics, "StreamSegment")
        with self._routing.lease() as current:

            async def answer(request: pb.StreamSegmentRequest) -> pb.StreamSegmentResponse:
                chunk = await self._segment_chunk(request, current, tally)
                return pb.StreamSegmentResponse(chunk=chunk)

            async with aclosing(answered_in_order(request_iterator, answer)) as responses:
                async for response in responses:
                    yield response
        yield pb.StreamSegmentResponse(summary=tally.summary())

    async def StreamRecommend(
        self, request_iterator: AsyncIterator[pb.StreamRecommendRequest], context: Context
    ) -> AsyncIterator[pb.StreamRecommendResponse]:
        """Items for many users."""
        tally = _Tally(self._metrics, "StreamRecommend")
        with self._routing.lease() as current:

            async def answer(request: pb.StreamRecommendRequest) -> pb.StreamRecommendResponse:
                chunk = await self._recommend_chunk(request, current, tally)
                return pb.StreamRecommendResponse(chunk=chunk)

            async with aclosing(answered_in_order(request_iterator, answer)) as responses:
                async for response in responses:
                    yield response
        yield pb.StreamRecommendResponse(summary=tally.summary())

    async def ListSegments(self, request: pb.ListSegmentsRequest, context: Context) -> pb.ListSegmentsResponse:
        """All segments of a release, largest first."""
        release = self._routing.get(pin_of(request))
        ordered = sorted(release.segments, key=lambda segment: -segment.user_count)
        return pb.ListSegmentsResponse(
            segments=[profile_of(release, segment) for segment in ordered],
            release=release.number,
            migration=migration_message(release.migration),
        )

    async def GetSegment(self, request: pb.GetSegmentRequest, context: Context) -> pb.GetSegmentResponse:
        """One segment of a release."""
        release = self._routing.get(pin_of(request))
        for segment in release.segments:
            if segment.segment_id == request.segment_id:
                part = release.migration and release.migration.touching(segment.segment_id)
                return pb.GetSegmentResponse(
                    segment=profile_of(release, segment), release=release.number, migration=migration_message(part)
                )
        raise NotFound(f"release {release.number} has no segment {request.segment_id}", "segment_id")

    @contextmanager
    def _leased(self, request: pb.SegmentRequest | pb.RecommendRequest) -> Iterator[Release]:
        """The release for a unary call, whose time and end are counted with it."""
        with (
            self._routing.lease(pin_of(request), _user_of(request)) as release,
            self._metrics.release_stats.call(release.number),
        ):
            yield release

    def _answered(self, release: Release, answers: Sequence[Answer]) -> None:
        """Count answers with their release, and have them compared where they are to be."""
        self._metrics.release_stats.answered(release.number, answers)
        self._shadow.offer(release, answers)

    def _answered_parts(self, parts: "Sequence[_Part]") -> None:
        for part in parts:
            self._answered(part.release, [row.answer for row in part.rows])

    async def _answer(
        self, release: Release, request: pb.SegmentRequest | pb.RecommendRequest, context: Context
    ) -> Answer:
        subject = request.WhichOneof("subject")
        timeout = self._timeout(context)
        if subject == "user_id":
            answer = await self._pipeline.answer_user(release, checked_id(request.user_id, "user_id"), timeout)
        elif subject == "events":
            history = inline_history(request.events, self._clock())
            answer = await self._pipeline.answer_events(release, history, timeout)
        else:
            raise InvalidArgument("give user_id or events", "user_id")
        if answer.degraded is not Degraded.NO:
            self._metrics.degraded.labels(answer.degraded.name).inc()
        self._metrics.count_states([segment_state(answer)])
        return answer

    def _timeout(self, context: Context) -> float:
        remaining: float | None = context.time_remaining()
        if remaining is None:
            return self._encode_timeout
        return min(self._encode_timeout, max(remaining - REPLY_SECONDS, remaining / 2))

    async def _segment_chunk(
        self, request: pb.StreamSegmentRequest, current: Release, tally: "_Tally"
    ) -> pb.SegmentChunk:
        try:
            _check_size(request.user_ids)
            with self._routing.lease_chunk(pin_of(request), current) as route:
                rows, parts = await self._rows(route, request.user_ids)
                chunk = await asyncio.to_thread(_segment_chunk, request.chunk_id, rows)
                self._answered_parts(parts)
        except SegrecError as error:
            tally.add_refused(len(request.user_ids))
            return pb.SegmentChunk(chunk_id=request.chunk_id, status=row_status(error))
        tally.add(rows)
        return chunk

    async def _recommend_chunk(
        self, request: pb.StreamRecommendRequest, current: Release, tally: "_Tally"
    ) -> pb.RecommendChunk:
        try:
            _check_size(request.user_ids)
            query = query_of(request.options)
            with self._routing.lease_chunk(pin_of(request), current) as route:
                rows, parts = await self._rows(route, request.user_ids)
                await asyncio.gather(*(self._rank(part, query) for part in parts))
                chunk = await asyncio.to_thread(_recommend_chunk, request.chunk_id, rows)
                self._answered_parts(parts)
        except SegrecError as error:
            tally.add_refused(len(request.user_ids))
            return pb.RecommendChunk(chunk_id=request.chunk_id, status=row_status(error))
        tally.add(rows)
        return chunk

    async def _rows(self, route: Route, user_ids: Sequence[str]) -> "tuple[list[_Row], list[_Part]]":
        """A row per user, answered by the user's release; and the good ones by release."""
        stable = route.stable
        rows = [
            _Row(id_, stable) if is_plain(id_) else _checked_row(id_, at, stable) for at, id_ in enumerate(user_ids)
        ]
        if route.canary is not None:
            for row in rows:
                row.release = route.release_for(row.user_id)
        parts = _parts(rows)
        await asyncio.gather(*(self._fill(part) for part in parts))
        return rows, parts

    async def _fill(self, part: "_Part") -> None:
        user_ids = [row.user_id for row in part.rows]
        with self._metrics.release_stats.counting_errors(part.release.number, len(user_ids)):
            answers = await self._pipeline.answer_users(part.release, user_ids, self._encode_timeout)
        for row, answer in zip(part.rows, answers, strict=True):
            row.answer = answer

    async def _rank(self, part: "_Part", query: Query) -> None:
        with self._metrics.release_stats.counting_errors(part.release.number, len(part.rows)):
            ranked = await self._pipeline.recommend(part.release, query, [row.answer for row in part.rows])
        for row, items in zip(part.rows, ranked, strict=True):
            row.items = items


@dataclass(slots=True)
class _Row:
    user_id: str
    release: Release
    error: SegrecError | None = None
    answer: Answer = NO_ANSWER
    items: Sequence[Ranked] = ()

    @property
    def shown_id(self) -> str:
        """The id as sent; without the mark of one that was not UTF-8."""
        return self.user_id.removeprefix(NOT_UTF8)


@dataclass(slots=True)
class _Part:
    """The good rows of a chunk that one release answers."""

    release: Release
    rows: list[_Row] = field(default_factory=list)


def _parts(rows: Sequence[_Row]) -> list[_Part]:
    parts: dict[int, _Part] = {}
    for row in rows:
        if row.error is None:
            part = parts.get(row.release.number)
            if part is None:
                part = parts[row.release.number] = _Part(row.release)
            part.rows.append(row)
    return list(parts.values())


def _user_of(request: pb.SegmentRequest | pb.RecommendRequest) -> str:
    """Whose request it is; empty for a history given inline."""
    return request.user_id if request.WhichOneof("subject") == "user_id" else ""


def _checked_row(user_id: str, place: int, release: Release) -> _Row:
    try:
        return _Row(checked_id(user_id, f"user_ids[{place}]"), release)
    except InvalidArgument as error:
        return _Row(user_id, release, error)


def _segment_chunk(chunk_id: int, rows: Sequence[_Row]) -> pb.SegmentChunk:
    chunk = pb.SegmentChunk(chunk_id=chunk_id)
    for row in rows:
        message = chunk.rows.add()
        message.user_id = row.shown_id
        if row.error is None:
            fill_segment(message.result, row.release, row.answer)
        else:
            message.status.CopyFrom(row_status(row.error))
    return chunk


def _recommend_chunk(chunk_id: int, rows: Sequence[_Row]) -> pb.RecommendChunk:
    chunk = pb.RecommendChunk(chunk_id=chunk_id)
    for row in rows:
        message = chunk.rows.add()
        message.user_id = row.shown_id
        if row.error is None:
            fill_recommend(message.result, row.release, row.answer, row.items)
        else:
            message.status.CopyFrom(row_status(row.error))
    return chunk


def _check_size(user_ids: Sequence[str]) -> None:
    if len(user_ids) > MAX_USERS_PER_CHUNK:
        raise InvalidArgument(
            f"the chunk has {len(user_ids)} user ids; at most {MAX_USERS_PER_CHUNK} are allowed", "user_ids"
        )


class _Tally:
    """Counts over one stream, for its summary and for the metrics."""

    def __init__(self, metrics: Metrics, method: str) -> None:
        self._metrics = metrics
        self._method = method
        self._counts = pb.StreamSummary()

    def add(self, rows: Sequence[_Row]) -> None:
        """Count the rows of a chunk."""
        failed = sum(row.error is not None for row in rows)
        degraded = [row.answer.degraded for row in rows if row.answer.degraded is not Degraded.NO]
        self._count(len(rows) - failed, failed, len(degraded))
        for reason in set(degraded):
            self._metrics.degraded.labels(reason.name).inc(degraded.count(reason))
        self._metrics.count_states([segment_state(row.answer) for row in rows if row.error is None])

    def add_refused(self, user_count: int) -> None:
        """Count a chunk that was refused as a whole."""
        self._count(0, user_count, 0)

    def _count(self, answered: int, failed: int, degraded: int) -> None:
        self._counts.chunk_count += 1
        self._counts.received_count += answered + failed
        self._counts.answered_count += answered
        self._counts.failed_count += failed
        self._counts.degraded_count += degraded
        self._metrics.stream_rows.labels(self._method, "answered").inc(answered)
        self._metrics.stream_rows.labels(self._method, "failed").inc(failed)

    def summary(self) -> pb.StreamSummary:
        """The counts so far."""
        return self._counts
