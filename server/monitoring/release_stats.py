"""What each release did lately: answers, errors, times and comparisons, in one bucket a second."""

from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import IntEnum
from itertools import count
from time import monotonic

import numpy as np
from numpy.typing import NDArray

from server.core.errors import InvalidArgument, NotFound
from server.serving.answer import Answer, Degraded

LONGEST_SECONDS = 3600
"""So far back is remembered; no guard looks further."""
SHOWN_SECONDS = 300.0
"""So far back reaches what is shown of a release."""

_BINS_PER_DOUBLING = 4
TIME_BOUNDS: NDArray[np.float64] = 1e-4 * 2.0 ** (np.arange(80) / _BINS_PER_DOUBLING)
"""Upper bounds of the bins that times are counted in, seconds (80,), from 0.1 ms to 88 s; longer ones have a last bin.
A quantile read from them is right to within a fifth, and mostly far better."""
_BOUNDS: list[float] = TIME_BOUNDS.tolist()


class Count(IntEnum):
    """What is counted; the columns of a bucket."""

    ASKED = 0
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


@dataclass(frozen=True, slots=True)
class ShadowComparison:
    """Sums over users whom two releases were asked about.

    `changed` of the `compared` users are in another segment; `overlap` sums the share of top items in common, and
    `shift` the mean absolute difference of their scores over the `sharing` users who have any.
    """

    compared: int = 0
    changed: int = 0
    overlap: float = 0.0
    sharing: int = 0
    shift: float = 0.0


@dataclass(frozen=True, slots=True)
class Figures:
    """What a release did in the last `window_seconds`. Shares are 0 to 1, 0 where there was nothing to share out.

    `asked_count` are unary calls and rows of streams, `timed_count` unary calls that were answered. For a release that
    is computed beside another, `answer_count` is 0: nobody got to see what it computed.
    """

    window_seconds: float
    asked_count: int
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


