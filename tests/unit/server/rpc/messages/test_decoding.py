"""Requests with strings that are not UTF-8."""

from segrec.v1.common_pb2 import Event, EventList
from segrec.v1.segrec_service_pb2 import RecommendRequest, SegmentRequest, UserChunk

from server.rpc.messages.decoding import NOT_UTF8, UNREADABLE, tolerant_deserializer

chunk = tolerant_deserializer(UserChunk.FromString, UserChunk.DESCRIPTOR)


def spoiled(message: bytes) -> bytes:
    """The message with its @ replaced by a byte that never occurs in UTF-8."""
    assert message.count(b"@") == 1
    return message.replace(b"@", b"\xff")


def test_a_valid_message_is_read_unchanged() -> None:
    message = UserChunk(chunk_id=3, user_ids=["a", "é"])
    assert chunk(message.SerializeToString()) == message


def test_one_bad_id_does_not_change_the_others() -> None:
    sent = UserChunk(chunk_id=3, user_ids=["a", "b@", "用户"]).SerializeToString()
    read = chunk(spoiled(sent))
    assert read == UserChunk(chunk_id=3, user_ids=["a", NOT_UTF8 + "b\ufffd", "用户"])


def test_bad_strings_in_single_and_nested_fields_are_replaced_too() -> None:
    segment = tolerant_deserializer(SegmentRequest.FromString, SegmentRequest.DESCRIPTOR)
    assert segment(spoiled(SegmentRequest(user_id="@").SerializeToString())) == SegmentRequest(
        user_id=NOT_UTF8 + "\ufffd"
    )
    recommend = tolerant_deserializer(RecommendRequest.FromString, RecommendRequest.DESCRIPTOR)
    sent = RecommendRequest(events=EventList(events=[Event(item_id="a"), Event(item_id="@")]))
    sent.options.top_k = 3
    read = recommend(spoiled(sent.SerializeToString()))
    sent.events.events[1].item_id = NOT_UTF8 + "\ufffd"
    assert read == sent


def test_data_that_is_not_a_message_is_unreadable() -> None:
    assert chunk(b"\xff\xff\xff") is UNREADABLE
