"""Counts the answers, errors, times and comparisons of each release, in one bucket per second."""

from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from enum import IntEnum
from time import monotonic
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from server.core.errors import (
    EncoderAway,
    InvalidArgument,
    NoRelease,
    NotFound,
    Overloaded,
    ReleaseNotLoaded,
    StoreUnavailable,
    TooLate,
)
from server.serving.answer import Answer, Degraded

LONGEST_SECONDS = 3600
"""Length of the memory, and the longest window of a guard."""
DEFAULT_WINDOW_SECONDS = 300.0
"""Window of the figures that the API shows for a release."""

_BINS_PER_DOUBLING = 4
TIME_BOUNDS: NDArray[np.float64] = 1e-4 * 2.0 ** (np.arange(80) / _BINS_PER_DOUBLING)
"""Upper bounds of the bins for call times, seconds (80,), from 0.1 ms to 88 s; one more bin holds longer times.
A quantile from these bins is at most a fifth off, and mostly much closer."""
_BOUNDS: list[float] = TIME_BOUNDS.tolist()


_OF_OTHERS = (
    InvalidArgument,
    NotFound,
    NoRelease,
    Overloaded,
    TooLate,
    StoreUnavailable,
    EncoderAway,
    ReleaseNotLoaded,
)
"""Errors that are the caller's fault, or that of another part than the release."""


class Count(IntEnum):
    """The counters of a release; each is a column of a bucket."""

    REQUESTS = 0
    ERRORS = 1
    ANSWERS = 2
    DEGRADED = 3
    PLACED = 4
    UNCONFIDENT = 5
    COMPARED = 6
    CHANGED = 7
    OVERLAP = 8
    SHARING = 9
    SHIFT = 10


_OF_ANSWERS = (Count.REQUESTS, Count.DEGRADED, Count.PLACED, Count.UNCONFIDENT, Count.ANSWERS)
_OF_COMPARISONS = (Count.COMPARED, Count.CHANGED, Count.OVERLAP, Count.SHARING, Count.SHIFT)


@dataclass(frozen=True, slots=True)
class ShadowComparison:
    """Sums over the `compared` users for whom two releases computed an answer.

    `changed` users are in another segment. `overlap` sums the share of top items in common. `sharing` users have a top
    item in common; over these users, `shift` sums the mean absolute difference of the scores of these items.
    """

    compared: int = 0
    changed: int = 0
    overlap: float = 0.0
    sharing: int = 0
    shift: float = 0.0


@dataclass(frozen=True, slots=True)
class Figures:
    """Figures of a release over the last `window_seconds`. Shares are 0 to 1; a share of nothing is 0.

    `request_count` counts unary calls and rows of streams, `timed_count` answered unary calls. `answer_count` is 0 for
    a shadow: its answers reach no caller.
    """

    window_seconds: float
    request_count: int
    answer_count: int
    placed_count: int
    timed_count: int
    error_share: float
    degraded_share: float
    unconfident_share: float
    median_seconds: float
    p99_seconds: float
    compared_release: int
    compared_count: int
    changed_share: float
    top_items_overlap: float
    score_shift: float