class _Past:
    """The buckets of one release, and its totals since it was loaded.

    The bucket of the current second is a plain list, since adding to an array costs ten times as much.
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

    def add(self, second: int, what: Count, amount: float) -> None:
        self._move_to(second)
        self._now[what] += amount
        self._totals[what] += amount

    def add_time(self, second: int, seconds: float) -> None:
        self._move_to(second)
        place = bisect_left(_BOUNDS, seconds)
        self._now_times[place] += 1
        self._time_totals[place] += 1
        self.seconds_total += seconds

    def totals(self) -> tuple[NDArray[np.float64], NDArray[np.int64], float]:
        return np.array(self._totals), np.array(self._time_totals, np.int64), self.seconds_total

    def _move_to(self, second: int) -> None:
        """Begin the bucket of this second; rows that the ring comes back to are empty again."""
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
        """Put the current second among the others."""
        row = self._latest % LONGEST_SECONDS
        self._counts[row] = self._now
        self._times[row] = self._now_times

    def over(self, second: int, window: int) -> tuple[int, NDArray[np.float64], NDArray[np.int64]]:
        """How many of the last `window` seconds there were, and the sums over them."""
        self._move_to(second)
        self._write()
        length = min(window, LONGEST_SECONDS, second - self._first + 1)
        rows = np.arange(second - length + 1, second + 1) % LONGEST_SECONDS
        return length, self._counts[rows].sum(axis=0), self._times[rows].sum(axis=0, dtype=np.int64)

    def compare_with(self, release: int) -> None:
        """Forget comparisons with any other release."""
        if release != self.compared_release:
            self._counts[:, Count.COMPARED :] = 0.0
            self._now[Count.COMPARED :] = [0.0] * (len(Count) - Count.COMPARED)
            self.compared_release = release


class ReleaseStats:
    """Counts what releases do. Used from the event loop; `totals` may be read from other threads.

    `clock` gives seconds that never go back. A release takes some megabytes at most, however much it answers, until
    `forget` is called for it.
    """

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        self._clock = clock
        self._past: dict[int, _Past] = {}

    @contextmanager
    def call(self, release: int) -> Iterator[None]:
        """Time a unary call, and count it as failed when it ends in an error of ours."""
        start = self._clock()
        with self.counting_errors(release, 1):
            yield
        now = self._clock()
        self._of(release).add_time(int(now), now - start)

    @contextmanager
    def counting_errors(self, release: int, amount: int) -> Iterator[None]:
        """Count so many calls or rows as failed when the block ends in an error that is not the caller's."""
        try:
            yield
        except Exception as error:
            if not isinstance(error, (InvalidArgument, NotFound)):
                self.failed(release, amount)
            raise

    def answered(self, release: int, answers: Sequence[Answer]) -> None:
        """Count answers that were given."""
        past, second = self._of(release), int(self._clock())
        past.add(second, Count.ANSWERS, len(answers))
        self._add(past, second, answers)

    def computed(self, release: int, answers: Sequence[Answer]) -> None:
        """Count answers that were computed beside those of another release, for nobody."""
        self._add(self._of(release), int(self._clock()), answers)

    def _add(self, past: _Past, second: int, answers: Sequence[Answer]) -> None:
        degraded = placed = unconfident = 0
        for embedded, _, how in answers:
            degraded += how is not Degraded.NO
            if embedded.embedding is not None:
                placed += 1
                unconfident += not embedded.is_confident
        past.add(second, Count.ASKED, len(answers))
        past.add(second, Count.DEGRADED, degraded)
        past.add(second, Count.PLACED, placed)
        past.add(second, Count.UNCONFIDENT, unconfident)

    def failed(self, release: int, amount: int) -> None:
        """Count calls or rows that ended in an error of ours."""
        past, second = self._of(release), int(self._clock())
        past.add(second, Count.ASKED, amount)
        past.add(second, Count.ERRORS, amount)

    def compared(self, release: int, other: int, found: ShadowComparison) -> None:
        """Count what came of comparing a release with another; comparisons with a third one are forgotten."""
        past, second = self._of(release), int(self._clock())
        past.compare_with(other)
        sums = (found.compared, found.changed, found.overlap, found.sharing, found.shift)
        for what, amount in zip(count(Count.COMPARED), sums, strict=False):
            past.add(second, Count(what), amount)

    def _of(self, release: int) -> _Past:
        past = self._past.get(release)
        if past is None:
            past = self._past[release] = _Past(int(self._clock()))
        return past

    def forget(self, release: int) -> None:
        """Drop all that is known of a release, since it is unloaded."""
        self._past.pop(release, None)

    def totals(self) -> dict[int, tuple[NDArray[np.float64], NDArray[np.int64], float]]:
        """By release, since it was loaded: counts in the order of `Count`, times by bin, and the sum of the times."""
        return {release: past.totals() for release, past in sorted(self._past.copy().items())}

    def figures(self, release: int, window_seconds: float = SHOWN_SECONDS) -> Figures | None:
        """What a release did lately; None for one that was asked nothing. Whole seconds, the current one included."""
        past = self._past.get(release)
        if past is None:
            return None
        length, counts, times = past.over(int(self._clock()), max(1, round(window_seconds)))
        return _figures(float(length), counts, times, past.compared_release)


def _figures(window: float, counts: NDArray[np.float64], times: NDArray[np.int64], compared_release: int) -> Figures:
    def share(part: Count, of: Count) -> float:
        return float(counts[part] / counts[of]) if counts[of] else 0.0

    return Figures(
        window_seconds=window,
        asked_count=int(counts[Count.ASKED]),
        answer_count=int(counts[Count.ANSWERS]),
        placed_count=int(counts[Count.PLACED]),
        timed_count=int(times.sum()),
        error_share=share(Count.ERRORS, Count.ASKED),
        degraded_share=float(counts[Count.DEGRADED] / max(1.0, counts[Count.ASKED] - counts[Count.ERRORS])),
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
    """The time within which this share of the calls ended, seconds; 0 without calls. Bins as `TIME_BOUNDS`."""
    total = int(times.sum())
    if not total:
        return 0.0
    reached = np.cumsum(times)
    place = int(np.searchsorted(reached, share * total))
    if place == len(TIME_BOUNDS):
        return float(TIME_BOUNDS[-1])
    inside = (share * total - (reached[place] - times[place])) / times[place]
    return float(TIME_BOUNDS[place] * 2.0 ** ((inside - 1.0) / _BINS_PER_DOUBLING))
