"""SegrecService against the real server and the real Triton."""

from queue import SimpleQueue
from typing import Any

import grpc
import numpy as np
import pytest
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo
from grpc_status import rpc_status
from segrec.errors import error_of_call, error_of_status
from segrec.v1 import common_pb2, event_service_pb2, model_service_pb2
from segrec.v1 import segrec_service_pb2 as pb

from server.core.history import History, history_of
from server.rpc.messages.conversion import event_message
from tests.support.releases import CONFIDENCE, group_history, item_id
from tests.support.server import Stubs
from tests.support.stream_messages import recommend_messages, segment_messages


def events_of(history: History) -> list[common_pb2.Event]:
    return [event_message(event) for event in history.events()]


def record(stubs: Stubs, user_id: str, history: History) -> None:
    events = [event_service_pb2.UserEvent(user_id=user_id, event=event) for event in events_of(history)]
    response = stubs.events.RecordEvents(event_service_pb2.RecordEventsRequest(events=events))
    assert (response.stored_count, len(response.refused)) == (len(events), 0)


def refused(call: Any) -> tuple[grpc.StatusCode, str, str]:
    """Code, reason and field of an error, from google.rpc.Status."""
    status = rpc_status.from_call(call)
    assert status is not None
    info, bad_request = ErrorInfo(), BadRequest()
    assert status.details[0].Unpack(info)
    assert info.domain == "segrec.dev"
    field = ""
    if len(status.details) > 1 and status.details[1].Unpack(bad_request):
        field = bad_request.field_violations[0].field
    return call.code(), info.reason, field


@pytest.mark.parametrize("group", range(4))
def test_a_stored_user_is_in_the_segment_of_its_items(stubs: Stubs, group: int) -> None:
    record(stubs, f"segment-{group}", group_history(group))
    response = stubs.segrec.Segment(pb.SegmentRequest(user_id=f"segment-{group}"))
    assert response.assignment.state == pb.SEGMENT_STATE_ASSIGNED
    assert response.assignment.segment_id == group + 1
    assert 0 < response.assignment.distance < response.assignment.runner_up_distance <= 2
    assert response.info == common_pb2.AnswerInfo(release=3, history_event_count=10)


def mixed_history(length: int) -> History:
    """Events of two groups in turn: a place in the middle of segments 1 and 2."""
    one, other = (group_history(group, length).events() for group in (0, 1))
    return history_of(pair[place % 2] for place, pair in enumerate(zip(one, other, strict=True)))


def test_the_confidence_is_that_of_the_margin_between_two_segments(stubs: Stubs) -> None:
    record(stubs, "sure", group_history(1))
    place = stubs.segrec.Segment(pb.SegmentRequest(user_id="sure")).assignment
    gap, reach = place.runner_up_distance - place.distance, place.runner_up_distance + place.distance
    expected = np.interp(gap / reach, CONFIDENCE.margins, CONFIDENCE.stays)
    assert place.state == pb.SEGMENT_STATE_ASSIGNED
    assert place.confidence == pytest.approx(expected, abs=1e-5)
    assert not place.short_history


def test_a_user_between_two_segments_has_no_confident_one_and_is_recommended_items_all_the_same(stubs: Stubs) -> None:
    record(stubs, "torn", mixed_history(10))
    answer = stubs.segrec.Recommend(pb.RecommendRequest(user_id="torn", options=pb.RecommendOptions(top_k=5)))
    place = answer.assignment
    assert place.state == pb.SEGMENT_STATE_NO_CONFIDENT_SEGMENT
    assert {place.segment_id, place.runner_up_segment_id} == {1, 2}
    assert place.label
    assert 0 < place.confidence < CONFIDENCE.min_confidence
    assert len(answer.items) == 5
    assert stubs.segrec.Segment(pb.SegmentRequest(user_id="torn")).assignment == place
    [chunk, _] = stubs.segrec.StreamSegment(segment_messages(["torn"]))
    assert chunk.chunk.rows[0].result.assignment == place


