"""EventService against the real server and a real LMDB."""

import math
import time

import grpc
import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from segrec.errors import error_of_call, error_of_status
from segrec.v1 import event_service_pb2 as pb
from segrec.v1 import segrec_service_pb2
from segrec.v1.common_pb2 import Event

from server.rpc.messages.conversion import event_message
from tests.support.releases import group_history
from tests.support.server import Stubs


def event(item_id: str = "item-001", seconds: int = 1000, **fields: object) -> Event:
    return Event(item_id=item_id, action="view", timestamp=Timestamp(seconds=seconds), **fields)  # type: ignore[arg-type]


def record(stubs: Stubs, user_id: str, *events: Event) -> pb.RecordEventsResponse:
    return stubs.events.RecordEvents(
        pb.RecordEventsRequest(events=[pb.UserEvent(user_id=user_id, event=event) for event in events])
    )


def test_what_was_recorded_is_read_back_in_time_order(stubs: Stubs) -> None:
    later, earlier = event("b", 2000, value=2.5), event("a", 1000)
    assert record(stubs, "reader", later, earlier).stored_count == 2
    response = stubs.events.ListEvents(pb.ListEventsRequest(user_id="reader"))
    assert list(response.events) == [later, earlier]
    assert (response.total_size, response.next_page_token) == (2, "")


def test_events_come_in_pages_that_newer_events_do_not_move(stubs: Stubs) -> None:
    record(stubs, "paged", *(event("a", seconds) for seconds in range(1, 6)))
    request = pb.ListEventsRequest(user_id="paged", page_size=2)
    found = []
    while True:
        response = stubs.events.ListEvents(request)
        found.append([stored.timestamp.seconds for stored in response.events])
        record(stubs, "paged", event("b", 100 + len(found)))
        if not response.next_page_token:
            break
        request.page_token = response.next_page_token
    assert found == [[5, 4], [3, 2], [1]]


@pytest.mark.parametrize(("size", "token"), [(-1, ""), (1, "nonsense"), (1, "MS4yLmFiYw")])
def test_a_wrong_page_is_refused(stubs: Stubs, size: int, token: str) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        stubs.events.ListEvents(pb.ListEventsRequest(user_id="u", page_size=size, page_token=token))
    error = error_of_call(caught.value, "")
    assert error.field == ("page_token" if token else "page_size")


def test_a_page_of_one_user_is_none_of_another(stubs: Stubs) -> None:
    record(stubs, "one", event("a", 1), event("b", 2))
    token = stubs.events.ListEvents(pb.ListEventsRequest(user_id="one", page_size=1)).next_page_token
    with pytest.raises(grpc.RpcError, match="page_token is of a list with other filters"):
        stubs.events.ListEvents(pb.ListEventsRequest(user_id="other", page_token=token))


def test_a_repeated_event_is_stored_once(stubs: Stubs) -> None:
    named = event(seconds=5, event_id="e1")
    assert record(stubs, "again", named, event(seconds=6)).stored_count == 2
    response = record(stubs, "again", named, event(seconds=6), event(seconds=7, event_id="e1"), event(seconds=8))
    assert (response.stored_count, response.duplicate_count) == (1, 3)


def test_bad_events_are_refused_by_index_and_the_others_stored(stubs: Stubs) -> None:
    future = int(time.time()) + 3600
    events = [
        event(seconds=1),
        event(seconds=future),
        event(seconds=2, value=math.nan),
        event(seconds=-5),
        event("", 3),
        event(seconds=4),
        event(seconds=4),
    ]
    response = record(stubs, "picky", *events)
    assert [refused.index for refused in response.refused] == [1, 2, 3, 4]
    fields = [error_of_status(refused.status).field for refused in response.refused]
    names = ["timestamp", "value", "timestamp", "item_id"]
    assert fields == [f"events[{index}].event.{name}" for index, name in zip([1, 2, 3, 4], names, strict=True)]
    assert response.stored_count + response.duplicate_count + len(response.refused) == len(events)
    assert stubs.events.ListEvents(pb.ListEventsRequest(user_id="picky")).total_size == 2


def test_a_bad_user_id_costs_its_own_events_only(stubs: Stubs) -> None:
    events = [pb.UserEvent(user_id="x" * 257, event=event()), pb.UserEvent(user_id="fine-user", event=event())]
    response = stubs.events.RecordEvents(pb.RecordEventsRequest(events=events))
    assert (response.stored_count, [refused.index for refused in response.refused]) == (1, [0])
    assert error_of_status(response.refused[0].status).field == "events[0].user_id"


@pytest.mark.parametrize("count", [0, 1025])
def test_too_few_or_many_events_are_refused(stubs: Stubs, count: int) -> None:
    with pytest.raises(grpc.RpcError, match=f"events has {count} entries"):
        record(stubs, "u", *[event()] * count)


def test_an_erased_user_is_forgotten_at_once(stubs: Stubs) -> None:
    record(stubs, "forgotten", *(event_message(event) for event in group_history(1).events()))
    segment = segrec_service_pb2.SegmentRequest(user_id="forgotten")
    assert stubs.segrec.Segment(segment).assignment.segment_id == 2
    receipt = stubs.events.EraseUser(pb.EraseUserRequest(user_id="forgotten"))
    assert receipt.erased_event_count == 10
    places = [remainder.place for remainder in receipt.remainders]
    assert sorted(set(places)) == list(pb.RemainderPlace.values())[1:], "a kind of place is missing"
    [release] = [remainder for remainder in receipt.remainders if remainder.place == pb.REMAINDER_PLACE_RELEASE]
    assert release.release >= 1
    assert all(remainder.description for remainder in receipt.remainders)
    assert stubs.segrec.Segment(segment).assignment.state == segrec_service_pb2.SEGMENT_STATE_NO_HISTORY
    assert not stubs.events.ListEvents(pb.ListEventsRequest(user_id="forgotten")).events
    assert stubs.events.EraseUser(pb.EraseUserRequest(user_id="forgotten")).erased_event_count == 0


def test_events_from_before_an_erasure_are_refused_and_later_ones_stored(stubs: Stubs) -> None:
    stubs.events.EraseUser(pb.EraseUserRequest(user_id="back"))
    later = event("b", 0)
    later.timestamp.GetCurrentTime()
    response = record(stubs, "back", event("a", 1000), later, event("c", 2000))
    assert [(refused.index, error_of_status(refused.status).reason) for refused in response.refused] == [
        (0, "ERASED"),
        (2, "ERASED"),
    ]
    assert error_of_status(response.refused[1].status).field == "events[2].event.timestamp"
    assert response.stored_count == 1
    history = stubs.events.ListEvents(pb.ListEventsRequest(user_id="back"))
    assert [stored.item_id for stored in history.events] == ["b"]


def test_events_older_than_all_that_is_kept_are_counted(stubs: Stubs) -> None:
    response = record(stubs, "old", *(event("a", seconds) for seconds in range(1, 1001)))
    assert response.stored_count == 1000
    response = record(stubs, "old", event("b", 0), event("b", 1001), event("a", 1000))
    assert (response.stored_count, response.duplicate_count, response.too_old_count) == (1, 1, 1)
    assert not response.refused


def test_an_unknown_user_has_an_empty_history(stubs: Stubs) -> None:
    response = stubs.events.ListEvents(pb.ListEventsRequest(user_id="never seen"))
    assert (len(response.events), response.total_size) == (0, 0)
