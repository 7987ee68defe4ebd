"""Lists that the client puts together from pages."""

from collections.abc import Iterator

import pytest
from segrec import Event, SegrecClient, UserEvent
from segrec.errors import InvalidArgument

from tests.support.fake_segrec import FakeSegrec


@pytest.fixture
def client() -> Iterator[SegrecClient]:
    with FakeSegrec() as fake, SegrecClient(fake.address) as client:
        client.record(
            UserEvent(user_id="u", event=Event(item_id=f"i{number}", action="view", event_id=str(number)))
            for number in range(2500)
        )
        yield client


@pytest.mark.parametrize("limit", [1, 999, 1000, 1001, 2500, 9999])
def test_a_history_has_the_newest_events_that_were_asked_for(client: SegrecClient, limit: int) -> None:
    listed = client.history("u", limit)
    expected = [f"i{number}" for number in range(2499, -1, -1)][:limit]
    assert [event.item_id for event in listed.events] == expected
    assert listed.total_size == 2500


def test_a_limit_below_one_is_refused(client: SegrecClient) -> None:
    with pytest.raises(InvalidArgument, match="limit is 0"):
        client.history("u", 0)