@pytest.mark.parametrize("length", [2, 3])
def test_a_short_history_is_said_to_be_short(stubs: Stubs, length: int) -> None:
    record(stubs, f"short-{length}", group_history(0, length))
    place = stubs.segrec.Segment(pb.SegmentRequest(user_id=f"short-{length}")).assignment
    assert place.segment_id == 1
    assert place.short_history == (length < CONFIDENCE.min_history)


def test_the_release_tells_its_thresholds(stubs: Stubs) -> None:
    release = stubs.models.GetRelease(model_service_pb2.GetReleaseRequest(release=3)).release
    assert (release.min_confidence, release.min_history, release.min_segment_size) == (0.5, 3, 100)
    [listed] = stubs.models.ListReleases(model_service_pb2.ListReleasesRequest()).releases
    assert listed == release


def test_segments_come_with_what_became_of_those_before(stubs: Stubs) -> None:
    whole = stubs.segrec.ListSegments(pb.ListSegmentsRequest()).migration
    flows = [(flow.from_segment_id, flow.to_segment_id, flow.user_count) for flow in whole.flows]
    assert flows == [(1, 1, 150), (1, 4, 150), (2, 2, 100), (0, 3, 102)]
    assert (whole.previous_release, whole.user_count) == (2, 400)
    assert (list(whole.born_segment_ids), list(whole.retired_segment_ids)) == ([3, 4], [9])
    split = pb.SegmentChange(from_segment_ids=[1], to_segment_ids=[1, 4])
    assert (list(whole.splits), list(whole.merges)) == ([split], [])
    part = stubs.segrec.GetSegment(pb.GetSegmentRequest(segment_id=4)).migration
    assert [(flow.from_segment_id, flow.to_segment_id) for flow in part.flows] == [(1, 4)]
    assert (list(part.born_segment_ids), list(part.retired_segment_ids)) == ([4], [])
    assert list(part.splits) == [split]
    other = stubs.segrec.GetSegment(pb.GetSegmentRequest(segment_id=2)).migration
    assert ([flow.user_count for flow in other.flows], list(other.splits)) == ([100], [])


def test_inline_events_give_what_the_stored_history_gives(stubs: Stubs) -> None:
    history = group_history(1, 30)
    record(stubs, "inline-twin", history)
    stored = stubs.segrec.Segment(pb.SegmentRequest(user_id="inline-twin"))
    inline = stubs.segrec.Segment(pb.SegmentRequest(events=common_pb2.EventList(events=events_of(history))))
    assert inline.assignment.segment_id == stored.assignment.segment_id
    assert inline.assignment.distance == pytest.approx(stored.assignment.distance, abs=1e-5)
    assert inline.info == stored.info


def test_the_very_next_answer_sees_a_recorded_event(stubs: Stubs) -> None:
    record(stubs, "moves", group_history(0, 4))
    before = stubs.segrec.Segment(pb.SegmentRequest(user_id="moves"))
    record(stubs, "moves", group_history(2, 32))
    after = stubs.segrec.Segment(pb.SegmentRequest(user_id="moves"))
    assert (before.assignment.segment_id, after.assignment.segment_id) == (1, 3)
    assert after.info.history_event_count == 32


def test_an_unknown_user_gets_no_segment_and_the_popular_items(stubs: Stubs) -> None:
    segment = stubs.segrec.Segment(pb.SegmentRequest(user_id="nobody"))
    assert segment.assignment == pb.SegmentAssignment(state=pb.SEGMENT_STATE_NO_HISTORY, short_history=True)
    assert segment.info == common_pb2.AnswerInfo(release=3)
    response = stubs.segrec.Recommend(pb.RecommendRequest(user_id="nobody"))
    assert [item.item_id for item in response.items] == [item_id(number) for number in range(3, 13)]
    assert {item.reason for item in response.items} == {pb.ITEM_REASON_POPULAR}
    assert not response.info.degraded


