"""What `segrec traffic` makes of what people type."""

import pytest
from segrec.cli.traffic import changed, guard_of
from segrec.errors import InvalidArgument
from segrec.v1.model_service_pb2 import (
    Guard,
    ListReleasesResponse,
    Release,
    ReleaseState,
    Traffic,
    TrafficRecord,
)

ACTIVE = Release(release=7, state=ReleaseState.RELEASE_STATE_ACTIVE)
GUARD = Guard(max_error_share=0.5)


def overview(traffic: Traffic | None = None) -> ListReleasesResponse:
    return ListReleasesResponse(releases=[Release(release=8), ACTIVE], traffic=TrafficRecord(traffic=traffic))


@pytest.mark.parametrize(
    ("shares", "stable", "canary", "percent"),
    [
        (["8=100"], 8, 0, 0.0),
        (["newest=100"], 0, 0, 0.0),
        (["8=5"], 7, 8, 5.0),
        (["8=5%"], 7, 8, 5.0),
        (["7=95", "8=5"], 7, 8, 5.0),
        (["8=90", "7=10"], 7, 8, 90.0),
        (["1=30", "2=70"], 2, 1, 30.0),
    ],
)
def test_shares_name_the_stable_release_and_the_canary(
    shares: list[str], stable: int, canary: int, percent: float
) -> None:
    change = changed(overview(), shares, None, None)
    assert (change["stable"], change["canary"], change["canary_percent"]) == (stable, canary, percent)


@pytest.mark.parametrize(
    "shares",
    [
        *(["8"], ["8=0"], ["8=101"], ["x=5"], ["-1=5"], ["0=100"], ["7=90", "8=5"], ["7=50", "7=50"], ["7=5"]),
        *(["1=30", "2=30", "3=40"], ["newest=95", "8=5"], ["newest=5"], ["8=nan"]),
    ],
)
def test_shares_that_say_nothing_are_refused(shares: list[str]) -> None:
    with pytest.raises(InvalidArgument):
        changed(overview(), shares, None, None)


def test_what_is_not_said_stays_as_far_as_it_fits() -> None:
    before = overview(Traffic(stable_release=7, canary_release=8, canary_percent=5, shadow_release=9, guard=GUARD))
    more = changed(before, ["8=10"], None, None)
    assert (more["canary_percent"], more["shadow"], more["guard"]) == (10, 9, GUARD)
    assert changed(before, ["8=10"], 0, "none") == more | {"shadow": 0, "guard": None}
    other = changed(before, ["9=10"], None, None)
    assert (other["canary"], other["shadow"], other["guard"]) == (9, 0, None)
    promoted = changed(before, ["8=100"], None, None)
    assert (promoted["stable"], promoted["canary"], promoted["shadow"], promoted["guard"]) == (8, 0, 9, None)
    assert changed(before, ["newest=100"], None, None)["shadow"] == 0
    assert changed(before, [], 6, None) == changed(before, ["8=5"], 6, None)


def test_a_shadow_beside_the_newest_release_names_that() -> None:
    assert changed(overview(), [], 8, None)["stable"] == 7


def test_a_guard_is_read_and_refused_by_name() -> None:
    guard = guard_of("errors=0.01, degraded=0.05,unconfident=0.5,p99=50ms,window=30,min=100")
    assert guard is not None
    assert guard.max_p99_time.ToMilliseconds() == 50
    assert (guard.window.seconds, guard.min_answer_count) == (30, 100)
    assert (guard.max_error_share, guard.max_degraded_share, guard.max_unconfident_share) == (0.01, 0.05, 0.5)
    for text in ("errors", "errors=x", "latency=3", "min=1.5", "p99=fast", ""):
        with pytest.raises(InvalidArgument, match="guard"):
            guard_of(text)
