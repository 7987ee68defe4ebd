"""Messages of a release."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

from server.core.figures import Figure
from server.core.release import TrainedOn
from server.core.repository.read import read_manifest
from server.releases.registry import State, Status
from server.rpc.messages.conversion import release_message
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


def test_a_release_tells_why_it_stands_by_and_why_it_was_forced(tmp_path: Path) -> None:
    plain = read_manifest(tiny_release(tmp_path))
    message = release_message(Status(1, State.AVAILABLE, "", plain.model_copy(update={"stands_by": "a rule wins"})))
    assert (message.standby_reason, message.forced_reason) == ("a rule wins", "")
    message = release_message(Status(1, State.AVAILABLE, "", plain.model_copy(update={"forced": "a pilot"})))
    assert (message.standby_reason, message.forced_reason) == ("", "a pilot")


def test_a_figure_is_told_in_its_parts(tmp_path: Path) -> None:
    figures = (
        Figure.parse("as served/popularity, 7 days/hr@10", 0.5, (0.4, 0.6)),
        Figure.parse("next visit/hybrid/auroc", 0.25),
    )
    manifest = read_manifest(tiny_release(tmp_path)).model_copy(update={"figures": figures})
    first, second = release_message(Status(1, State.AVAILABLE, "", manifest)).figures
    assert (first.protocol, first.method, first.metric, first.k) == ("as served", "popularity, 7 days", "hr", 10)
    assert (first.value, first.low, first.high) == (0.5, 0.4, 0.6)
    assert [second.HasField(name) for name in ("k", "low", "high")] == [False] * 3


def test_what_a_first_release_lacks_is_unset(tmp_path: Path) -> None:
    manifest = read_manifest(tiny_release(tmp_path)).model_copy(update={"parent_release": 0, "min_segment_size": 0})
    message = release_message(Status(1, State.AVAILABLE, "", manifest, 0.125))
    assert [message.HasField(name) for name in ("parent_release", "min_segment_size")] == [False, False]
    assert message.traffic_share == 0.125


def test_without_a_clock_no_times_are_told(tmp_path: Path) -> None:
    trained_on = TrainedOn(user_count=3, event_count=5)
    manifest = read_manifest(tiny_release(tmp_path)).model_copy(update={"trained_on": trained_on})
    message = release_message(Status(1, State.AVAILABLE, "", manifest)).trained_on
    assert not message.HasField("first_event_time")
    assert not message.HasField("last_event_time")
