"""Options of one call: what is sent, what is refused by name, and which names do not exist."""

from typing import Any

import pytest
from segrec import SegrecClient
from segrec.calls import Call, CallOptions
from segrec.errors import InvalidArgument


def test_the_metadata_of_a_call_follow_those_of_the_client() -> None:
    options = CallOptions(timeout=3, metadata={"x-team": "ada", "trace-bin": b"\0"}, request_id="r-1")
    call = Call.of(options, (("authorization", "Bearer t"),), 5.0)
    assert call.metadata[0] == ("authorization", "Bearer t")
    assert call.metadata[1:] == (("x-team", "ada"), ("trace-bin", b"\0"), ("x-request-id", "r-1"))
    assert 2 < (call.seconds_left() or 0) <= 3


def test_the_deadline_of_the_client_counts_without_one_of_the_call() -> None:
    assert Call.of({}, (), 5.0).timeout == Call.of({"timeout": None}, (), 5.0).timeout == 5.0
    assert Call.of({}, (), None).seconds_left() is None


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"timeout": 0}, "timeout"),
        ({"timeout": "2"}, "timeout"),
        ({"timeout": float("inf")}, "timeout"),
        ({"metadata": [("a", "b")]}, "metadata"),
        ({"metadata": {"Upper": "b"}}, "metadata"),
        ({"metadata": {"grpc-timeout": "1S"}}, "metadata"),
        ({"metadata": {"a": "\n"}}, "metadata"),
        ({"metadata": {"a-bin": "text"}}, "metadata"),
        ({"request_id": ""}, "request_id"),
        ({"request_id": "r" * 129}, "request_id"),
        ({"request_id": 7}, "request_id"),
    ],
)
def test_an_option_that_cannot_be_used_is_refused_by_name(options: Any, field: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        Call.of(options, (), 5.0)
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("method", "arguments", "hint"),
    [
        ("recommend", {"topk": 5}, "SegrecClient.recommend has no argument topk: did you mean top_k"),
        ("segment", {"time_out": 5}, "did you mean timeout"),
        ("segment", {"releese": 5}, "did you mean release"),
        ("stream_segment", {"chunksize": 5}, "did you mean chunk_size"),
        ("history", {"zzz": 5}, "it takes limit, metadata, request_id, timeout, user_id"),
    ],
)
def test_a_misspelt_argument_is_named_with_the_nearest_one(method: str, arguments: dict[str, int], hint: str) -> None:
    with SegrecClient() as client, pytest.raises(InvalidArgument, match=hint) as caught:
        getattr(client, method)("u", **arguments)
    assert caught.value.field == next(iter(arguments))


def test_a_misspelt_setting_of_the_client_is_named() -> None:
    with pytest.raises(InvalidArgument, match="SegrecClient has no argument timeout: did you mean timeout_seconds"):
        SegrecClient(timeout=1)  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda client: client.segment(1), "user_id must be a str, not int"),
        (lambda client: client.recommend(b"1"), "user_id must be a str, not bytes"),
        (lambda client: client.history(2.0), "user_id must be a str, not float"),
        (lambda client: client.recommend("1", top_k="5"), "top_k cannot be sent as str"),
        (lambda client: client.recommend("1", exclude_item_ids=[3]), "exclude_item_ids cannot be sent as list"),
        (lambda client: client.segment(events=[{"item": "i"}]), "events cannot be sent as list.*item"),
        (lambda client: list(client.stream_segment(["1", 2])), "user_ids must be a str, not int"),
    ],
)
def test_values_of_other_types_are_refused_by_name(call: Any, sentence: str) -> None:
    with SegrecClient("127.0.0.1:1") as client, pytest.raises(InvalidArgument, match=sentence):
        call(client)
