"""The window of a stream: waiting chunks, counts and reconnects, without a server."""

import pytest
from google.rpc.status_pb2 import Status
from segrec.errors import DataLoss, InvalidArgument, NotFound, SegrecError, Unavailable, error_of_status, status_of
from segrec.requests import stream_recommend_config, stream_segment_config
from segrec.v1 import segrec_service_pb2 as pb
from segrec.window import StreamSettings, Window


def window_of(max_in_flight: int = 2) -> Window[pb.SegmentRow]:
    return Window(stream_segment_config(0), pb.SegmentRow, max_in_flight)


def answer(chunk_id: int, *user_ids: str) -> pb.StreamSegmentResponse:
    rows = [pb.SegmentRow(user_id=user_id, result=pb.SegmentResponse()) for user_id in user_ids]
    return pb.StreamSegmentResponse(chunk=pb.SegmentChunk(chunk_id=chunk_id, rows=rows))


def summary(**counts: int) -> pb.StreamSegmentResponse:
    return pb.StreamSegmentResponse(summary=pb.StreamSummary(**counts))


def test_only_unanswered_chunks_are_sent_again() -> None:
    window = window_of()
    first, second = window.add(["a"]), window.add(["b"])
    assert window.is_full
    assert window.accept(answer(first.chunk.chunk_id, "a"))
    assert window.reconnect()[1:] == [second]
    assert window.accept(answer(second.chunk.chunk_id, "b"))
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
    status = status_of(NotFound("gone", reason="RELEASE_NOT_LOADED"))
    [rows] = window.accept(pb.StreamSegmentResponse(chunk=pb.SegmentChunk(chunk_id=1, status=status)))
    assert [(row.user_id, row.status) for row in rows] == [("a", status), ("b", status)]
    assert window.counts.failed_count == 2


def test_ids_that_cannot_be_sent_are_refused_alone_and_named() -> None:
    window = window_of()
    request = window.add(["a", "\udce9", "x" * 5000])
    assert list(request.chunk.user_ids) == ["a", "", ""]
    refused = pb.SegmentRow(user_id="", status=Status(code=3))
    response = answer(1, "a")
    response.chunk.rows.extend([refused, refused])
    [rows] = window.accept(response)
    assert [row.user_id for row in rows] == ["a", "\\udce9", "x" * 4096]
    assert rows[1].status.message == "The user id is not valid UTF-8"
    assert [error_of_status(row.status).reason for row in rows[1:]] == ["ID_NOT_UTF8", "ID_TOO_LONG"]


def pauses(window: Window[pb.SegmentRow], error: SegrecError) -> list[float]:
    return list(iter(lambda: window.back_off(error), None))


def test_there_are_more_attempts_to_reconnect_after_the_first_answer() -> None:
    fresh, answered = window_of(), window_of()
    answered.add(["a"])
    answered.accept(answer(1, "a"))
    assert len(pauses(fresh, Unavailable("gone"))) == 2
    waits = pauses(answered, Unavailable("gone"))
    assert (len(waits), max(waits) <= 6.0) == (8, True)


@pytest.mark.parametrize("reason", ["SHUTTING_DOWN", "OVERLOADED"])
def test_a_server_that_is_there_is_asked_more_often_and_after_its_delay(reason: str) -> None:
    waits = pauses(window_of(), Unavailable("later", reason=reason, retry_seconds=3.0))
    assert (len(waits), min(waits) >= 2.4) == (8, True)


def degraded(chunk_id: int, *user_ids: str) -> pb.StreamSegmentResponse:
    """An answer in which the users whose id begins with `d` have degraded rows."""
    response = answer(chunk_id, *user_ids)
    for row in response.chunk.rows:
        row.result.info.degraded = row.user_id.startswith("d")
    return response


def user_ids(chunks: list[list[pb.SegmentRow]]) -> list[list[str]]:
    return [[row.user_id for row in rows] for rows in chunks]