def test_unknown_items_and_actions_are_ignored_and_counted(stubs: Stubs) -> None:
    known = events_of(group_history(1, 3))
    strange = [common_pb2.Event(item_id="?", action="view"), common_pb2.Event(item_id=item_id(1), action="?")]
    response = stubs.segrec.Segment(pb.SegmentRequest(events=common_pb2.EventList(events=[*strange, *known])))
    assert response.assignment.segment_id == 2
    assert (response.info.history_event_count, response.info.ignored_event_count) == (3, 2)
    nothing = stubs.segrec.Segment(pb.SegmentRequest(events=common_pb2.EventList(events=strange)))
    assert nothing.assignment.state == pb.SEGMENT_STATE_NO_HISTORY
    assert nothing.info.ignored_event_count == 2


def test_recommendations_name_title_reason_and_what_was_seen(stubs: Stubs) -> None:
    record(stubs, "buyer", group_history(0, 5))
    response = stubs.segrec.Recommend(
        pb.RecommendRequest(user_id="buyer", options=pb.RecommendOptions(top_k=13, strategy=pb.STRATEGY_PERSONAL))
    )
    seen = {item.item_id for item in response.items if item.seen}
    assert len(response.items) == 13
    assert seen == {item_id(1), item_id(5), item_id(9), item_id(13), item_id(17)}
    assert all(item.title.endswith("of release 3") for item in response.items)
    assert np.all(np.diff([item.score for item in response.items]) <= 0)
    assert response.assignment.segment_id == 1


def test_options_shape_the_answer(stubs: Stubs) -> None:
    record(stubs, "choosy", group_history(0, 5))
    options = pb.RecommendOptions(top_k=50, exclude_seen=True, exclude_categories=["category-2"])
    items = stubs.segrec.Recommend(pb.RecommendRequest(user_id="choosy", options=options)).items
    expected = {item_id(n) for n in range(1, 51) if n % 4 != 2} - {item_id(n) for n in (1, 5, 9, 13, 17)}
    assert {item.item_id for item in items} == expected


@pytest.mark.parametrize(
    ("request_", "field", "reason"),
    [
        (pb.SegmentRequest(), "user_id", "SUBJECT_MISSING"),
        (pb.SegmentRequest(user_id=""), "user_id", "ID_EMPTY"),
        (pb.SegmentRequest(user_id="x" * 257), "user_id", "ID_TOO_LONG"),
        (pb.SegmentRequest(user_id="a\n"), "user_id", "ID_CONTROL_CHARACTER"),
        (pb.SegmentRequest(user_id="a", release=-1), "release", "RELEASE_OUT_OF_RANGE"),
        (pb.SegmentRequest(events=common_pb2.EventList()), "events.events", "EVENT_COUNT_OUT_OF_RANGE"),
        (
            pb.SegmentRequest(events=common_pb2.EventList(events=[common_pb2.Event(item_id="i", action="")])),
            "events.events[0].action",
            "ID_EMPTY",
        ),
    ],
)
def test_bad_requests_are_refused_with_the_fields_path_and_a_reason(
    stubs: Stubs, request_: pb.SegmentRequest, field: str, reason: str
) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        stubs.segrec.Segment(request_)
    assert refused(caught.value) == (grpc.StatusCode.INVALID_ARGUMENT, reason, field)


def test_an_id_that_is_not_utf8_is_refused_with_the_fields_path(stubs: Stubs) -> None:
    call: Any = stubs.channel.unary_unary("/segrec.v1.SegrecService/Segment")
    with pytest.raises(grpc.RpcError) as caught:
        call(b"\x0a\x02a\xff")
    assert refused(caught.value) == (grpc.StatusCode.INVALID_ARGUMENT, "ID_NOT_UTF8", "user_id")


