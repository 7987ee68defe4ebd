"""`ReleaseStats` as Prometheus series. The series of a release end when the release is unloaded."""

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric, SummaryMetricFamily
from prometheus_client.registry import Collector

from server.monitoring.release_stats import TIME_BOUNDS, Count, ReleaseStats

BOUNDS_PER_BUCKET = 4
"""Every fourth of `TIME_BOUNDS` is the bound of a Prometheus bucket, so that the bounds double."""


class ReleaseCollector(Collector):
    """Collects the totals of all releases, labelled by release number."""

    def __init__(self, stats: ReleaseStats) -> None:
        self._stats = stats

    def collect(self) -> Iterator[Metric]:
        totals = {str(release): total for release, total in self._stats.totals().items()}
        counts = {release: total[0] for release, total in totals.items()}
        yield _counter(
            "segrec_release_answers",
            "Answers by release, rows of streams included. The answers of a shadow reach no caller.",
            "outcome",
            counts,
            {
                "whole": lambda row: row[Count.REQUESTS] - row[Count.ERRORS] - row[Count.DEGRADED],
                "degraded": lambda row: row[Count.DEGRADED],
                "failed": lambda row: row[Count.ERRORS],
            },
        )
        yield _counter(
            "segrec_release_segments",
            "Answers with a segment, by release and whether the segment is confident.",
            "confident",
            counts,
            {
                "yes": lambda row: row[Count.PLACED] - row[Count.UNCONFIDENT],
                "no": lambda row: row[Count.UNCONFIDENT],
            },
        )
        seconds = HistogramMetricFamily("segrec_release_call_seconds", "Time of unary calls.", labels=["release"])
        for release, (_, times, total) in totals.items():
            seconds.add_metric([release], buckets=_buckets(times), sum_value=total)
        yield seconds
        yield _counter(
            "segrec_compared",
            "Answers compared with those of another release, by whether the segment is the same.",
            "segment",
            counts,
            {
                "same": lambda row: row[Count.COMPARED] - row[Count.CHANGED],
                "changed": lambda row: row[Count.CHANGED],
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
    name: str, documentation: str, label: str, counts: dict[str, _Counts], parts: dict[str, Callable[[_Counts], float]]
) -> Metric:
    family = CounterMetricFamily(name, documentation, labels=["release", label])
    for release, row in counts.items():
        for part, value in parts.items():
            family.add_metric([release, part], value(row))
    return family


def _summary(name: str, documentation: str, counts: dict[str, _Counts], columns: tuple[Count, Count]) -> Metric:
    family = SummaryMetricFamily(name, documentation, labels=["release"])
    for release, row in counts.items():
        family.add_metric([release], count_value=int(row[columns[0]]), sum_value=float(row[columns[1]]))
    return family


def _buckets(times: NDArray[np.int64]) -> list[tuple[str, float]]:
    """Cumulative histogram: upper bound in seconds → number of calls that took at most so long."""
    reached = np.cumsum(times)
    shown = [(f"{TIME_BOUNDS[at]:.4g}", float(reached[at])) for at in range(0, len(TIME_BOUNDS), BOUNDS_PER_BUCKET)]
    return [*shown, ("+Inf", float(reached[-1]))]
