"""Messages of a release."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

from server.core.release import TrainedOn
from server.core.repository.read import read_manifest
from server.releases.registry import State, Status
from server.rpc.conversion import release_message
from tests.support.releases import tiny_release

FIRST = datetime(2024, 2, 3, tzinfo=UTC)
WITH_CLOCK = TrainedOn(
    first_event_time=FIRST, last_event_time=FIRST + timedelta(days=9), user_count=3, event_count=5, files=("a.csv",)
)


def test_a_release_tells_what_it_was_trained_on_and_when_it_must_be_forgotten(tmp_path: Path) -> None:
    plain = read_manifest(tiny_release(tmp_path))
    told = plain.model_copy(update={"trained_on": WITH_CLOCK, "forget_after": FIRST + timedelta(days=400)})
    message = release_message(Status(1, State.AVAILABLE, "", told))
    assert message.forget_after_time.ToDatetime(UTC) == FIRST + timedelta(days=400)
    trained_on = message.trained_on
    times = (trained_on.first_event_time, trained_on.last_event_time)
    assert [time.ToDatetime(UTC) for time in times] == [FIRST, FIRST + timedelta(days=9)]
    assert (trained_on.user_count, trained_on.event_count, list(trained_on.files)) == (3, 5, ["a.csv"])
    message = release_message(Status(1, State.AVAILABLE, "", plain))
    assert not message.HasField("trained_on")
    assert not message.HasField("forget_after_time")


def test_without_a_clock_no_times_are_told(tmp_path: Path) -> None:
    trained_on = TrainedOn(user_count=3, event_count=5)
    manifest = read_manifest(tiny_release(tmp_path)).model_copy(update={"trained_on": trained_on})
    message = release_message(Status(1, State.AVAILABLE, "", manifest)).trained_on
    assert not message.HasField("first_event_time")
    assert not message.HasField("last_event_time")
