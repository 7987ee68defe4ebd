"""Counters and figures of releases."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.core.errors import EncoderAway, EncoderUnavailable, InvalidArgument, NotFound, Overloaded, StoreUnavailable
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


def call(stats: ReleaseStats, clock: Clock, release: int, seconds: float, error: Exception | None = None) -> None:
    """One unary call that takes `seconds` and raises `error`, if there is one."""
    clock.now += seconds
    with stats.counting_errors(release, 1):
        if error is not None:
            raise error
    stats.answered(release, [SURE], seconds=seconds)


def figures_of(stats: ReleaseStats, release: int, window: float = 300.0) -> Figures:
    figures = stats.figures(release, window)
    assert figures is not None
    return figures


def test_a_release_without_requests_has_no_figures() -> None:
    assert ReleaseStats(Clock()).figures(7) is None


def test_shares_are_divided_by_requests_answers_and_placed_users() -> None:
    stats = ReleaseStats(Clock())
    stats.answered(7, [SURE, SURE, UNSURE, STALE, NO_ANSWER])
    stats.failed(7, 5)
    figures = figures_of(stats, 7)
    assert (figures.request_count, figures.answer_count, figures.placed_count) == (10, 5, 4)
    assert (figures.error_share, figures.degraded_share, figures.unconfident_share) == (0.5, 0.2, 0.25)
    assert stats.figures(8) is None


def test_figures_are_of_calls_and_rows_and_unary_figures_of_calls_alone() -> None:
    stats = ReleaseStats(Clock())
    stats.answered(7, [SURE] * 3)
    stats.answered(7, [STALE] * 5, is_batch=True)
    with pytest.raises(EncoderUnavailable), stats.counting_errors(7, 2, is_batch=True):
        raise EncoderUnavailable("no answer")
    figures, unary = figures_of(stats, 7), stats.unary_figures(7, 300.0)
    assert unary is not None
    assert (figures.request_count, figures.answer_count, figures.error_share) == (10, 8, 0.2)
    assert (unary.request_count, unary.answer_count, unary.degraded_share, unary.error_share) == (3, 3, 0.0, 0.0)
    assert stats.totals()[7][0][Count.REQUESTS] == 10
    stats.forget(7)
    assert stats.figures(7) is None


def test_answers_that_say_nothing_about_the_release_are_not_counted() -> None:
    stats = ReleaseStats(Clock())
    stats.answered(7, [SURE, STALE._replace(tells_of_release=False)], seconds=0.1)
    stats.answered(7, [STALE._replace(tells_of_release=False)], seconds=2.0)
    figures = figures_of(stats, 7)
    assert (figures.request_count, figures.answer_count, figures.degraded_share) == (1, 1, 0.0)
    assert (figures.timed_count, figures.p99_seconds) == (1, pytest.approx(0.1, rel=0.25))


def test_answers_of_a_shadow_are_not_counted_as_answers() -> None:
    stats = ReleaseStats(Clock())
    stats.computed(9, [SURE, UNSURE])
    figures = figures_of(stats, 9)
    assert (figures.request_count, figures.answer_count, figures.unconfident_share) == (2, 0, 0.5)


def test_errors_of_the_caller_and_of_other_parts_are_not_counted() -> None:
    clock = Clock()
    stats = ReleaseStats(clock)
    for error in (
        InvalidArgument("no", reason="ID_EMPTY"),
        NotFound("no", reason="NO_CANARY"),
        Overloaded("no"),
        StoreUnavailable("no"),
        EncoderAway("no"),
    ):
        with pytest.raises(type(error)):
            call(stats, clock, 7, 0.1, error)
    assert stats.figures(7) is None
    for fault in (EncoderUnavailable("no"), KeyError("no")):
        with pytest.raises(type(fault)):
            call(stats, clock, 7, 0.1, fault)
    figures = figures_of(stats, 7)
    assert (figures.error_share, figures.request_count, figures.timed_count) == (1.0, 2, 0)


def test_figures_leave_out_what_is_older_than_the_window_and_forget_what_is_very_old() -> None:
    clock = Clock()
    stats = ReleaseStats(clock)
    stats.answered(7, [SURE])
    clock.now += 9
    stats.answered(7, [UNSURE, UNSURE])
    recent = figures_of(stats, 7, 9)
    assert (recent.window_seconds, recent.answer_count) == (9.0, 2)
    whole = figures_of(stats, 7, 300)
    assert (whole.window_seconds, whole.answer_count) == (10.0, 3)
    clock.now += LONGEST_SECONDS - 5
    stats.answered(7, [SURE])
    assert figures_of(stats, 7, 2 * LONGEST_SECONDS).answer_count == 3
    clock.now += 10 * LONGEST_SECONDS
    assert figures_of(stats, 7, 2 * LONGEST_SECONDS).answer_count == 0
    totals, _, _ = stats.totals()[7]
    assert totals[Count.ANSWERS] == 4


def test_a_forgotten_release_has_no_figures_and_totals() -> None:
    stats = ReleaseStats(Clock())
    stats.answered(7, [SURE])
    stats.forget(7)
    stats.forget(8)
    assert stats.figures(7) is None
    assert stats.totals() == {}


def test_comparisons_with_another_release_replace_the_earlier_ones() -> None:
    stats = ReleaseStats(Clock())
    stats.answered(8, [SURE])
    stats.compared(8, 7, ShadowComparison(4, 1, 2.0, 3, 1.5))
    stats.compared(8, 7, ShadowComparison(4, 1, 4.0, 1, 0.5))
    figures = figures_of(stats, 8)
    assert (figures.compared_release, figures.compared_count) == (7, 8)
    assert (figures.changed_share, figures.top_items_overlap, figures.score_shift) == (0.25, 0.75, 0.5)
    stats.compared(8, 6, ShadowComparison(1, 1, 0.0, 0, 0.0))
    figures = figures_of(stats, 8)
    assert (figures.compared_release, figures.compared_count) == (6, 1)
    assert (figures.changed_share, figures.answer_count) == (1.0, 1)
    assert (figures.top_items_overlap, figures.score_shift) == (0.0, 0.0)


def test_the_median_and_p99_of_call_times() -> None:
    clock = Clock()
    stats = ReleaseStats(clock)
    for milliseconds in range(1, 101):
        call(stats, clock, 7, milliseconds / 1000)
    figures = figures_of(stats, 7)
    assert figures.timed_count == 100
    assert figures.median_seconds == pytest.approx(0.050, rel=0.1)
    assert figures.p99_seconds == pytest.approx(0.099, rel=0.1)
    _, times, total = stats.totals()[7]
    assert times.sum() == 100
    assert total == pytest.approx(5.05)


@given(st.lists(st.floats(1e-4, 80), min_size=1, max_size=200), st.floats(0.01, 1))
def test_a_quantile_is_within_a_bin_of_the_exact_one(seconds: list[float], share: float) -> None:
    times = np.bincount(np.searchsorted(TIME_BOUNDS, seconds), minlength=len(TIME_BOUNDS) + 1)
    exact = np.quantile(seconds, share, method="inverted_cdf")
    assert exact / 1.2 <= quantile(times, share) <= exact * 1.2


def test_a_time_beyond_the_last_bound_counts_as_the_last_bound() -> None:
    times = np.zeros(len(TIME_BOUNDS) + 1, np.int64)
    assert quantile(times, 0.5) == 0.0
    times[-1] = 1
    assert quantile(times, 0.99) == TIME_BOUNDS[-1]
