"""The recent figures of a release, as the client shows them."""

from google.protobuf.duration_pb2 import Duration
from segrec.cli.release_stats import live_record, live_sentences
from segrec.v1.model_service_pb2 import LiveFigures, Release

QUIET = LiveFigures(window=Duration(seconds=12), answer_count=0, error_share=0.5)
BUSY = LiveFigures(
    window=Duration(seconds=300),
    answer_count=12_345,
    error_share=0.001,
    degraded_share=0.02,
    unconfident_share=0.125,
    median_time=Duration(nanos=2_500_000),
    p99_time=Duration(nanos=9_000_000),
    compared_release=7,
    compared_count=1_000,
    changed_segment_share=0.04,
    top_items_overlap=0.8,
    score_shift=0.25,
)


def test_a_release_without_figures_has_no_record_and_no_sentences() -> None:
    assert live_record(Release(release=8)) is None
    assert live_sentences(Release(release=8)) == []


def test_a_figure_that_was_not_measured_is_none() -> None:
    record = live_record(Release(live=QUIET))
    assert record is not None
    assert record["error_share"] == 0.5
    unknown = ("median_seconds", "p99_seconds", "compared_release", "changed_segment_share", "top_items_overlap")
    assert [record[name] for name in unknown] == [None] * 5
    [line] = live_sentences(Release(live=QUIET))
    assert line == (
        "in the last 12 s, on this server: 0 answers, 50.00% errors, 0.00% degraded, 0.0% without a confident segment"
    )


def test_all_figures_are_in_the_record_and_in_the_sentences() -> None:
    assert live_record(Release(live=BUSY)) == {
        "window_seconds": 300.0,
        "answer_count": 12_345,
        "error_share": 0.001,
        "degraded_share": 0.02,
        "unconfident_share": 0.125,
        "median_seconds": 0.0025,
        "p99_seconds": 0.009,
        "compared_release": 7,
        "compared_count": 1_000,
        "changed_segment_share": 0.04,
        "top_items_overlap": 0.8,
        "score_shift": 0.25,
    }
    answers, compared = live_sentences(Release(live=BUSY))
    assert answers.endswith("12.5% without a confident segment; p50 2.5 ms, p99 9.0 ms")
    assert compared == (
        "compared with release 7, for 1,000 users: 4.0% change segment, 80.0% of the first ten items are the same, "
        "scores differ by 0.25"
    )
