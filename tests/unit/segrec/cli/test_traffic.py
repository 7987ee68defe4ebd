"""How `segrec traffic` reads and writes the messages of the API."""

from segrec.cli.traffic import active_release, guard_message, state_of
from segrec.traffic import TrafficState
from segrec.v1.model_service_pb2 import Guard, ListReleasesResponse, Release, ReleaseState, Traffic, TrafficRecord

BOUNDS = {
    "max_error_share": 0.01,
    "max_degraded_share": 0.05,
    "max_unconfident_share": 0.5,
    "max_p99_seconds": 0.05,
    "window_seconds": 30.0,
    "min_answer_count": 100,
}


def test_a_guard_comes_back_as_it_was_sent() -> None:
    message = guard_message(BOUNDS)
    assert message.max_p99_time.ToMilliseconds() == 50
    traffic = Traffic(stable_release=7, canary_release=8, canary_share=0.05, shadow_release=9, guard=message)
    assert state_of(traffic) == TrafficState(7, 8, 5.0, 9, BOUNDS)
    assert state_of(Traffic(stable_release=7)) == TrafficState(7)


def test_bounds_that_are_not_set_stay_unset_in_the_message() -> None:
    assert guard_message({"max_error_share": 0.0}) == Guard(max_error_share=0.0)


def test_the_active_release_is_the_stable_release_or_else_the_release_in_that_state() -> None:
    releases = [Release(release=8), Release(release=7, state=ReleaseState.RELEASE_STATE_ACTIVE)]
    named = TrafficRecord(traffic=Traffic(stable_release=8))
    assert active_release(ListReleasesResponse(releases=releases, traffic=named)) == 8
    assert active_release(ListReleasesResponse(releases=releases)) == 7
    assert active_release(ListReleasesResponse()) == 0
