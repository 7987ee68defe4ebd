"""The window of a stream: waiting chunks, counts and reconnects, without a server."""

from functools import partial

import pytest
from segrec.errors import DataLoss, InvalidArgument
from segrec.requests import stream_segment_request
from segrec.v1 import segrec_service_pb2 as pb
from segrec.v1.common_pb2 import RowStatus
from segrec.window import StreamSettings, Window


def window_of(max_in_flight: int = 2) -> Window[pb.SegmentRow]:
    return Window(partial(stream_segment_request, release=0), pb.SegmentRow, max_in_flight)


def answer(chunk_id: int, *user_ids: str) -> pb.StreamSegmentResponse:
    rows = [pb.SegmentRow(user_id=user_id, result=pb.SegmentResponse()) for user_id in user_ids]
    return pb.StreamSegmentResponse(chunk=pb.SegmentChunk(chunk_id=chunk_id, rows=rows))


def summary(**counts: int) -> pb.StreamSegmentResponse:
    return pb.StreamSegmentResponse(summary=pb.StreamSummary(**counts))


def test_only_unanswered_chunks_are_sent_again() -> None:
    window = window_of()
    first, second = window.add(["a"]), window.add(["b"])
    assert window.is_full
    assert window.accept(answer(first.chunk_id, "a"))
    assert window.reconnect() == [second]
    assert window.accept(answer(second.chunk_id, "b"))
    window.accept(summary(chunk_count=1, received_count=1, answered_count=1))
    assert window.counts.received_count == 2


@pytest.mark.parametrize(
    "response",
    [answer(2, "b"), answer(1), answer(1, "b"), answer(1, "a", "a"), summary(chunk_count=1), answer(7, "a")],
    ids=["out of order", "no rows", "other row", "too many rows", "summary too early", "unknown chunk"],
)
def test_an_unexpected_answer_is_an_error(response: pb.StreamSegmentResponse) -> None:
    window = window_of()
    window.add(["a"])
    window.add(["b"])
    with pytest.raises(DataLoss):
        window.accept(response)


def test_an_end_without_summary_is_an_error() -> None:
    with pytest.raises(DataLoss, match="without its summary"):
        window_of().check_end()


def test_every_user_of_a_refused_chunk_gets_its_status() -> None:
    window = window_of()
    window.add(["a", "b"])
    status = RowStatus(code=5, reason="NOT_FOUND")
    rows = window.accept(pb.StreamSegmentResponse(chunk=pb.SegmentChunk(chunk_id=1, status=status)))
    assert [(row.user_id, row.status.reason) for row in rows or ()] == [("a", "NOT_FOUND"), ("b", "NOT_FOUND")]
    assert window.counts.failed_count == 2


def test_ids_that_cannot_be_sent_are_refused_alone_and_named() -> None:
    window = window_of()
    request = window.add(["a", "\udce9", "x" * 5000])
    assert list(request.user_ids) == ["a", "", ""]
    refused = pb.SegmentRow(user_id="", status=RowStatus(code=3))
    response = answer(1, "a")
    response.chunk.rows.extend([refused, refused])
    rows = window.accept(response) or []
    assert [row.user_id for row in rows] == ["a", "\\udce9", "x" * 4096]
    assert rows[1].status.message == "The user id is not valid UTF-8"


def test_there_are_more_attempts_to_reconnect_after_the_first_answer() -> None:
    def pauses(window: Window[pb.SegmentRow]) -> list[float]:
        return list(iter(window.back_off, None))

    fresh, answered = window_of(), window_of()
    answered.add(["a"])
    answered.accept(answer(1, "a"))
    assert len(pauses(fresh)) == 2
    waits = pauses(answered)
    assert (len(waits), max(waits) <= 6.0) == (8, True)


@pytest.mark.parametrize("settings", [(0, 1, 1.0), (1025, 1, 1.0), (1, 0, 1.0), (1, 1, 0.0), (1, 1, float("nan"))])
def test_settings_out_of_range_are_refused(settings: tuple[int, int, float]) -> None:
    with pytest.raises(InvalidArgument):
        StreamSettings(*settings)