class _SecondBuckets:
    """Ring of one bucket per second for one release, and the totals since the release was loaded.

    The bucket of the current second is a plain list, because adding to an array costs ten times as much.
    """

    def __init__(self, second: int) -> None:
        self.compared_release = 0
        self.seconds_total = 0.0
        self._now = [0.0] * len(Count)
        self._now_times = [0] * (len(TIME_BOUNDS) + 1)
        self._totals = [0.0] * len(Count)
        self._time_totals = [0] * (len(TIME_BOUNDS) + 1)
        self._counts = np.zeros((LONGEST_SECONDS, len(Count)))
        self._times = np.zeros((LONGEST_SECONDS, len(TIME_BOUNDS) + 1), np.uint32)
        self._first = self._latest = second

    def add(self, second: int, amounts: Iterable[tuple[Count, float]]) -> None:
        self._move_to(second)
        now, totals = self._now, self._totals
        for column, amount in amounts:
            if amount:
                now[column] += amount
                totals[column] += amount

    def add_time(self, second: int, seconds: float) -> None:
        self._move_to(second)
        place = bisect_left(_BOUNDS, seconds)
        self._now_times[place] += 1
        self._time_totals[place] += 1
        self.seconds_total += seconds

    def totals(self) -> tuple[NDArray[np.float64], NDArray[np.int64], float]:
        return np.array(self._totals), np.array(self._time_totals, np.int64), self.seconds_total

    def _move_to(self, second: int) -> None:
        """Begin the bucket of this second, and clear the rows of the ring that are older than `LONGEST_SECONDS`."""
        if second <= self._latest:
            return
        self._write()
        self._now = [0.0] * len(Count)
        self._now_times = [0] * (len(TIME_BOUNDS) + 1)
        stale = np.arange(max(self._latest + 1, second - LONGEST_SECONDS + 1), second + 1) % LONGEST_SECONDS
        self._counts[stale] = 0.0
        self._times[stale] = 0
        self._latest = second

    def _write(self) -> None:
        """Write the bucket of the current second into the ring."""
        row = self._latest % LONGEST_SECONDS
        self._counts[row] = self._now
        self._times[row] = self._now_times

    def over(self, second: int, window: int) -> tuple[int, NDArray[np.float64], NDArray[np.int64]]:
        """Sums over the last `window` seconds: length (shorter for a young release), counts and times by bin."""
        self._move_to(second)
        self._write()
        length = min(window, LONGEST_SECONDS, second - self._first + 1)
        rows = np.arange(second - length + 1, second + 1) % LONGEST_SECONDS
        return length, self._counts[rows].sum(axis=0), self._times[rows].sum(axis=0, dtype=np.int64)

    def compare_with(self, release: int) -> None:
        """Set the release to compare with; the comparisons with an earlier one are cleared."""
        if release != self.compared_release:
            self._counts[:, Count.COMPARED :] = 0.0
            self._now[Count.COMPARED :] = [0.0] * (len(Count) - Count.COMPARED)
            self.compared_release = release


class ReleaseStats:
    """Counters of all releases. Used from the event loop; `totals` may be called from other threads.

    `clock` gives monotonic seconds. A release takes a few megabytes of memory, whatever its load, until `forget`.
    Rows of streams (`is_batch`) are counted apart from unary calls: a guard judges a canary by unary calls alone.
    What other parts failed at is not counted: it says nothing about the release.
    """

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        self._clock = clock
        self._buckets: dict[int, _SecondBuckets] = {}
        self._batch_buckets: dict[int, _SecondBuckets] = {}

    def counting_errors(self, release: int, amount: int, is_batch: bool = False) -> "_CountingErrors":
        """Count `amount` calls or rows as failed when the block raises an error that can be the release's fault."""
        return _CountingErrors(self, release, amount, is_batch)

    def answered(
        self, release: int, answers: Sequence[Answer], is_batch: bool = False, seconds: float | None = None
    ) -> None:
        """Count answers that were sent to callers; `seconds` is the time of a unary call."""
        buckets, second = self._of(release, is_batch), int(self._clock())
        counted = self._add(buckets, second, answers, are_sent=True)
        if seconds is not None and counted:
            buckets.add_time(second, seconds)

    def computed(self, release: int, answers: Sequence[Answer]) -> None:
        """Count answers of a shadow, which are sent to no caller."""
        self._add(self._of(release), int(self._clock()), answers, are_sent=False)

    def _add(self, buckets: _SecondBuckets, second: int, answers: Sequence[Answer], *, are_sent: bool) -> int:
        """Add answers to the buckets; returns how many were counted."""
        counted, degraded, placed, unconfident = len(answers), 0, 0, 0
        for embedded, _, degradation, tells_of_release, _ in answers:
            if not tells_of_release:
                counted -= 1
                continue
            degraded += degradation is not Degraded.NO
            if embedded.embedding is not None:
                placed += 1
                unconfident += not embedded.is_confident
        sent = counted if are_sent else 0
        buckets.add(second, zip(_OF_ANSWERS, (counted, degraded, placed, unconfident, sent), strict=True))
        return counted

    def failed(self, release: int, amount: int, is_batch: bool = False) -> None:
        """Count calls or rows that ended in an error that the caller did not cause."""
        buckets, second = self._of(release, is_batch), int(self._clock())
        buckets.add(second, ((Count.REQUESTS, amount), (Count.ERRORS, amount)))

    def compared(self, release: int, other: int, comparison: ShadowComparison) -> None:
        """Add a comparison of a release with another; comparisons with a third release are cleared."""
        buckets, second = self._of(release), int(self._clock())
        buckets.compare_with(other)
        sums = (comparison.compared, comparison.changed, comparison.overlap, comparison.sharing, comparison.shift)
        buckets.add(second, zip(_OF_COMPARISONS, sums, strict=True))

    def _of(self, release: int, is_batch: bool = False) -> _SecondBuckets:
        group = self._batch_buckets if is_batch else self._buckets
        buckets = group.get(release)
        if buckets is None:
            buckets = group[release] = _SecondBuckets(int(self._clock()))
        return buckets

    def forget(self, release: int) -> None:
        """Drop the counters of a release that was unloaded."""
        self._buckets.pop(release, None)
        self._batch_buckets.pop(release, None)

    def totals(self) -> dict[int, tuple[NDArray[np.float64], NDArray[np.int64], float]]:
        """Release → totals since it was loaded: counts in the order of `Count`, times by bin, seconds in all."""
        totals: dict[int, tuple[NDArray[np.float64], NDArray[np.int64], float]] = {}
        for release, buckets in [*self._buckets.copy().items(), *self._batch_buckets.copy().items()]:
            counts, times, seconds = buckets.totals()
            if release in totals:
                counts, times, seconds = totals[release][0] + counts, totals[release][1] + times, totals[release][2]
            totals[release] = counts, times, seconds
        return dict(sorted(totals.items()))

    def figures(self, release: int, window_seconds: float = DEFAULT_WINDOW_SECONDS) -> Figures | None:
        """Figures of a release over whole seconds, the current one included; None for a release without requests."""
        return self._figures(window_seconds, self._buckets.get(release), self._batch_buckets.get(release))

    def unary_figures(self, release: int, window_seconds: float) -> Figures | None:
        """Like `figures`, without the rows of streams."""
        return self._figures(window_seconds, self._buckets.get(release))

    def _figures(self, window_seconds: float, *groups: _SecondBuckets | None) -> Figures | None:
        present = [buckets for buckets in groups if buckets is not None]
        if not present:
            return None
        second, window = int(self._clock()), max(1, round(window_seconds))
        sums = [buckets.over(second, window) for buckets in present]
        counts, times = sum(part[1] for part in sums), sum(part[2] for part in sums)
        compared = next((buckets.compared_release for buckets in present if buckets.compared_release), 0)
        return _figures(float(max(part[0] for part in sums)), np.asarray(counts), np.asarray(times), compared)


