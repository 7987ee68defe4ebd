"""When a breaker opens, who may try meanwhile, and what the log says."""

import logging

import pytest

from server.serving.breaker import SLOW_FAILURES, SLOW_SECONDS, TRIAL_SECONDS, Breaker
from tests.support.ticking import Clock


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def breaker(clock: Clock) -> Breaker:
    return Breaker("the part", clock)


def fail_slowly(breaker: Breaker, times: int) -> None:
    for _ in range(times):
        breaker.failed("no answer", SLOW_SECONDS)


def test_it_opens_after_some_slow_failures_in_a_row(breaker: Breaker) -> None:
    fail_slowly(breaker, SLOW_FAILURES - 1)
    breaker.succeeded()
    fail_slowly(breaker, SLOW_FAILURES - 1)
    assert breaker.allows_call()
    fail_slowly(breaker, 1)
    assert breaker.is_open
    assert not breaker.allows_call()


def test_quick_failures_do_not_open_it(breaker: Breaker) -> None:
    for _ in range(100):
        breaker.failed("refused", SLOW_SECONDS / 2)
    assert breaker.allows_call()


def test_one_call_in_a_while_tries_until_the_first_success(breaker: Breaker, clock: Clock) -> None:
    fail_slowly(breaker, SLOW_FAILURES)
    tried = []
    for _ in range(4 * 10):
        clock.now += TRIAL_SECONDS / 10
        tried.append(breaker.allows_call())
    assert sum(tried) in (3, 4)
    fail_slowly(breaker, 1)
    assert not breaker.allows_call()
    breaker.succeeded()
    assert [breaker.allows_call() for _ in range(5)] == [True] * 5


def test_the_log_has_one_line_for_each_change(breaker: Breaker, clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    fail_slowly(breaker, 700)
    clock.now += 6
    breaker.succeeded()
    breaker.succeeded()
    assert [record.getMessage() for record in caplog.records] == [
        "the part does not answer: no answer",
        "the part answers again after 6.0 s; 700 calls failed",
    ]
    for _ in range(50):  # fails and succeeds in turns, within the time for one warning
        fail_slowly(breaker, 1)
        breaker.succeeded()
    assert len(caplog.records) == 2
