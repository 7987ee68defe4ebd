"""What becomes of a call of RecordEvents when the store's queue is full."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from segrec.errors import error_of_status
from segrec.v1 import event_service_pb2 as pb
from segrec.v1.common_pb2 import Event as EventMessage

from server.adapters.ports import Recorded
from server.core.errors import Overloaded
from server.core.history import Event
from server.monitoring.metrics import Metrics
from server.rpc.event_service import EventServicer


class FullFor:
    """A pipeline whose store takes no events of these users."""

    def __init__(self, *user_ids: str) -> None:
        self._user_ids = user_ids

    async def record(self, user_id: str, events: Sequence[Event], seconds: float) -> Recorded:
        if user_id in self._user_ids:
            raise Overloaded("16,384 writes wait", retry_seconds=0.5)
        return Recorded(len(events))


async def record(pipeline: FullFor, *user_ids: str) -> pb.RecordEventsResponse:
    releases: Any = SimpleNamespace(active=None)
    audit: Any = None
    context: Any = SimpleNamespace(time_remaining=lambda: None)
    servicer = EventServicer(pipeline, releases, Metrics(), lambda: 1000.0, "", audit)  # type: ignore[arg-type]
    event = EventMessage(item_id="a", action="view")
    request = pb.RecordEventsRequest(events=[pb.UserEvent(user_id=user_id, event=event) for user_id in user_ids])
    return await servicer.RecordEvents(request, context)


async def test_a_call_of_which_nothing_is_taken_fails_as_a_whole() -> None:
    with pytest.raises(Overloaded) as refused:
        await record(FullFor("u", "v"), "u", "v", "u")
    assert refused.value.retry_seconds == 0.5


async def test_a_call_of_which_a_part_is_taken_names_the_others() -> None:
    response = await record(FullFor("u"), "u", "v", "u")
    assert response.stored_count == 1
    assert [(refused.index, error_of_status(refused.status).reason) for refused in response.refused] == [
        (0, "OVERLOADED"),
        (2, "OVERLOADED"),
    ]
