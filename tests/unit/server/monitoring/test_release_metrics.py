"""The Prometheus series of each release."""

from prometheus_client import CollectorRegistry, generate_latest

from server.monitoring.release_metrics import ReleaseCollector
from server.monitoring.release_stats import ReleaseStats, ShadowComparison
from tests.support.ticking import Clock
from tests.unit.server.monitoring.test_release_stats import STALE, SURE, UNSURE, call


def lines_of(stats: ReleaseStats) -> set[str]:
    registry = CollectorRegistry()
    registry.register(ReleaseCollector(stats))
    return {line for line in generate_latest(registry).decode().splitlines() if not line.startswith("#")}


def test_a_release_has_series_until_it_is_forgotten() -> None:
    clock = Clock()
    stats = ReleaseStats(clock)
    assert lines_of(stats) == set()
    stats.answered(8, [SURE, SURE, UNSURE, STALE])
    stats.failed(8, 2)
    stats.compared(8, 7, ShadowComparison(4, 1, 3.0, 2, 0.5))
    for seconds in (0.004, 0.3):
        call(stats, clock, 8, seconds)
    lines = lines_of(stats)
    assert lines >= {
        'segrec_release_answers_total{outcome="whole",release="8"} 5.0',
        'segrec_release_answers_total{outcome="degraded",release="8"} 1.0',
        'segrec_release_answers_total{outcome="failed",release="8"} 2.0',
        'segrec_release_segments_total{confident="yes",release="8"} 5.0',
        'segrec_release_segments_total{confident="no",release="8"} 1.0',
        'segrec_compared_total{release="8",segment="same"} 3.0',
        'segrec_compared_total{release="8",segment="changed"} 1.0',
        'segrec_compared_top_items_overlap_sum{release="8"} 3.0',
        'segrec_compared_top_items_overlap_count{release="8"} 4.0',
        'segrec_compared_score_shift_sum{release="8"} 0.5',
        'segrec_compared_score_shift_count{release="8"} 2.0',
        'segrec_release_call_seconds_bucket{le="0.0032",release="8"} 0.0',
        'segrec_release_call_seconds_bucket{le="0.0064",release="8"} 1.0',
        'segrec_release_call_seconds_bucket{le="+Inf",release="8"} 2.0',
        'segrec_release_call_seconds_count{release="8"} 2.0',
    }
    stats.answered(9, [SURE])
    assert {line for line in lines_of(stats) if 'release="8"' in line} == lines
    stats.forget(8)
    assert all('release="9"' in line for line in lines_of(stats))