class _CountingErrors(AbstractContextManager[None]):
    """See `ReleaseStats.counting_errors`. A class, since each call takes one: a generator costs twice that."""

    __slots__ = ("_amount", "_is_batch", "_release", "_stats")

    def __init__(self, stats: ReleaseStats, release: int, amount: int, is_batch: bool) -> None:
        self._stats, self._release, self._amount, self._is_batch = stats, release, amount, is_batch

    def __enter__(self) -> None:
        """Do nothing."""

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if isinstance(error, Exception) and not isinstance(error, _OF_OTHERS):
            self._stats.failed(self._release, self._amount, self._is_batch)


def _figures(window: float, counts: NDArray[np.float64], times: NDArray[np.int64], compared_release: int) -> Figures:
    def share(part: Count, whole: Count) -> float:
        return float(counts[part] / counts[whole]) if counts[whole] else 0.0

    return Figures(
        window_seconds=window,
        request_count=int(counts[Count.REQUESTS]),
        answer_count=int(counts[Count.ANSWERS]),
        placed_count=int(counts[Count.PLACED]),
        timed_count=int(times.sum()),
        error_share=share(Count.ERRORS, Count.REQUESTS),
        degraded_share=float(counts[Count.DEGRADED] / max(1.0, counts[Count.REQUESTS] - counts[Count.ERRORS])),
        unconfident_share=share(Count.UNCONFIDENT, Count.PLACED),
        median_seconds=quantile(times, 0.5),
        p99_seconds=quantile(times, 0.99),
        compared_release=compared_release,
        compared_count=int(counts[Count.COMPARED]),
        changed_share=share(Count.CHANGED, Count.COMPARED),
        top_items_overlap=share(Count.OVERLAP, Count.COMPARED),
        score_shift=share(Count.SHIFT, Count.SHARING),
    )


def quantile(times: NDArray[np.int64], share: float) -> float:
    """The time within which this share of the calls ended, seconds; 0 without calls. `times` has `TIME_BOUNDS` bins."""
    total = int(times.sum())
    if not total:
        return 0.0
    reached = np.cumsum(times)
    place = int(np.searchsorted(reached, share * total))
    if place == len(TIME_BOUNDS):
        return float(TIME_BOUNDS[-1])
    # Interpolate inside the bin, on the logarithmic scale of the bounds.
    inside = (share * total - (reached[place] - times[place])) / times[place]
    return float(TIME_BOUNDS[place] * 2.0 ** ((inside - 1.0) / _BINS_PER_DOUBLING))
