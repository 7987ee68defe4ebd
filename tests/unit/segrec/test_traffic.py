"""The traffic grammar alone; tests/contract/test_traffic_commands.py runs it through both commands."""

import pytest
from segrec.errors import InvalidArgument
from segrec.traffic import TrafficChange, TrafficState, notation, parse_change


@pytest.mark.parametrize(
    "text", ["8", "8=", "8=x", "8=0", "8=101", "8=nan", "8=inf", "x=5", "08=5", "-1=5", "=5", "0=5", "8=5%%", "8 =5"]
)
def test_a_text_that_is_not_a_share_is_refused(text: str) -> None:
    with pytest.raises(InvalidArgument, match="is not a share"):
        parse_change([text], None, None)


@pytest.mark.parametrize("text", ["8=5", "8=5%", "8=5 %", "8=5.0"])
def test_a_share_may_have_a_percent_sign(text: str) -> None:
    assert parse_change([text], None, None) == TrafficChange({8: 5.0})


def test_an_absent_option_changes_nothing() -> None:
    assert parse_change([], None, None) == TrafficChange(None, None, None)
    assert parse_change([], "none", "none") == TrafficChange(None, 0, {})


@pytest.mark.parametrize(
    ("text", "bounds"),
    [
        ("errors=0.01", {"max_error_share": 0.01}),
        ("errors=0", {"max_error_share": 0.0}),
        (
            "errors=0.01, degraded=0.05,unconfident=0.5,p99=50ms,window=60s,min=7",
            {
                "max_error_share": 0.01,
                "max_degraded_share": 0.05,
                "max_unconfident_share": 0.5,
                "max_p99_seconds": 0.05,
                "window_seconds": 60.0,
                "min_answer_count": 7,
            },
        ),
        ("p99=0.25", {"max_p99_seconds": 0.25}),
    ],
)
def test_a_guard_is_read(text: str, bounds: dict[str, float]) -> None:
    assert parse_change([], None, text).guard == bounds


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "does not know ``: it takes NAME=NUMBER with errors, degraded, unconfident, p99, window, min"),
        ("latency=3", "does not know `latency=3`"),
        ("errors", "cannot use `errors`: errors takes a share from 0 to 1"),
        ("errors=x", "cannot use `errors=x`"),
        ("errors=nan", "cannot use `errors=nan`"),
        ("errors=-0.1", "cannot use `errors=-0.1`"),
        ("p99=fast", "cannot use `p99=fast`: p99 takes a time"),
        ("p99=0", "cannot use `p99=0`"),
        ("p99=1e300", "cannot use `p99=1e300`"),
        ("errors=0.1,window=0.5", "cannot use `window=0.5`"),
        ("errors=0.1,window=2e3s,window=9", "two values for window"),
        ("errors=0.1,min=1.5", "cannot use `min=1.5`: min takes a whole number"),
        ("window=30,min=5", "needs one bound at least"),
    ],
)
def test_a_guard_that_cannot_be_used_is_named(text: str, problem: str) -> None:
    with pytest.raises(InvalidArgument, match=problem):
        parse_change([], None, text)


def test_a_canary_or_shadow_needs_an_active_release() -> None:
    for change in (TrafficChange({8: 5.0}), TrafficChange(shadow=8)):
        with pytest.raises(InvalidArgument, match="No release is active"):
            change.applied_to(TrafficState(), active=0)


def test_the_notation_can_be_typed_again() -> None:
    assert notation(TrafficState()) == "newest=100"
    assert notation(TrafficState(7, 8, 0.5, 9)) == "7=99.5 8=0.5, shadow 9"
