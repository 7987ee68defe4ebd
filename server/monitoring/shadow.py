"""Compares answers with those of another release, in the background and within a budget of time."""

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractContextManager
from time import monotonic
from typing import NamedTuple, Protocol

import numpy as np

from server.core.errors import EncoderUnavailable, SegrecError
from server.core.ranking.query import Query, Ranking
from server.core.release import Release
from server.core.repository.traffic import Traffic
from server.monitoring.release_stats import ReleaseStats, ShadowComparison
from server.serving.answer import Answer, Degraded
from server.serving.pipeline import Pipeline

log = logging.getLogger(__name__)

TOP_ITEMS = 10
WAITING_MAX = 256
"""Largest number of answers that wait for comparison; further answers are dropped and counted."""
BATCH_ANSWERS = 16
"""Answers in one comparison: few, so that a request never waits long behind it."""


class ShadowPair(NamedTuple):
    """Release `beside` computes the answers of release `answering` again; `measured`, one of both, gets the figures."""

    answering: int
    beside: int
    measured: int

    @property
    def other(self) -> int:
        """The release that `measured` is compared with."""
        return self.answering if self.measured == self.beside else self.beside


def pair_of(traffic: Traffic) -> ShadowPair | None:
    """The releases to compare: active and shadow; without a shadow, canary and active; otherwise None."""
    if traffic.shadow:
        return ShadowPair(traffic.stable, traffic.shadow, traffic.shadow)
    if traffic.canary:
        return ShadowPair(traffic.canary, traffic.stable, traffic.canary)
    return None


class ShadowRouting(Protocol):
    """The routing of this server, as far as the shadow needs it; `ReleaseRegistry` implements it."""

    @property
    def traffic(self) -> Traffic:
        """The traffic in force."""
        ...

    def lease(self, number: int = 0) -> AbstractContextManager[Release]:
        """Keep a loaded release loaded until the block ends. Raises `NotFound` or `NoRelease`."""
        ...


class Shadow:
    """Compares answers with those of another release, in its own task.

    After t seconds of work the task rests for t · (1 / `budget` − 1) seconds, so `budget` is its largest share of the
    time. A request only appends to a queue; a full queue drops answers. `pipeline` must not share its threads and its
    `Embedder` with the pipeline that answers requests.
    """

    def __init__(
        self,
        routing: ShadowRouting,
        pipeline: Pipeline,
        stats: ReleaseStats,
        budget: float,
        timeout_seconds: float,
        clock: Callable[[], float] = monotonic,
        rest: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._routing = routing
        self._pipeline = pipeline
        self._stats = stats
        self._budget = budget
        self._timeout = timeout_seconds
        self._clock = clock
        self._rest = rest
        self._waiting: deque[tuple[Release, Answer]] = deque()
        self._offered = asyncio.Event()
        self._last_problem = ""
        self.on_dropped: Callable[[int], None] = lambda _: None
        """Called with the number of dropped answers."""

    def offer(self, release: Release, answers: Sequence[Answer]) -> None:
        """Queue the answers of a release for comparison if the traffic has a pair to compare. Never waits."""
        pair = pair_of(self._routing.traffic)
        if pair is None or release.number != pair.answering:
            return
        comparable = [answer for answer in answers if answer.history and answer.degraded is Degraded.NO]
        room = WAITING_MAX - len(self._waiting)
        self._waiting.extend((release, answer) for answer in comparable[:room])
        if len(comparable) > room:
            self.on_dropped(len(comparable) - room)
        self._offered.set()

    async def work(self) -> None:
        """Compare until cancelled. Never ends by an exception."""
        while True:
            await self._offered.wait()
            start = self._clock()
            try:
                await self.compare_some()
            except SegrecError as error:
                self._warn_once(str(error))
            except Exception:
                log.exception("the comparison of releases failed; trying again")
            await self._rest((self._clock() - start) * (1.0 / self._budget - 1.0))

    async def compare_some(self) -> None:
        """Compare one batch of the queue. Raises `NotFound` while the other release is not loaded."""
        pair = pair_of(self._routing.traffic)
        release, answers = self._take()
        if pair is None or release is None or release.number != pair.answering:
            return
        with self._routing.lease(pair.beside) as beside:
            try:
                histories = [answer.history for answer in answers]
                other = await self._pipeline.answer_histories(beside, histories, self._timeout)
            except EncoderUnavailable as error:
                if pair.measured == pair.beside:
                    self._stats.failed(pair.measured, len(answers))
                self._warn_once(str(error))
                return
            comparison = await self._compare(release, beside, answers, other)
            if pair.measured == pair.beside:
                self._stats.computed(pair.measured, other)
            self._stats.compared(pair.measured, pair.other, comparison)
        self._last_problem = ""

    def _take(self) -> tuple[Release | None, list[Answer]]:
        """Take up to `BATCH_ANSWERS` answers of one release from the queue."""
        release = self._waiting[0][0] if self._waiting else None
        answers: list[Answer] = []
        while self._waiting and len(answers) < BATCH_ANSWERS and self._waiting[0][0] is release:
            answers.append(self._waiting.popleft()[1])
        if not self._waiting:
            self._offered.clear()
        return release, answers

    async def _compare(
        self, first: Release, second: Release, answers: Sequence[Answer], others: Sequence[Answer]
    ) -> ShadowComparison:
        query = Query(top_k=TOP_ITEMS)
        ranked = await self._pipeline.recommend(first, query, answers)
        ranked_others = await self._pipeline.recommend(second, query, others)
        segments = [segment_id(first, answer) for answer in answers]
        other_segments = [segment_id(second, answer) for answer in others]
        items = [_scores(first, ranking) for ranking in ranked]
        other_items = [_scores(second, ranking) for ranking in ranked_others]
        return compare_answers(segments, other_segments, items, other_items)

    def _warn_once(self, problem: str) -> None:
        """Log a problem, unless it is the last one that was logged."""
        if problem != self._last_problem:
            self._last_problem = problem
            log.warning("answers are not compared: %s", problem)


def segment_id(release: Release, answer: Answer) -> int:
    """The stable id of the user's segment; 0 for an answer without a segment."""
    if answer.embedded.embedding is None:
        return 0
    return release.segments[answer.embedded.segment_index].segment_id


def _scores(release: Release, ranking: Ranking) -> dict[str, float]:
    return {release.item_ids[item.row]: item.score for item in ranking.items}


def compare_answers(
    segments: Sequence[int],
    other_segments: Sequence[int],
    items: Sequence[dict[str, float]],
    other_items: Sequence[dict[str, float]],
) -> ShadowComparison:
    """Compare two releases user by user: stable segment ids, and top items as item id → score."""
    overlap = shift = 0.0
    sharing = 0
    for scores, other in zip(items, other_items, strict=True):
        common = scores.keys() & other.keys()
        overlap += len(common) / max(len(scores), len(other)) if scores or other else 1.0
        if common:
            sharing += 1
            shift += float(np.mean([abs(scores[item_id] - other[item_id]) for item_id in common]))
    changed = sum(segment != other for segment, other in zip(segments, other_segments, strict=True))
    return ShadowComparison(len(segments), changed, overlap, sharing, shift)
