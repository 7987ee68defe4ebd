"""Silences of a server that many calls share."""

import pytest

from server.adapters.silences import Silences


@pytest.mark.parametrize(
    ("answers", "since", "now", "longest"),
    [
        ([], 0.0, 2.0, 2.0),  # nobody has been answered since the start
        ([0.5, 1.0, 1.5], 0.0, 2.0, 0.5),
        ([1.0], 1.5, 2.0, 0.5),  # only what lies in the time that is asked for
        ([0.02, 1.6, 1.61, 1.62], 0.5, 2.0, 1.1),  # the silence has ended before the call failed
        ([0.02, 3.0, *(3.0 + 0.01 * n for n in range(1, 100))], 3.2, 3.99, 0.0),  # an earlier silence is over
        ([0.05 * n for n in range(1, 40)], 0.0, 2.0, 0.05),  # an encoder at work is never silent
    ],
)
def test_only_the_time_without_answers_is_a_silence(
    answers: list[float], since: float, now: float, longest: float
) -> None:
    times = iter([0.0, *answers, now])
    silences = Silences(lambda: next(times))
    for _ in answers:
        silences.end()
    assert silences.longest_since(since) == pytest.approx(longest, abs=0.051)
