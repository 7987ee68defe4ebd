"""The chunks of a stream that wait for an answer. No I/O: the blocking and the asyncio stream share this code."""

import random
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar, cast

import grpc

from segrec.errors import DataLoss, InvalidArgument, SegrecError
from segrec.requests import id_problem
from segrec.v1.common_pb2 import RowStatus
from segrec.v1.segrec_service_pb2 import (
    RecommendRow,
    SegmentRow,
    StreamRecommendRequest,
    StreamRecommendResponse,
    StreamSegmentRequest,
    StreamSegmentResponse,
    StreamSummary,
)

RowT = TypeVar("RowT", bound=SegmentRow | RecommendRow)
Request = StreamSegmentRequest | StreamRecommendRequest
Response = StreamSegmentResponse | StreamRecommendResponse

MAX_CHUNK_SIZE = 1024
"""Most user ids in one chunk."""
_RECONNECTS_BEFORE_FIRST_ANSWER = 2
_RECONNECTS = 8


@dataclass(frozen=True, slots=True)
class StreamSettings:
    """Limits of a stream. Raises InvalidArgument when a limit is out of range.

    `chunk_size`: user ids in one message, 1 to 1,024. `max_in_flight`: most chunks that wait for an answer at once.
    `stall_seconds`: the stream fails with StreamStalled after this time without an answer.
    """

    chunk_size: int = 1024
    max_in_flight: int = 8
    stall_seconds: float = 30.0

    def __post_init__(self) -> None:
        if not 1 <= self.chunk_size <= MAX_CHUNK_SIZE:
            raise InvalidArgument(f"chunk_size is {self.chunk_size}: give 1 to {MAX_CHUNK_SIZE}", field="chunk_size")
        if self.max_in_flight < 1:
            raise InvalidArgument(f"max_in_flight is {self.max_in_flight}: give 1 or more", field="max_in_flight")
        if not self.stall_seconds > 0:
            message = f"stall_seconds is {self.stall_seconds}: give a number above 0"
            raise InvalidArgument(message, field="stall_seconds")


@dataclass(frozen=True, slots=True)
class _Chunk:
    user_ids: list[str]
    request: Request


class Window(Generic[RowT]):
    """The chunks that wait for an answer, oldest first, and the counts of the answered chunks."""

    def __init__(
        self, make_request: Callable[[int, Sequence[str]], Request], row_type: type[RowT], max_in_flight: int
    ) -> None:
        self._make_request = make_request
        self._row_type = row_type
        self._max_in_flight = max_in_flight
        self._waiting: deque[_Chunk] = deque()
        self._next_chunk_id = 1
        self._failures = 0
        self._connection = StreamSummary()
        self.counts = StreamSummary()
        """Counts over all connections so far, counted from the received rows."""
        self.summary: StreamSummary | None = None
        """The server's counts for the last connection; None until the server has sent them."""

    @property
    def is_full(self) -> bool:
        """True when the next chunk must wait for an answer."""
        return len(self._waiting) >= self._max_in_flight

    def add(self, user_ids: list[str]) -> Request:
        """The request for the next chunk. An id that cannot be sent is replaced by "", which the server refuses."""
        sent = ["" if id_problem(user_id) else user_id for user_id in user_ids]
        request = self._make_request(self._next_chunk_id, sent)
        self._next_chunk_id += 1
        self._waiting.append(_Chunk(user_ids, request))
        return request

    def reconnect(self) -> list[Request]:
        """The unanswered requests, to be sent again on a new connection; its counts start at zero."""
        self._connection = StreamSummary()
        return [chunk.request for chunk in self._waiting]

    def back_off(self) -> float | None:
        """Seconds to wait before the next attempt to connect; None when no attempt is left."""
        self._failures += 1
        limit = _RECONNECTS if self.counts.chunk_count else _RECONNECTS_BEFORE_FIRST_ANSWER
        if self._failures > limit:
            return None
        return min(0.1 * 2.0**self._failures, 5.0) * random.uniform(0.8, 1.2)  # noqa: S311 - spreads clients, no secret

    def accept(self, response: Response) -> list[RowT] | None:
        """The rows of an answered chunk, in the order of its user ids; None for the summary.

        Raises DataLoss when the response does not answer the oldest waiting chunk.
        """
        if response.HasField("summary"):
            self._check_summary(response.summary)
            return None
        answered = response.chunk
        if not self._waiting or self._waiting[0].request.chunk_id != answered.chunk_id:
            raise DataLoss(f"The server answered chunk {answered.chunk_id} out of order", reason="OUT_OF_ORDER")
        chunk = self._waiting[0]
        refusal = answered.status if answered.HasField("status") else None
        rows = self._rows_of(chunk, cast(Sequence[RowT], answered.rows), refusal)
        self._waiting.popleft()
        self._failures = 0
        self._count(rows)
        return rows

    def _rows_of(self, chunk: _Chunk, rows: Sequence[RowT], refusal: RowStatus | None) -> list[RowT]:
        if refusal is not None:
            return [self._row_type(user_id=readable(user_id), status=refusal) for user_id in chunk.user_ids]
        result = list(rows)
        if [row.user_id for row in result] != list(chunk.request.user_ids):
            message = f"The rows of chunk {chunk.request.chunk_id} are not those of the requested users"
            raise DataLoss(message, reason="ROW_MISMATCH")
        for row, user_id in zip(result, chunk.user_ids, strict=True):
            if row.user_id != user_id:
                _describe_unsendable(row, user_id)
        return result

    def _count(self, rows: Sequence[RowT]) -> None:
        failed = degraded = 0
        for row in rows:
            if row.HasField("result"):
                degraded += row.result.info.degraded
            else:
                failed += 1
        for counts in (self.counts, self._connection):
            counts.chunk_count += 1
            counts.received_count += len(rows)
            counts.answered_count += len(rows) - failed
            counts.failed_count += failed
            counts.degraded_count += degraded

    def _check_summary(self, summary: StreamSummary) -> None:
        if self._waiting:
            raise DataLoss(f"The stream ended with {len(self._waiting)} chunks unanswered", reason="UNANSWERED")
        if summary != self._connection:
            message = f"The server counted {_counts_text(summary)}; the client {_counts_text(self._connection)}"
            raise DataLoss(message, reason="SUMMARY_MISMATCH")
        self.summary = summary

    def check_end(self) -> None:
        """Raises DataLoss when a stream ended without an error, but without its summary."""
        if self.summary is None:
            raise DataLoss("The stream ended without its summary", reason="NO_SUMMARY")


def can_resume(error: SegrecError) -> bool:
    """Whether a new connection may continue with the unanswered chunks after this error."""
    return error.code is grpc.StatusCode.UNAVAILABLE or error.reason == "OVERLOADED"


def readable(user_id: str) -> str:
    """The first 4,096 characters of the id, with bytes that are not UTF-8 written as escapes."""
    return user_id.encode("utf-8", "backslashreplace").decode()[:4096]


def _describe_unsendable(row: SegmentRow | RecommendRow, user_id: str) -> None:
    """Writes the original id and its problem into the row of an id that could not be sent."""
    row.user_id = readable(user_id)
    row.status.message = f"The user id {id_problem(user_id)}"


def _counts_text(counts: StreamSummary) -> str:
    return (
        f"{counts.received_count} users in {counts.chunk_count} chunks, {counts.answered_count} answered, "
        f"{counts.failed_count} failed, {counts.degraded_count} degraded"
    )
