"""The rows of a chunk on their way from the users to the answer, and the counts of a stream."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from google.rpc.status_pb2 import Status
from segrec.v1 import segrec_service_pb2 as pb

from server.core.errors import InvalidArgument, SegrecError
from server.core.ranking.query import Ranking, Strategy
from server.core.release import Release
from server.monitoring.metrics import Metrics
from server.rpc.messages.conversion import fill_recommend, fill_segment, segment_state
from server.rpc.messages.decoding import NOT_UTF8
from server.rpc.messages.errors import status_of
from server.rpc.messages.validation import checked_id, is_plain
from server.rpc.streams.parts import ChunkPart
from server.serving.answer import Answer, Degraded
from server.serving.pipeline import NO_ANSWER

_NOT_RANKED = Ranking([], Strategy.HYBRID, 0)


@dataclass(slots=True)
class Row:
    """One user of a chunk: the release that answers, then an error, or the answer and the ranking."""

    user_id: str
    release: Release
    error: SegrecError | None = None
    answer: Answer = NO_ANSWER
    ranking: Ranking = _NOT_RANKED

    @property
    def shown_id(self) -> str:
        """The id as the caller sent it, without the mark `NOT_UTF8`."""
        return self.user_id.removeprefix(NOT_UTF8)


@dataclass(slots=True)
class ReleaseRows:
    """The valid rows of a chunk that one release answers."""

    release: Release
    rows: list[Row] = field(default_factory=list)

    @property
    def answers(self) -> list[Answer]:
        return [row.answer for row in self.rows]


def by_release(rows: Sequence[Row]) -> list[ReleaseRows]:
    """The rows without an error, by the release that answers them."""
    groups: dict[int, ReleaseRows] = {}
    for row in rows:
        if row.error is None:
            group = groups.get(row.release.number)
            if group is None:
                group = groups[row.release.number] = ReleaseRows(row.release)
            group.rows.append(row)
    return list(groups.values())


def rows_of(part: ChunkPart, release: Release) -> list[Row]:
    """One row per user of a part; a user with an invalid id gets the error."""
    return [
        Row(user_id, release) if is_plain(user_id) else _checked_row(user_id, index, release)
        for index, user_id in enumerate(part.user_ids, part.first)
    ]


def _checked_row(user_id: str, index: int, release: Release) -> Row:
    try:
        return Row(checked_id(user_id, f"user_ids[{index}]"), release)
    except InvalidArgument as error:
        return Row(user_id, release, error)


def segment_chunk(chunk_id: int, rows: Sequence[Row]) -> pb.SegmentChunk:
    """The message of answered rows."""
    chunk = pb.SegmentChunk(chunk_id=chunk_id)
    for row in rows:
        message = chunk.rows.add()
        message.user_id = row.shown_id
        if row.error is None:
            fill_segment(message.result, row.release, row.answer)
        else:
            message.status.CopyFrom(status_of(row.error))
    return chunk


def refused_recommend_chunk(part: ChunkPart, status: Status) -> pb.RecommendChunk:
    """The refusal of a whole chunk, or of each row of a part."""
    chunk = pb.RecommendChunk(chunk_id=part.chunk_id, has_more=not part.is_last)
    if part.is_whole:
        chunk.status.CopyFrom(status)
    else:
        chunk.rows.extend(
            pb.RecommendRow(user_id=user_id.removeprefix(NOT_UTF8), status=status) for user_id in part.user_ids
        )
    return chunk


def recommend_chunk(chunk_id: int, rows: Sequence[Row]) -> pb.RecommendChunk:
    """The message of answered rows."""
    chunk = pb.RecommendChunk(chunk_id=chunk_id)
    for row in rows:
        message = chunk.rows.add()
        message.user_id = row.shown_id
        if row.error is None:
            fill_recommend(message.result, row.release, row.answer, row.ranking)
        else:
            message.status.CopyFrom(status_of(row.error))
    return chunk


class Tally:
    """Counts over one stream, for its summary and for the metrics."""

    def __init__(self, metrics: Metrics, method: str) -> None:
        self._metrics = metrics
        self._method = method
        self._counts = pb.StreamSummary()

    def add(self, part: ChunkPart, rows: Sequence[Row]) -> None:
        """Count the rows of a part."""
        failed = sum(row.error is not None for row in rows)
        degraded = [row.answer.degraded for row in rows if row.answer.degraded is not Degraded.NO]
        self._count(part, len(rows) - failed, failed, len(degraded))
        for reason in set(degraded):
            self._metrics.degraded.labels(reason.name).inc(degraded.count(reason))
        self._metrics.count_states([segment_state(row.answer) for row in rows if row.error is None])

    def add_refused(self, part: ChunkPart) -> None:
        """Count the users of a part that was refused as a whole."""
        self._count(part, 0, len(part.user_ids), 0)

    def _count(self, part: ChunkPart, answered: int, failed: int, degraded: int) -> None:
        self._counts.chunk_count += part.is_last
        self._counts.received_count += answered + failed
        self._counts.answered_count += answered
        self._counts.failed_count += failed
        self._counts.degraded_count += degraded
        self._metrics.stream_rows.labels(self._method, "answered").inc(answered)
        self._metrics.stream_rows.labels(self._method, "failed").inc(failed)
        self._metrics.stream_rows.labels(self._method, "degraded").inc(degraded)

    def summary(self) -> pb.StreamSummary:
        return self._counts