def test_what_is_no_message_is_refused_in_a_call_and_in_a_stream(stubs: Stubs) -> None:
    call: Any = stubs.channel.unary_unary("/segrec.v1.SegrecService/Segment")
    with pytest.raises(grpc.RpcError, match="not a message") as caught:
        call(b"\xff\xff\xff")
    assert refused(caught.value) == (grpc.StatusCode.INVALID_ARGUMENT, "MESSAGE_UNREADABLE", "")
    stream: Any = stubs.channel.stream_stream("/segrec.v1.SegrecService/StreamSegment")
    with pytest.raises(grpc.RpcError, match="not a message") as caught:
        list(stream(iter([b"\xff\xff\xff"]), timeout=30))
    assert refused(caught.value) == (grpc.StatusCode.INVALID_ARGUMENT, "MESSAGE_UNREADABLE", "")


@pytest.mark.parametrize("top_k", [0, 501])
def test_top_k_out_of_range_is_refused(stubs: Stubs, top_k: int) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        stubs.segrec.Recommend(pb.RecommendRequest(user_id="a", options=pb.RecommendOptions(top_k=top_k)))
    assert refused(caught.value) == (grpc.StatusCode.INVALID_ARGUMENT, "TOP_K_OUT_OF_RANGE", "options.top_k")


def test_an_unknown_release_or_segment_is_not_found(stubs: Stubs) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        stubs.segrec.Segment(pb.SegmentRequest(user_id="a", release=99))
    assert refused(caught.value) == (grpc.StatusCode.NOT_FOUND, "RELEASE_NOT_LOADED", "release")
    with pytest.raises(grpc.RpcError) as caught:
        stubs.segrec.GetSegment(pb.GetSegmentRequest(segment_id=99))
    assert refused(caught.value) == (grpc.StatusCode.NOT_FOUND, "SEGMENT_NOT_FOUND", "segment_id")


def test_segments_are_listed_largest_first_and_found_one_by_one(stubs: Stubs) -> None:
    listed = stubs.segrec.ListSegments(pb.ListSegmentsRequest())
    assert listed.release == 3
    assert sorted(segment.segment_id for segment in listed.segments) == [1, 2, 3, 4]
    counts = [segment.user_count for segment in listed.segments]
    assert counts == sorted(counts, reverse=True)
    for segment in listed.segments:
        assert stubs.segrec.GetSegment(pb.GetSegmentRequest(segment_id=segment.segment_id)).segment == segment
        assert segment.top_items
        assert segment.particular_items
        assert segment.label


def test_segments_come_in_pages_of_one_release(stubs: Stubs) -> None:
    whole = stubs.segrec.ListSegments(pb.ListSegmentsRequest())
    first = stubs.segrec.ListSegments(pb.ListSegmentsRequest(page_size=3))
    rest = stubs.segrec.ListSegments(pb.ListSegmentsRequest(page_size=3, page_token=first.next_page_token))
    assert [*first.segments, *rest.segments] == list(whole.segments)
    assert (first.total_size, rest.next_page_token, rest.release) == (4, "", whole.release)


def test_a_segment_is_told_in_figures_and_in_a_sentence(stubs: Stubs) -> None:
    told = stubs.segrec.GetSegment(pb.GetSegmentRequest(segment_id=2)).segment
    assert told.description == "Sentence 2 of release 3."
    trait = {"name": "category-2", "share": 0.9, "lift": 4.0, "lift_low": 2.0, "user_count": 91}
    assert told.traits == [pb.Trait(kind=pb.TRAIT_KIND_CATEGORY, **trait)]  # type: ignore[arg-type]
    title = "Item {} of release 3"
    own = pb.SegmentItem(item_id="item-002", title=title.format(2), user_share=0.75, lift=2, lift_low=1.5)
    common = pb.SegmentItem(item_id="item-001", title=title.format(1), user_share=0.95, lift=1, lift_low=0.5)
    assert list(told.top_items) == [common, own]
    assert list(told.particular_items) == [own]
    assert told.growth == 0.25
    assert told.activity == pb.Activity(mean_events=10, median_events=8, mean_active_days=4, mean_days_since_last=2.5)
    assert [(action.action, action.share, action.lift) for action in told.actions] == [
        ("view", 0.75, 1.5),
        ("cart", 0.25, 0.5),
    ]
    assert list(told.hours) == [0.0] * 8 + [1.0] + [0.0] * 15
    assert list(told.weekdays) == [0.25, 0.25, 0.5, 0, 0, 0, 0]
    assert told.spend == pb.Spend(mean_value=2, mean_total=20, median_total=16)


