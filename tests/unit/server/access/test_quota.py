"""The token bucket, under a clock of the test's own."""

import pytest

from server.access.quota import TokenBucket


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_burst_is_two_seconds_of_the_quota_and_then_the_rate_holds() -> None:
    clock = Clock()
    bucket = TokenBucket(5.0, clock)
    assert [bucket.take() for _ in range(10)] == [0.0] * 10
    assert bucket.take() == pytest.approx(0.2)
    clock.now += 0.2
    assert bucket.take() == 0.0
    assert bucket.take() == pytest.approx(0.2)
    allowed = 0
    for _ in range(1000):
        clock.now += 0.01
        allowed += bucket.take() == 0.0
    assert allowed in (49, 50, 51)


def test_a_call_above_the_quota_passes_and_is_paid_off_by_waiting() -> None:
    clock = Clock()
    bucket = TokenBucket(10.0, clock)
    assert bucket.take(1000) == 0.0
    assert bucket.take(1) == pytest.approx((1 + 980) / 10)
    clock.now += 98.1
    assert bucket.take(1) == 0.0


def test_a_quota_below_one_a_second_lets_one_through() -> None:
    clock = Clock()
    bucket = TokenBucket(0.1, clock)
    assert bucket.take() == 0.0
    assert bucket.take() == pytest.approx(10.0)


def test_a_long_silence_saves_up_no_more_than_a_burst() -> None:
    clock = Clock()
    bucket = TokenBucket(3.0, clock)
    clock.now += 10_000.0
    assert sum(bucket.take() == 0.0 for _ in range(100)) == 6
