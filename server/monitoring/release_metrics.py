"""Live figures for Prometheus. A release has series as long as it is remembered, so that there are never many."""

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric, SummaryMetricFamily
from prometheus_client.registry import Collector

from server.monitoring.release_stats import TIME_BOUNDS, Count, ReleaseStats

BUCKETS = 4
"""Every fourth bound of the times is shown, so that they double."""


class ReleaseCollector(Collector):
    """Shows the totals of all releases, by release number."""

    def __init__(self, live: ReleaseStats) -> None:
        self._live = live

    def collect(self) -> Iterator[Metric]:
        """One reading."""
        totals = {str(release): found for release, found in self._live.totals().items()}
        counts = {release: found[0] for release, found in totals.items()}
        yield _counter(
            "segrec_release_answers",
            "Answers by release, rows of streams included; those of a shadow are computed for nobody.",
            "outcome",
            counts,
            {
                "whole": lambda found: found[Count.ASKED] - found[Count.ERRORS] - found[Count.DEGRADED],
                "degraded": lambda found: found[Count.DEGRADED],
                "failed": lambda found: found[Count.ERRORS],
            },
        )
        yield _counter(
            "segrec_release_segments",
            "Answers with a segment by release, and whether the segment is confident.",
            "confident",
            counts,
            {
                "yes": lambda found: found[Count.PLACED] - found[Count.UNCONFIDENT],
                "no": lambda found: found[Count.UNCONFIDENT],
            },
        )
        seconds = HistogramMetricFamily("segrec_release_call_seconds", "Time of unary calls.", labels=["release"])
        for release, (_, times, total) in totals.items():
            seconds.add_metric([release], buckets=_buckets(times), sum_value=total)
        yield seconds
        yield _counter(
            "segrec_compared",
            "Answers compared with those of another release, and whether the segment is the same.",
            "segment",
            counts,
            {
                "same": lambda found: found[Count.COMPARED] - found[Count.CHANGED],
                "changed": lambda found: found[Count.CHANGED],
            },
        )
        yield _summary(
            "segrec_compared_top_items_overlap",
            "Share of the first ten items that both releases recommend.",
            counts,
            (Count.COMPARED, Count.OVERLAP),
        )
        yield _summary(
            "segrec_compared_score_shift",
            "Mean absolute difference of the scores of items that both releases recommend.",
            counts,
            (Count.SHARING, Count.SHIFT),
        )


_Counts = NDArray[np.float64]


def _counter(
    name: str, told: str, label: str, counts: dict[str, _Counts], parts: dict[str, Callable[[_Counts], float]]
) -> Metric:
    family = CounterMetricFamily(name, told, labels=["release", label])
    for release, found in counts.items():
        for part, value in parts.items():
            family.add_metric([release, part], value(found))
    return family


def _summary(name: str, told: str, counts: dict[str, _Counts], columns: tuple[Count, Count]) -> Metric:
    family = SummaryMetricFamily(name, told, labels=["release"])
    for release, found in counts.items():
        family.add_metric([release], count_value=int(found[columns[0]]), sum_value=float(found[columns[1]]))
    return family


def _buckets(times: NDArray[np.int64]) -> list[tuple[str, float]]:
    """Upper bounds and how many calls ended within them."""
    reached = np.cumsum(times)
    shown = [(f"{TIME_BOUNDS[at]:.4g}", float(reached[at])) for at in range(0, len(TIME_BOUNDS), BUCKETS)]
    return [*shown, ("+Inf", float(reached[-1]))]