def test_figures_that_a_segment_lacks_are_unset(stubs: Stubs) -> None:
    told = stubs.segrec.GetSegment(pb.GetSegmentRequest(segment_id=1)).segment
    assert not told.HasField("growth")
    assert not told.HasField("spend")
    assert told.HasField("activity")


def test_a_stream_answers_every_id_in_order_and_counts(stubs: Stubs) -> None:
    for group in range(4):
        record(stubs, f"stream-{group}", group_history(group))
    users = [f"stream-{n % 4}" for n in range(40)]
    *answers, last = stubs.segrec.StreamSegment(segment_messages(users[:15], ["nobody"], users[15:], [], first_id=10))
    assert [answer.chunk.chunk_id for answer in answers] == [10, 11, 12, 13]
    rows = [row for answer in answers for row in answer.chunk.rows]
    assert [row.user_id for row in rows] == [*users[:15], "nobody", *users[15:]]
    found = [row.result.assignment.segment_id for row in rows if row.user_id != "nobody"]
    assert found == [n % 4 + 1 for n in range(40)]
    assert last.summary == pb.StreamSummary(chunk_count=4, received_count=41, answered_count=41)


def test_bad_ids_cost_a_stream_their_row_only(stubs: Stubs) -> None:
    record(stubs, "good", group_history(1))
    sent = ["good", "", "x" * 300, "\0bad", "good"]
    [answer, last] = stubs.segrec.StreamSegment(segment_messages(sent))
    assert [row.user_id for row in answer.chunk.rows] == sent
    outcomes = [row.WhichOneof("outcome") for row in answer.chunk.rows]
    assert outcomes == ["result", "status", "status", "status", "result"]
    assert [error_of_status(row.status).field for row in answer.chunk.rows] == [
        "",
        "user_ids[1]",
        "user_ids[2]",
        "user_ids[3]",
        "",
    ]
    assert answer.chunk.rows[1].status.code == grpc.StatusCode.INVALID_ARGUMENT.value[0]
    assert last.summary == pb.StreamSummary(chunk_count=1, received_count=5, answered_count=2, failed_count=3)


def test_an_id_that_is_not_utf8_costs_a_stream_its_row_only(stubs: Stubs) -> None:
    record(stubs, "fine", group_history(1))
    call: Any = stubs.channel.stream_stream(
        "/segrec.v1.SegrecService/StreamSegment", response_deserializer=pb.StreamSegmentResponse.FromString
    )
    config, chunk = (message.SerializeToString() for message in segment_messages(["fine", "b@d"]))
    [answer, last] = call(iter([config, chunk.replace(b"@", b"\xff")]))
    assert answer.chunk.rows[0].result.assignment.segment_id == 2
    assert answer.chunk.rows[1].user_id == "b\ufffdd"
    assert "UTF-8" in answer.chunk.rows[1].status.message
    assert (last.summary.answered_count, last.summary.failed_count) == (1, 1)


def test_a_refused_chunk_does_not_end_the_stream(stubs: Stubs) -> None:
    record(stubs, "after", group_history(0))
    messages = segment_messages(["u"] * 1025, ["after"], release=3)
    first, second, last = stubs.segrec.StreamSegment(messages)
    assert (error_of_status(first.chunk.status).field, len(first.chunk.rows)) == ("user_ids", 0)
    assert second.chunk.rows[0].result.assignment.segment_id == 1
    assert last.summary == pb.StreamSummary(chunk_count=2, received_count=1026, answered_count=1, failed_count=1025)


