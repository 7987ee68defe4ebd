"""Plain counters and histograms: Prometheus reads the same as of its own client's."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest

from server.monitoring.plain_metrics import PlainCounter, PlainHistogram

BOUNDS = (0.0005, 0.001, 0.2, 1, 10)
labels = st.sampled_from(["a", "b", 'odd "label"\n'])
times = st.sampled_from([*BOUNDS, 0.0]) | st.floats(0, 20)


def page(registry: CollectorRegistry) -> list[str]:
    return [line for line in generate_latest(registry).decode().splitlines() if "_created" not in line]


@given(st.lists(st.tuples(labels, labels, st.integers(0, 5))), st.lists(st.tuples(labels, times)))
def test_prometheus_reads_what_it_would_of_its_own_client(
    counts: list[tuple[str, str, int]], observed: list[tuple[str, float]]
) -> None:
    plain, usual = CollectorRegistry(), CollectorRegistry()
    both: list[tuple[Any, Any]] = [
        (
            PlainCounter("segrec_calls", "Calls.", ["method", "code"], plain),
            PlainHistogram("segrec_seconds", "Times.", "method", BOUNDS, plain),
        ),
        (
            Counter("segrec_calls", "Calls.", ["method", "code"], registry=usual),
            Histogram("segrec_seconds", "Times.", ["method"], buckets=BOUNDS, registry=usual),
        ),
    ]
    for counter, histogram in both:
        for method, code, amount in counts:
            counter.labels(method, code).inc(amount)
        for method, seconds in observed:
            histogram.labels(method).observe(seconds)
    assert page(plain) == page(usual)
