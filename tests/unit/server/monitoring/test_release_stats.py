"""What is remembered of what releases did."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.core.errors import EncoderUnavailable, InvalidArgument, NotFound
from server.core.history import EMPTY
from server.monitoring.release_stats import (
    LONGEST_SECONDS,
    TIME_BOUNDS,
    Count,
    Figures,
    ReleaseStats,
    ShadowComparison,
    quantile,
)
from server.serving.answer import Answer, Degraded, Embedded
from server.serving.pipeline import NO_ANSWER
from tests.support.ticking import Clock

SURE = Answer(Embedded(np.ones(4, np.float32), segment_index=1), EMPTY)
UNSURE = Answer(SURE.embedded._replace(is_confident=False), EMPTY)
STALE = SURE._replace(degraded=Degraded.STALE_EMBEDDING)


def call(live: ReleaseStats, clock: Clock, release: int, seconds: float, error: Exception | None = None) -> None:
    """One unary call that takes so long and ends so."""
    with live.call(release):
        clock.now += seconds
        if error is not None:
            raise error


def figures_of(live: ReleaseStats, release: int, window: float = 300.0) -> Figures:
    found = live.figures(release, window)
    assert found is not None
    return found


def test_of_a_release_that_was_asked_nothing_there_is_nothing() -> None:
    assert ReleaseStats(Clock()).figures(7) is None


def test_shares_are_of_what_they_say() -> None:
    live = ReleaseStats(Clock())
    live.answered(7, [SURE, SURE, UNSURE, STALE, NO_ANSWER])
    live.failed(7, 5)
    found = figures_of(live, 7)
    assert (found.asked_count, found.answer_count, found.placed_count) == (10, 5, 4)
    assert (found.error_share, found.degraded_share, found.unconfident_share) == (0.5, 0.2, 0.25)
    assert live.figures(8) is None


def test_what_is_computed_for_nobody_is_no_answer() -> None:
    live = ReleaseStats(Clock())
    live.computed(9, [SURE, UNSURE])
    found = figures_of(live, 9)
    assert (found.asked_count, found.answer_count, found.unconfident_share) == (2, 0, 0.5)


def test_the_caller_is_to_blame_for_some_errors() -> None:
    clock = Clock()
    live = ReleaseStats(clock)
    for error in (InvalidArgument("no"), NotFound("no")):
        with pytest.raises(type(error)):
            call(live, clock, 7, 0.1, error)
    assert live.figures(7) is None
    for fault in (EncoderUnavailable("no"), KeyError("no")):
        with pytest.raises(type(fault)):
            call(live, clock, 7, 0.1, fault)
    found = figures_of(live, 7)
    assert (found.error_share, found.asked_count, found.timed_count) == (1.0, 2, 0)


def test_what_is_older_than_the_window_is_left_out_and_what_is_very_old_forgotten() -> None:
    clock = Clock()
    live = ReleaseStats(clock)
    live.answered(7, [SURE])
    clock.now += 9
    live.answered(7, [UNSURE, UNSURE])
    recent = figures_of(live, 7, 9)
    assert (recent.window_seconds, recent.answer_count) == (9.0, 2)
    whole = figures_of(live, 7, 300)
    assert (whole.window_seconds, whole.answer_count) == (10.0, 3)
    clock.now += LONGEST_SECONDS - 5
    live.answered(7, [SURE])
    assert figures_of(live, 7, 2 * LONGEST_SECONDS).answer_count == 3
    clock.now += 10 * LONGEST_SECONDS
    assert figures_of(live, 7, 2 * LONGEST_SECONDS).answer_count == 0
    totals, _, _ = live.totals()[7]
    assert totals[Count.ANSWERS] == 4


def test_of_a_forgotten_release_nothing_is_left() -> None:
    live = ReleaseStats(Clock())
    live.answered(7, [SURE])
    live.forget(7)
    live.forget(8)
    assert live.figures(7) is None
    assert live.totals() == {}


def test_comparisons_are_with_one_release() -> None:
    live = ReleaseStats(Clock())
    live.answered(8, [SURE])
    live.compared(8, 7, ShadowComparison(4, 1, 2.0, 3, 1.5))
    live.compared(8, 7, ShadowComparison(4, 1, 4.0, 1, 0.5))
    found = figures_of(live, 8)
    assert (found.compared_release, found.compared_count) == (7, 8)
    assert (found.changed_share, found.top_items_overlap, found.score_shift) == (0.25, 0.75, 0.5)
    live.compared(8, 6, ShadowComparison(1, 1, 0.0, 0, 0.0))
    found = figures_of(live, 8)
    assert (found.compared_release, found.compared_count, found.changed_share, found.answer_count) == (6, 1, 1.0, 1)
    assert (found.top_items_overlap, found.score_shift) == (0.0, 0.0)


def test_times_of_calls() -> None:
    clock = Clock()
    live = ReleaseStats(clock)
    for milliseconds in range(1, 101):
        call(live, clock, 7, milliseconds / 1000)
    found = figures_of(live, 7)
    assert found.timed_count == 100
    assert found.median_seconds == pytest.approx(0.050, rel=0.1)
    assert found.p99_seconds == pytest.approx(0.099, rel=0.1)
    _, times, total = live.totals()[7]
    assert times.sum() == 100
    assert total == pytest.approx(5.05)


@given(st.lists(st.floats(1e-4, 80), min_size=1, max_size=200), st.floats(0.01, 1))
def test_a_quantile_is_within_a_bin_of_the_exact_one(seconds: list[float], share: float) -> None:
    times = np.bincount(np.searchsorted(TIME_BOUNDS, seconds), minlength=len(TIME_BOUNDS) + 1)
    exact = np.quantile(seconds, share, method="inverted_cdf")
    assert exact / 1.2 <= quantile(times, share) <= exact * 1.2


def test_times_off_the_scale_count_as_its_end() -> None:
    times = np.zeros(len(TIME_BOUNDS) + 1, np.int64)
    assert quantile(times, 0.5) == 0.0
    times[-1] = 1
    assert quantile(times, 0.99) == TIME_BOUNDS[-1]
