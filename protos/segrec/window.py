"""The chunks of a stream that wait for an answer. No I/O: the blocking and the asyncio stream share this code."""

import random
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar, cast

import grpc
from google.rpc.status_pb2 import Status

from segrec.errors import DataLoss, InvalidArgument, SegrecError, error_of_status, status_of
from segrec.requests import build, checked_type, id_problem, id_problem_reason
from segrec.v1.common_pb2 import Warning  # noqa: A004 - the name is that of the API
from segrec.v1.segrec_service_pb2 import (
    RecommendChunk,
    RecommendRow,
    SegmentChunk,
    SegmentRow,
    StreamRecommendRequest,
    StreamRecommendResponse,
    StreamSegmentRequest,
    StreamSegmentResponse,
    StreamSummary,
    UserChunk,
)

RowT = TypeVar("RowT", bound=SegmentRow | RecommendRow)
Request = StreamSegmentRequest | StreamRecommendRequest
Response = StreamSegmentResponse | StreamRecommendResponse

MAX_CHUNK_SIZE = 1024
"""Most user ids in one chunk."""
STALL_SECONDS = 120.0
_RECONNECTS_BEFORE_FIRST_ANSWER = 2
_RECONNECTS = 8
_PASSING = ("SHUTTING_DOWN", "OVERLOADED", "NO_RELEASE")
"""Reasons with which a server that is there refuses a stream for now."""


@dataclass(frozen=True, slots=True)
class StreamSettings:
    """Limits of a stream. Raises InvalidArgument when a limit is out of range.

    `chunk_size`: user ids in one message, 1 to 1,024. `max_in_flight`: most chunks that wait for an answer at once.
    `stall_seconds`: the stream fails with StreamStalled after this time without an answer. A server whose encoder is
    away answers nothing for up to a minute, by its default settings, before it sends degraded rows.
    """

    chunk_size: int = 1024
    max_in_flight: int = 8
    stall_seconds: float = STALL_SECONDS

    def __post_init__(self) -> None:
        if not 1 <= self.chunk_size <= MAX_CHUNK_SIZE:
            raise InvalidArgument(f"chunk_size is {self.chunk_size}: give 1 to {MAX_CHUNK_SIZE}", field="chunk_size")
        if self.max_in_flight < 1:
            raise InvalidArgument(f"max_in_flight is {self.max_in_flight}: give 1 or more", field="max_in_flight")
        if not self.stall_seconds > 0:
            message = f"stall_seconds is {self.stall_seconds}: give a number above 0"
            raise InvalidArgument(message, field="stall_seconds")


@dataclass(slots=True, eq=False)
class _Chunk(Generic[RowT]):
    """User ids that were sent in one request, and the rows that have come for them."""

    user_ids: list[str]
    request: UserChunk
    rows: list[RowT] = field(default_factory=list)
    is_complete: bool = False
    """Whether all rows have come, those that were asked again included."""
    origin: "_Chunk[RowT] | None" = None
    """The chunk whose degraded rows this one asks again."""
    places: list[int] = field(default_factory=list)
    """Where the rows of this chunk belong in `origin`."""