CONFIG = pb.StreamSegmentRequest(config=pb.StreamSegmentConfig())
CHUNK = pb.StreamSegmentRequest(chunk=pb.UserChunk(chunk_id=1, user_ids=["a"]))


@pytest.mark.parametrize(
    ("messages", "code", "field"),
    [
        ([], "INVALID_ARGUMENT", "config"),
        ([CHUNK], "INVALID_ARGUMENT", "config"),
        ([CONFIG, CHUNK, CONFIG], "INVALID_ARGUMENT", "config"),
        ([CONFIG, pb.StreamSegmentRequest()], "INVALID_ARGUMENT", "payload"),
        (list(segment_messages(["a"], release=99)), "NOT_FOUND", "config.release"),
        (list(segment_messages(["a"], release=0)), "INVALID_ARGUMENT", "config.release"),
        (list(segment_messages(["a"], release_alias=2)), "NOT_FOUND", "config.release_alias"),
        (list(segment_messages(["a"], base_release=0)), "INVALID_ARGUMENT", "config.base_release"),
        (list(segment_messages(["a"], base_release=99)), "FAILED_PRECONDITION", "config.base_release"),
    ],
    ids=[
        "nothing",
        "no config",
        "two configs",
        "empty message",
        "unknown release",
        "release 0",
        "no canary",
        "base 0",
        "base gone",
    ],
)
def test_a_wrong_configuration_ends_a_stream(
    stubs: Stubs, messages: list[pb.StreamSegmentRequest], code: str, field: str
) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        list(stubs.segrec.StreamSegment(iter(messages)))
    error = error_of_call(caught.value, "")
    assert (error.code.name, error.field) == (code, field)


def test_a_stream_answers_each_chunk_before_the_next_is_sent(stubs: Stubs) -> None:
    """A client may wait for each answer: the server must not hold one back until it reads more."""
    record(stubs, "patient", group_history(3))
    outbox: SimpleQueue[pb.StreamSegmentRequest | None] = SimpleQueue()
    answers = stubs.segrec.StreamSegment(iter(outbox.get, None), timeout=30)
    outbox.put(CONFIG)
    for chunk_id in range(5):
        outbox.put(pb.StreamSegmentRequest(chunk=pb.UserChunk(chunk_id=chunk_id, user_ids=["patient"])))
        assert next(answers).chunk.chunk_id == chunk_id
    outbox.put(None)
    [last] = answers
    assert last.summary.answered_count == 5


def test_recommendations_stream_as_single_ones_answer(stubs: Stubs) -> None:
    users = []
    for group in range(4):
        record(stubs, f"batch-{group}", group_history(group, 5 + group))
        users.append(f"batch-{group}")
    users.append("nobody")
    options = pb.RecommendOptions(top_k=7, exclude_seen=True)
    [answer, last] = stubs.segrec.StreamRecommend(recommend_messages(users, options=options))
    for row in answer.chunk.rows:
        single = stubs.segrec.Recommend(pb.RecommendRequest(user_id=row.user_id, options=options))
        assert [item.item_id for item in row.result.items] == [item.item_id for item in single.items]
        assert row.result.info == single.info
    assert last.summary.answered_count == 5


def test_bad_options_end_a_stream_of_recommendations(stubs: Stubs) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        list(stubs.segrec.StreamRecommend(recommend_messages(["a"], options=pb.RecommendOptions(top_k=0))))
    assert error_of_call(caught.value, "").field == "config.options.top_k"


def test_a_request_id_comes_back_in_the_errors_details(stubs: Stubs) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        stubs.segrec.Segment(pb.SegmentRequest(), metadata=(("x-request-id", "abc-1"),))
    status = rpc_status.from_call(caught.value)
    info = ErrorInfo()
    assert status is not None
    assert status.details[0].Unpack(info)
    assert info.metadata["request_id"] == "abc-1"