def test_degraded_rows_are_asked_again_and_the_rows_stay_in_order() -> None:
    window = window_of(4)
    window.add(["a", "d1", "b", "d2"])
    window.add(["c"])
    assert window.accept(degraded(1, "a", "d1", "b", "d2")) == []
    [repeat] = window.repeats()
    assert (list(repeat.chunk.user_ids), window.is_full, window.repeats()) == (["d1", "d2"], True, [])
    assert window.accept(answer(2, "c")) == []
    chunks = window.accept(answer(repeat.chunk.chunk_id, "d1", "d2"))
    assert user_ids(chunks) == [["a", "d1", "b", "d2"], ["c"]]
    assert not window.is_full
    assert window.is_empty
    window.accept(summary(chunk_count=3, received_count=7, answered_count=7, degraded_count=2))
    expected = pb.StreamSummary(chunk_count=2, received_count=5, answered_count=5)
    assert (window.counts, window.summary is not None) == (expected, True)


def test_rows_that_stay_degraded_are_returned_after_the_second_answer() -> None:
    window = window_of()
    window.add(["d", "a"])
    window.accept(degraded(1, "d", "a"))
    [repeat] = window.repeats()
    chunks = window.accept(degraded(repeat.chunk.chunk_id, "d"))
    assert user_ids(chunks) == [["d", "a"]]
    assert [row.result.info.degraded for row in chunks[0]] == [True, False]
    assert window.repeats() == []
    assert window.counts.degraded_count == 1


def test_a_repeat_that_was_not_answered_is_sent_on_the_next_connection() -> None:
    window = window_of()
    window.add(["d"])
    window.accept(degraded(1, "d"))
    [repeat] = window.repeats()
    assert window.reconnect()[1:] == [repeat]
    assert user_ids(window.accept(answer(repeat.chunk.chunk_id, "d"))) == [["d"]]
    window.accept(summary(chunk_count=1, received_count=1, answered_count=1))


def test_a_stream_keeps_its_release_on_the_next_connection() -> None:
    window = window_of()
    first, _ = window.add(["a"]), window.add(["b"])
    assert not window.reconnect()[0].config.HasField("base_release")
    response = answer(first.chunk.chunk_id, "a")
    response.chunk.release = 7
    window.accept(response)
    config, *chunks = window.reconnect()
    assert (window.base_release, config.config.base_release) == (7, 7)
    assert [request.chunk.chunk_id for request in chunks] == [2]


def test_a_pinned_stream_stays_pinned_on_the_next_connection() -> None:
    window = Window(stream_segment_config("canary"), pb.SegmentRow, 2)
    response = answer(window.add(["a"]).chunk.chunk_id, "a")
    response.chunk.release = 7
    window.accept(response)
    [config] = window.reconnect()
    assert (window.base_release, config.config) == (0, stream_segment_config("canary").config)


def recommended(chunk_id: int, *users: str, has_more: bool) -> pb.StreamRecommendResponse:
    rows = [pb.RecommendRow(user_id=user_id, result=pb.RecommendResponse()) for user_id in users]
    return pb.StreamRecommendResponse(chunk=pb.RecommendChunk(chunk_id=chunk_id, rows=rows, has_more=has_more))


def test_the_parts_of_an_answer_become_one_chunk_which_a_lost_connection_begins_anew() -> None:
    window = Window(stream_recommend_config(0, {}), pb.RecommendRow, 2)
    window.add(["a", "b", "c"])
    assert window.accept(recommended(1, "a", "b", has_more=True)) == []
    window.reconnect()
    assert window.accept(recommended(1, "a", has_more=True)) == []
    assert window.accept(recommended(1, "b", has_more=True)) == []
    [rows] = window.accept(recommended(1, "c", has_more=False))
    assert [row.user_id for row in rows] == ["a", "b", "c"]
    assert (window.counts.chunk_count, window.counts.received_count) == (1, 3)


@pytest.mark.parametrize("settings", [(0, 1, 1.0), (1025, 1, 1.0), (1, 0, 1.0), (1, 1, 0.0), (1, 1, float("nan"))])
def test_settings_out_of_range_are_refused(settings: tuple[int, int, float]) -> None:
    with pytest.raises(InvalidArgument):
        StreamSettings(*settings)