class Window(Generic[RowT]):
    """The chunks that wait for an answer, oldest first, and the counts of the answered chunks.

    Degraded rows are asked once more, at the end of the chunks that were sent already; their chunk and those behind it
    are held back until then, so that rows stay in order. No new chunk is sent meanwhile.
    """

    def __init__(
        self,
        config: Request,
        row_type: type[RowT],
        max_in_flight: int,
        base_release: int = 0,
    ) -> None:
        """`config`: the first message of the stream. `base_release`: the release of an interrupted stream that goes on
        here; 0 for a new stream.
        """
        self._config = config
        self._row_type = row_type
        self._max_in_flight = max_in_flight
        self._waiting: deque[_Chunk[RowT]] = deque()
        self._held: deque[_Chunk[RowT]] = deque()
        self._repeats: list[UserChunk] = []
        self._next_chunk_id = 1
        self._failures = 0
        self._has_answer = False
        self._connection = StreamSummary()
        self.base_release = base_release
        """The release of this stream, 0 until it is known. It stays the same over all connections."""
        self.warnings: dict[tuple[int, str], Warning] = {}
        """What the releases of the stream do not know of its options, by reason and value."""
        self.counts = StreamSummary()
        """Counts over all connections so far, counted from the rows that were returned."""
        self.summary: StreamSummary | None = None
        """The server's counts for the last connection; None until the server has sent them."""

    @property
    def is_full(self) -> bool:
        """True when the next chunk must wait for an answer."""
        return len(self._waiting) >= self._max_in_flight or any(chunk.origin for chunk in self._waiting)

    @property
    def is_empty(self) -> bool:
        """True when nothing waits for an answer."""
        return not self._waiting

    def add(self, user_ids: list[str]) -> Request:
        """The request for the next chunk. An id that cannot be sent is replaced by "", which the server refuses.

        Raises InvalidArgument for an id that is no str.
        """
        for user_id in user_ids:
            checked_type(user_id, "user_ids")
        chunk = self._new_chunk(user_ids)
        self._held.append(chunk)
        return self._message(chunk.request)

    def repeats(self) -> list[Request]:
        """Requests that ask degraded rows again; each is returned once."""
        repeats, self._repeats = self._repeats, []
        return [self._message(chunk) for chunk in repeats]

    def reconnect(self) -> list[Request]:
        """What is to be sent on a new connection, whose counts start at zero: the configuration, then the unanswered
        chunks.
        """
        self._connection = StreamSummary()
        self._repeats = []
        for chunk in self._waiting:
            chunk.rows.clear()
        if self.base_release:
            self._config.config.base_release = self.base_release
        return [self._config, *(self._message(chunk.request) for chunk in self._waiting)]

    def back_off(self, error: SegrecError) -> float | None:
        """Seconds to wait before the next attempt to connect after an error; None when no attempt is left.

        There are more attempts once a server has answered, or has said that it is stopping or has no room.
        """
        self._failures += 1
        known = self._has_answer or error.reason in _PASSING
        if self._failures > (_RECONNECTS if known else _RECONNECTS_BEFORE_FIRST_ANSWER):
            return None
        pause = max(min(0.1 * 2.0**self._failures, 5.0), error.retry_seconds or 0.0)
        return pause * random.uniform(0.8, 1.2)  # noqa: S311 - spreads clients, no secret

    def accept(self, response: Response) -> list[list[RowT]]:
        """The rows of the chunks that are complete now, each in the order of its user ids; often none or one.

        Raises DataLoss when the response does not answer the oldest waiting chunk.
        """
        if response.HasField("summary"):
            self._check_summary(response.summary)
            return []
        answered = response.chunk
        if not self._waiting or self._waiting[0].request.chunk_id != answered.chunk_id:
            raise DataLoss(f"The server answered chunk {answered.chunk_id} out of order", reason="OUT_OF_ORDER")
        chunk = self._waiting[0]
        refusal = answered.status if answered.HasField("status") else None
        chunk.rows += self._rows_of(chunk, cast(Sequence[RowT], answered.rows), refusal)
        self._failures, self._has_answer = 0, True
        if isinstance(answered, RecommendChunk):
            self.warnings.update({(warning.reason, warning.value): warning for warning in answered.warnings})
        if _has_more(answered):
            return []
        self._waiting.popleft()
        self._finish(chunk)
        if not self.base_release and not self._config.config.WhichOneof("pin"):
            self.base_release = answered.release
        return self._completed()

    def _message(self, chunk: UserChunk) -> Request:
        return type(self._config)(chunk=chunk)

    def _new_chunk(self, user_ids: list[str]) -> _Chunk[RowT]:
        sent = ["" if id_problem(user_id) else user_id for user_id in user_ids]
        request = build(UserChunk, chunk_id=self._next_chunk_id, user_ids=sent)
        self._next_chunk_id += 1
        chunk: _Chunk[RowT] = _Chunk(user_ids, request)
        self._waiting.append(chunk)
        return chunk

    def _finish(self, chunk: _Chunk[RowT]) -> None:
        """Check the rows of an answered chunk, count them, and ask degraded ones again."""
        if [row.user_id for row in chunk.rows] != list(chunk.request.user_ids):
            message = f"The rows of chunk {chunk.request.chunk_id} are not those of the requested users"
            raise DataLoss(message, reason="ROW_MISMATCH")
        for row, user_id in zip(chunk.rows, chunk.user_ids, strict=True):
            if row.user_id != user_id:
                _describe_unsendable(row, user_id)
        _count(self._connection, chunk.rows)
        if chunk.origin is not None:
            for place, row in zip(chunk.places, chunk.rows, strict=True):
                chunk.origin.rows[place] = row
            chunk.origin.is_complete = True
            return
        places = [place for place, row in enumerate(chunk.rows) if _is_degraded(row)]
        if places:
            repeat = self._new_chunk([chunk.user_ids[place] for place in places])
            repeat.origin, repeat.places = chunk, places
            self._repeats.append(repeat.request)
        chunk.is_complete = not places

    def _completed(self) -> list[list[RowT]]:
        completed = []
        while self._held and self._held[0].is_complete:
            rows = self._held.popleft().rows
            _count(self.counts, rows)
            completed.append(rows)
        return completed

    def _rows_of(self, chunk: _Chunk[RowT], rows: Sequence[RowT], refusal: Status | None) -> list[RowT]:
        if refusal is None:
            return list(rows)
        return [self._row_type(user_id=user_id, status=refusal) for user_id in chunk.request.user_ids]

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


def _has_more(chunk: SegmentChunk | RecommendChunk) -> bool:
    return isinstance(chunk, RecommendChunk) and chunk.has_more


def _is_degraded(row: SegmentRow | RecommendRow) -> bool:
    return row.HasField("result") and row.result.info.degraded


def _count(counts: StreamSummary, rows: Sequence[SegmentRow | RecommendRow]) -> None:
    """Adds the rows of one chunk to the counts."""
    failed = sum(not row.HasField("result") for row in rows)
    counts.chunk_count += 1
    counts.received_count += len(rows)
    counts.answered_count += len(rows) - failed
    counts.failed_count += failed
    counts.degraded_count += sum(_is_degraded(row) for row in rows)


def can_resume(error: SegrecError) -> bool:
    """Whether a new connection may continue with the unanswered chunks after this error."""
    return error.code is grpc.StatusCode.UNAVAILABLE or error.reason == "OVERLOADED"


def readable(user_id: str) -> str:
    """The first 4,096 characters of the id, with bytes that are not UTF-8 written as escapes."""
    return user_id.encode("utf-8", "backslashreplace").decode()[:4096]


def _describe_unsendable(row: SegmentRow | RecommendRow, user_id: str) -> None:
    """Writes the original id and its problem into the row of an id that could not be sent."""
    row.user_id = readable(user_id)
    refused, reason = error_of_status(row.status), id_problem_reason(user_id)
    row.status.CopyFrom(
        status_of(InvalidArgument(f"The user id {id_problem(user_id)}", reason=reason, field=refused.field))
    )


def _counts_text(counts: StreamSummary) -> str:
    return (
        f"{counts.received_count} users in {counts.chunk_count} chunks, {counts.answered_count} answered, "
        f"{counts.failed_count} failed, {counts.degraded_count} degraded"
    )
