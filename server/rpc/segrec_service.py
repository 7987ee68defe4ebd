"""`segrec.v1.SegrecService`: segments and recommendations, single and in streams."""

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import ExitStack, aclosing, contextmanager
from dataclasses import dataclass, field
from time import monotonic

from segrec.v1 import segrec_service_pb2 as pb
from segrec.v1 import segrec_service_pb2_grpc

from server.core.errors import InvalidArgument, NotFound, SegrecError
from server.core.ranking import Query, Ranked
from server.core.release import Release
from server.monitoring.metrics import Metrics
from server.monitoring.shadow import Shadow
from server.releases.routing import Route, Routing
from server.rpc.conversion import fill_recommend, fill_segment, migration_message, profile_of, segment_state
from server.rpc.deadlines import seconds_left
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
        stream_patience_seconds: float,
    ) -> None:
        self._pipeline = pipeline
        self._routing = routing
        self._metrics = metrics
        self._clock = clock
        self._encode_timeout = encode_timeout_seconds
        self._shadow = shadow
        self._patience = stream_patience_seconds

    async def Segment(self, request: pb.SegmentRequest, context: Context) -> pb.SegmentResponse:
        start = monotonic()
        with ExitStack() as leases:
            release, answer = await self._answer(leases, request, context)
            response = pb.SegmentResponse()
            fill_segment(response, release, answer)
            self._record_answers(release, [answer], seconds=monotonic() - start)
            return response

    async def Recommend(self, request: pb.RecommendRequest, context: Context) -> pb.RecommendResponse:
        query = query_of(request.options)
        start = monotonic()
        with ExitStack() as leases:
            release, answer = await self._answer(leases, request, context)
            [ranked] = await self._pipeline.recommend(release, query, [answer])
            response = pb.RecommendResponse()
            fill_recommend(response, release, answer, ranked)
            self._record_answers(release, [answer], seconds=monotonic() - start)
            return response

    async def StreamSegment(
        self, request_iterator: AsyncIterator[pb.StreamSegmentRequest], context: Context
    ) -> AsyncIterator[pb.StreamSegmentResponse]:
        """Holds a lease on the active release from the start of the stream to its end."""
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
        """Holds a lease on the active release from the start of the stream to its end."""
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
        release = self._routing.get(pin_of(request))
        ordered = sorted(release.segments, key=lambda segment: -segment.user_count)
        return pb.ListSegmentsResponse(
            segments=[profile_of(release, segment) for segment in ordered],
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
        raise NotFound(f"release {release.number} has no segment {request.segment_id}", "segment_id")

    @contextmanager
    def _lease(self, request: pb.SegmentRequest | pb.RecommendRequest) -> Iterator[Release]:
        """The release for a unary call; an error of it is counted in the release's figures."""
        with (
            self._routing.lease(pin_of(request), _user_of(request)) as release,
            self._metrics.release_stats.counting_errors(release.number, 1),
        ):
            yield release

    def _record_answers(
        self, release: Release, answers: Sequence[Answer], *, is_batch: bool = False, seconds: float | None = None
    ) -> None:
        """Count the answers in the release's figures, and offer them to the shadow for a comparison."""
        self._metrics.release_stats.answered(release.number, answers, is_batch, seconds)
        self._shadow.offer(release, answers)

    async def _answer(
        self, leases: ExitStack, request: pb.SegmentRequest | pb.RecommendRequest, context: Context
    ) -> tuple[Release, Answer]:
        """The answer and its release, leased in `leases`. The active release answers for one that Triton has lost."""
        release = leases.enter_context(self._lease(request))
        answer = await self._answer_from(release, request, context)
        if answer.degraded is Degraded.RELEASE_NOT_LOADED and not pin_of(request):
            active = leases.enter_context(self._routing.lease())
            if active is not release:
                release, answer = active, await self._answer_from(active, request, context)
        if answer.degraded is not Degraded.NO:
            self._metrics.degraded.labels(answer.degraded.name).inc()
        self._metrics.count_states([segment_state(answer)])
        return release, answer

    async def _answer_from(
        self, release: Release, request: pb.SegmentRequest | pb.RecommendRequest, context: Context
    ) -> Answer:
        subject = request.WhichOneof("subject")
        timeout = seconds_left(context, self._encode_timeout)
        if subject == "user_id":
            return await self._pipeline.answer_user(release, checked_id(request.user_id, "user_id"), timeout)
        if subject == "events":
            history = inline_history(request.events, self._clock())
            return await self._pipeline.answer_events(release, history, timeout)
        raise InvalidArgument("give user_id or events", "user_id")

    async def _segment_chunk(
        self, request: pb.StreamSegmentRequest, current: Release, tally: "_Tally"
    ) -> pb.SegmentChunk:
        try:
            _check_size(request.user_ids)
            with self._routing.lease_chunk(pin_of(request), current) as route:
                rows, groups = await self._answered_rows(route, request.user_ids)
                chunk = await asyncio.to_thread(_segment_chunk, request.chunk_id, rows)
                for group in groups:
                    self._record_answers(group.release, group.answers, is_batch=True)
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
                rows, groups = await self._answered_rows(route, request.user_ids)
                await asyncio.gather(*(self._rank(group, query) for group in groups))
                chunk = await asyncio.to_thread(_recommend_chunk, request.chunk_id, rows)
                for group in groups:
                    self._record_answers(group.release, group.answers, is_batch=True)
        except SegrecError as error:
            tally.add_refused(len(request.user_ids))
            return pb.RecommendChunk(chunk_id=request.chunk_id, status=row_status(error))
        tally.add(rows)
        return chunk

    async def _answered_rows(self, route: Route, user_ids: Sequence[str]) -> "tuple[list[_Row], list[_ReleaseRows]]":
        """One row per user, answered by the user's release or with an error; and the valid rows by release."""
        stable = route.stable
        rows = [
            _Row(user_id, stable) if is_plain(user_id) else _checked_row(user_id, index, stable)
            for index, user_id in enumerate(user_ids)
        ]
        if route.canary is not None:
            for row in rows:
                row.release = route.release_for(row.user_id)
        groups = _by_release(rows)
        await asyncio.gather(*(self._fill_answers(group) for group in groups))
        lost = [row for row in rows if row.answer.degraded is Degraded.RELEASE_NOT_LOADED and row.release is not stable]
        if lost:
            for row in lost:
                row.release = stable
            await self._fill_answers(_ReleaseRows(stable, lost))
            groups = _by_release(rows)
        return rows, groups

    async def _fill_answers(self, group: "_ReleaseRows") -> None:
        user_ids = [row.user_id for row in group.rows]
        with self._metrics.release_stats.counting_errors(group.release.number, len(user_ids), is_batch=True):
            answers = await self._pipeline.answer_users(group.release, user_ids, self._encode_timeout, self._patience)
        for row, answer in zip(group.rows, answers, strict=True):
            row.answer = answer

    async def _rank(self, group: "_ReleaseRows", query: Query) -> None:
        with self._metrics.release_stats.counting_errors(group.release.number, len(group.rows), is_batch=True):
            ranked = await self._pipeline.recommend(group.release, query, group.answers)
        for row, items in zip(group.rows, ranked, strict=True):
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
        """The id as the caller sent it, without the mark `NOT_UTF8`."""
        return self.user_id.removeprefix(NOT_UTF8)


@dataclass(slots=True)
class _ReleaseRows:
    """The valid rows of a chunk that one release answers."""

    release: Release
    rows: list[_Row] = field(default_factory=list)

    @property
    def answers(self) -> list[Answer]:
        return [row.answer for row in self.rows]


def _by_release(rows: Sequence[_Row]) -> list[_ReleaseRows]:
    groups: dict[int, _ReleaseRows] = {}
    for row in rows:
        if row.error is None:
            group = groups.get(row.release.number)
            if group is None:
                group = groups[row.release.number] = _ReleaseRows(row.release)
            group.rows.append(row)
    return list(groups.values())


def _user_of(request: pb.SegmentRequest | pb.RecommendRequest) -> str:
    """The user id of a request; empty for an inline history."""
    return request.user_id if request.WhichOneof("subject") == "user_id" else ""


def _checked_row(user_id: str, index: int, release: Release) -> _Row:
    try:
        return _Row(checked_id(user_id, f"user_ids[{index}]"), release)
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
        failed = sum(row.error is not None for row in rows)
        degraded = [row.answer.degraded for row in rows if row.answer.degraded is not Degraded.NO]
        self._count(len(rows) - failed, failed, len(degraded))
        for reason in set(degraded):
            self._metrics.degraded.labels(reason.name).inc(degraded.count(reason))
        self._metrics.count_states([segment_state(row.answer) for row in rows if row.error is None])

    def add_refused(self, user_count: int) -> None:
        """Count the users of a chunk that was refused as a whole."""
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
        return self._counts
