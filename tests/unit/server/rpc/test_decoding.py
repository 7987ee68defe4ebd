from segrec.v1.common_pb2 import Event, EventList
from segrec.v1.segrec_service_pb2 import RecommendRequest, SegmentRequest, StreamSegmentRequest

from server.rpc.decoding import NOT_UTF8, UNREADABLE, tolerant

chunk = tolerant(StreamSegmentRequest.FromString, StreamSegmentRequest.DESCRIPTOR)


def spoiled(message: bytes) -> bytes:
    """The message with its @ made a byte that UTF-8 never has."""
    assert message.count(b"@") == 1
    return message.replace(b"@", b"\xff")


def test_a_good_message_is_read_as_always() -> None:
    message = StreamSegmentRequest(chunk_id=3, user_ids=["a", "é"])
    assert chunk(message.SerializeToString()) == message


def test_one_bad_id_leaves_the_others() -> None:
    sent = StreamSegmentRequest(chunk_id=3, user_ids=["a", "b@", "用户"], release=2).SerializeToString()
    read = chunk(spoiled(sent))
    assert read == StreamSegmentRequest(chunk_id=3, user_ids=["a", NOT_UTF8 + "b\ufffd", "用户"], release=2)


def test_single_and_nested_strings_are_mended_too() -> None:
    segment = tolerant(SegmentRequest.FromString, SegmentRequest.DESCRIPTOR)
    assert segment(spoiled(SegmentRequest(user_id="@").SerializeToString())) == SegmentRequest(
        user_id=NOT_UTF8 + "\ufffd"
    )
    recommend = tolerant(RecommendRequest.FromString, RecommendRequest.DESCRIPTOR)
    sent = RecommendRequest(events=EventList(events=[Event(item_id="a"), Event(item_id="@")]))
    sent.options.top_k = 3
    read = recommend(spoiled(sent.SerializeToString()))
    sent.events.events[1].item_id = NOT_UTF8 + "\ufffd"
    assert read == sent


def test_what_is_no_message_at_all_is_said_to_be_none() -> None:
    assert chunk(b"\xff\xff\xff") is UNREADABLE
