"""Prometheus counters and histograms in plain numbers, for what every call counts.

Those of prometheus_client take a lock each time, which several threads need. These are counted in the event loop only,
at a tenth of the cost; Prometheus reads them in a thread of its own.
"""

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from itertools import accumulate

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString


class Count:
    """The count of one series."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0

    def inc(self, amount: int = 1) -> None:
        self.value += amount


class PlainCounter(Collector):
    """Counts by label values."""

    def __init__(self, name: str, documentation: str, labels: Sequence[str], registry: CollectorRegistry) -> None:
        self._name, self._documentation, self._labels = name, documentation, labels
        self._counts: dict[tuple[str, ...], Count] = {}
        registry.register(self)

    def labels(self, *values: str) -> Count:
        """The count of these label values, which callers keep where each call counts."""
        return self._counts.setdefault(values, Count())

    def collect(self) -> Iterator[Metric]:
        family = CounterMetricFamily(self._name, self._documentation, labels=self._labels)
        for values, count in self._counts.copy().items():
            family.add_metric(values, count.value)
        yield family


class Times:
    """The times of one series, seconds, by bin; the last bin is for those above all bounds."""

    __slots__ = ("_bounds", "counts", "seconds")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.seconds = 0.0

    def observe(self, seconds: float) -> None:
        self.counts[bisect_left(self._bounds, seconds)] += 1
        self.seconds += seconds


class PlainHistogram(Collector):
    """Times in seconds by one label; `bounds` are the upper bounds of the bins, ascending."""

    def __init__(
        self, name: str, documentation: str, label: str, bounds: Sequence[float], registry: CollectorRegistry
    ) -> None:
        self._name, self._documentation, self._label, self._bounds = name, documentation, label, bounds
        self._times: dict[str, Times] = {}
        registry.register(self)

    def labels(self, value: str) -> Times:
        """The times of this label value, which callers keep where each call is timed."""
        return self._times.setdefault(value, Times(self._bounds))

    def collect(self) -> Iterator[Metric]:
        family = HistogramMetricFamily(self._name, self._documentation, labels=[self._label])
        bounds = [*map(floatToGoString, self._bounds), "+Inf"]
        for value, times in self._times.copy().items():
            reached = accumulate(times.counts.copy())
            family.add_metric([value], list(zip(bounds, reached, strict=True)), times.seconds)
        yield family
