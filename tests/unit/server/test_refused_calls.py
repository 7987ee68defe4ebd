"""The log of refused calls."""

import logging

import pytest

from server.logs import MOST_REFUSALS, RefusedCalls


def test_refusals_beyond_the_limit_of_a_second_are_counted(caplog: pytest.LogCaptureFixture) -> None:
    now = 0.0
    refused = RefusedCalls(lambda: now)
    with caplog.at_level(logging.INFO, "server.logs"):
        for _ in range(MOST_REFUSALS + 5):
            refused.add("Segment", "NOT_FOUND", "NOT_FOUND", "release")
        assert caplog.messages == ["Segment was refused: NOT_FOUND release"] * MOST_REFUSALS
        now = 1.5
        refused.add("Segment", "RESOURCE_EXHAUSTED", "OVERLOADED", "")
    assert caplog.messages[MOST_REFUSALS:] == [
        "5 more calls were refused and not logged",
        "Segment was refused: RESOURCE_EXHAUSTED OVERLOADED",
    ]
