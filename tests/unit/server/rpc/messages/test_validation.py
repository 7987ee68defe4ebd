"""Validation of requests: ids, events, histories and options."""

import math

import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from segrec.v1.common_pb2 import Event, EventList
from segrec.v1.segrec_service_pb2 import RecommendOptions
from segrec.v1.segrec_service_pb2 import Strategy as StrategyMessage

from server.core.errors import InvalidArgument
from server.core.ranking.query import Query, Strategy
from server.rpc.messages.decoding import NOT_UTF8
from server.rpc.messages.validation import checked_id, event_of, inline_history, query_of

NOW = 1_800_000_000.0


@pytest.mark.parametrize("value", ["u", "用户1", "a b", "x" * 256, "é" * 128, "-1/%"])
def test_ids_of_every_script_are_allowed(value: str) -> None:
    assert checked_id(value, "user_id") == value


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("", "is empty"),
        ("x" * 257, "257 bytes"),
        ("é" * 129, "258 bytes"),
        ("a\nb", "control character"),
        (NOT_UTF8 + "a\ufffd", "not valid UTF-8"),
        ("\0a", "control character"),
        ("é\x7f", "control character"),
        (" a", "begins or ends with a blank"),
        ("a ", "begins or ends with a blank"),
        ("\u3000é", "begins or ends with a blank"),
    ],
)
def test_the_error_of_a_bad_id_names_the_field_and_the_problem(value: str, message: str) -> None:
    with pytest.raises(InvalidArgument, match=message) as caught:
        checked_id(value, "user_ids[3]")
    assert caught.value.field == "user_ids[3]"


def event(**fields: object) -> Event:
    return Event(**{"item_id": "i", "action": "view", "timestamp": Timestamp(seconds=1000), **fields})  # type: ignore[arg-type]


def test_an_event_is_read() -> None:
    found = event_of(event(value=2.5, timestamp=Timestamp(seconds=5, nanos=7_999_999)), "e", NOW)
    assert (found.item_id, found.action, found.value, found.timestamp) == ("i", "view", 2.5, 5007)


def test_an_event_without_time_or_value_happened_now() -> None:
    found = event_of(Event(item_id="i", action="view"), "e", NOW)
    assert found.timestamp == NOW * 1000
    assert math.isnan(found.value)


@pytest.mark.parametrize(
    ("fields", "path"),
    [
        ({"value": math.nan}, "e.value"),
        ({"value": math.inf}, "e.value"),
        ({"timestamp": Timestamp(seconds=-1)}, "e.timestamp"),
        ({"timestamp": Timestamp(seconds=int(NOW) + 301)}, "e.timestamp"),
        ({"timestamp": Timestamp(seconds=1, nanos=-5)}, "e.timestamp"),
        ({"timestamp": Timestamp(seconds=2**62)}, "e.timestamp"),
        ({"item_id": ""}, "e.item_id"),
        ({"action": "a\0"}, "e.action"),
        ({"event_id": "x" * 257}, "e.event_id"),
    ],
)
def test_the_error_of_a_bad_event_names_the_field(fields: dict[str, object], path: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        event_of(event(**fields), "e", NOW)
    assert caught.value.field == path


def test_an_event_a_little_in_the_future_is_allowed() -> None:
    assert event_of(event(timestamp=Timestamp(seconds=int(NOW) + 299)), "e", NOW).timestamp > NOW * 1000


def test_inline_events_are_put_in_time_order() -> None:
    events = [event(item_id="b", timestamp=Timestamp(seconds=2)), event(item_id="a", timestamp=Timestamp(seconds=1))]
    assert list(inline_history(EventList(events=events), NOW).item_ids) == ["a", "b"]


def test_inline_events_without_times_keep_their_order() -> None:
    events = [event(item_id="b", timestamp=Timestamp(seconds=2)), Event(item_id="a", action="view")]
    assert list(inline_history(EventList(events=events), NOW).item_ids) == ["b", "a"]


@pytest.mark.parametrize("count", [0, 4097])
def test_too_few_or_many_inline_events_are_refused(count: int) -> None:
    with pytest.raises(InvalidArgument, match="1 to 4096"):
        inline_history(EventList(events=[event()] * count), NOW)


def test_options_have_defaults() -> None:
    assert query_of(RecommendOptions()) == Query(10, Strategy.HYBRID)


def test_options_are_read() -> None:
    options = RecommendOptions(
        top_k=3,
        strategy=StrategyMessage.STRATEGY_SEGMENT,
        exclude_seen=False,
        exclude_item_ids=["a"],
        include_categories=["c"],
        diversity=0.5,
    )
    expected = Query(3, Strategy.SEGMENT, False, ("a",), (), ("c",), (), 0.5)
    assert query_of(options) == expected


@pytest.mark.parametrize(
    ("options", "path"),
    [
        (RecommendOptions(top_k=0), "options.top_k"),
        (RecommendOptions(top_k=501), "options.top_k"),
        (RecommendOptions(top_k=-1), "options.top_k"),
        (RecommendOptions(strategy=77), "options.strategy"),  # type: ignore[arg-type]
        (RecommendOptions(diversity=1.5), "options.diversity"),
        (RecommendOptions(diversity=math.nan), "options.diversity"),
        (RecommendOptions(exclude_item_ids=["x"] * 1001), "options.exclude_item_ids"),
        (RecommendOptions(exclude_categories=["x", ""]), "options.exclude_categories[1]"),
        (RecommendOptions(candidate_item_ids=["x" * 300]), "options.candidate_item_ids[0]"),
    ],
)
def test_the_error_of_a_bad_option_names_the_field(options: RecommendOptions, path: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        query_of(options)
    assert caught.value.field == path
