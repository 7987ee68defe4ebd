"""Events of one time stamp sent in another order: the real server gives the same answers."""

import random
from dataclasses import replace
from pathlib import Path

from segrec.v1 import common_pb2, event_service_pb2
from segrec.v1 import segrec_service_pb2 as pb

from server.core.history import Event
from server.core.own_items import OWN_FEATURES
from server.rpc.messages.conversion import event_message
from tests.support.releases import HOUR_MS, group_history, ranking_of, tiny_release
from tests.support.server import StartServer, Stubs


def tied_events() -> list[Event]:
    """Forty events of two groups in turn, seven at a time."""
    hours = 7 * HOUR_MS
    pairs = zip(group_history(0, 20).events(), group_history(1, 20).events(), strict=True)
    return [replace(event, timestamp=event.timestamp // hours * hours) for pair in pairs for event in pair]


def test_tied_events_in_another_order_give_the_same_answer(stubs: Stubs) -> None:
    """The encoder reads 32 events, so its window begins inside a tie."""
    events = tied_events()
    orders = [events, events[::-1], [*events[20:], *events[:20]], random.Random(0).sample(events, len(events))]
    options = pb.RecommendOptions(top_k=10)
    answers = []
    for number, order in enumerate(orders):
        messages = [event_message(event) for event in order]
        for part in (messages[:15], messages[15:]):
            sent = [event_service_pb2.UserEvent(user_id=f"tied-{number}", event=event) for event in part]
            stubs.events.RecordEvents(event_service_pb2.RecordEventsRequest(events=sent))
        inline = common_pb2.EventList(events=messages)
        for request in (
            pb.RecommendRequest(user_id=f"tied-{number}", options=options),
            pb.RecommendRequest(events=inline, options=options),
        ):
            answers.append(stubs.segrec.Recommend(request))
            assert not answers[-1].info.degraded
    for answer in answers[1:]:
        assert answer.assignment == answers[0].assignment
        assert list(answer.items) == list(answers[0].items)


def test_tied_events_in_another_order_repeat_the_same_items(start_server: StartServer, tmp_path: Path) -> None:
    """Ranked by all that the learned ranking reads of a user's own items."""
    lately = {name: -1.0 for name in OWN_FEATURES if "since" in name}
    ranking = ranking_of(**dict.fromkeys(OWN_FEATURES, 1.0) | lately, personal=0.1)
    tiny_release(tmp_path / "repository", 1, ranking=ranking)
    server = start_server()
    server.wait_until_serving()
    stubs = Stubs(server)
    events = tied_events()
    options = pb.RecommendOptions(top_k=30)
    answers = []
    for order in (events, events[::-1], random.Random(0).sample(events, len(events))):
        inline = common_pb2.EventList(events=[event_message(event) for event in order])
        answers.append(stubs.segrec.Recommend(pb.RecommendRequest(events=inline, options=options)))
    assert not answers[0].info.degraded
    reasons = [item.reason for item in answers[0].items]
    assert reasons.count(pb.ITEM_REASON_AGAIN) == len({event.item_id for event in events})
    for answer in answers[1:]:
        assert list(answer.items) == list(answers[0].items)
    stubs.close()
