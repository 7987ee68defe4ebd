"""Computes what another release would have answered, and compares: beside the answers, within a budget, for nobody."""

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractContextManager
from time import monotonic
from typing import NamedTuple, Protocol

import numpy as np

from server.core.errors import EncoderUnavailable, SegrecError
from server.core.ranking import Query, Ranked
from server.core.release import Release
from server.core.repository.traffic import Traffic
from server.monitoring.release_stats import ReleaseStats, ShadowComparison
from server.serving.answer import Answer, Degraded
from server.serving.pipeline import Pipeline

log = logging.getLogger(__name__)

TOP_ITEMS = 10
MOST_WAITING = 256
"""Answers that may wait to be compared; those beyond are dropped, and counted."""
BATCH = 16
"""So many are computed at once: few, so that an answer never waits long behind them."""


class ShadowPair(NamedTuple):
    """Answers of `answering` are computed again with `beside`; the figures are those of `told`, one of the two."""

    answering: int
    beside: int
    told: int

    @property
    def other(self) -> int:
        """The one that `told` is compared with."""
        return self.answering if self.told == self.beside else self.beside


def pair_of(traffic: Traffic) -> ShadowPair | None:
    """Whom to compare: the active release with its shadow; without a shadow the canary with the active release."""
    if traffic.shadow:
        return ShadowPair(traffic.stable, traffic.shadow, traffic.shadow)
    if traffic.canary:
        return ShadowPair(traffic.canary, traffic.stable, traffic.canary)
    return None


class ShadowRouting(Protocol):
    """Says which releases answer and are loaded, on this server."""

    @property
    def traffic(self) -> Traffic:
        """What is in force."""
        ...

    def lease(self, number: int = 0) -> AbstractContextManager[Release]:
        """A loaded release. Raises `NotFound` or `NoRelease`."""
        ...


class Shadow:
    """Compares answers with those of another release, in one task of its own.

    After work that took t seconds it rests for t · (1 / `budget` − 1), so that it works for the share `budget` of the
    time at most. Whoever answers only leaves a reference here; what there is no room for is dropped.
    `pipeline` should have threads and calls to Triton of its own.
    """

    def __init__(
        self,
        routed: ShadowRouting,
        pipeline: Pipeline,
        live: ReleaseStats,
        budget: float,
        timeout_seconds: float,
        clock: Callable[[], float] = monotonic,
        rest: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._routed = routed
        self._pipeline = pipeline
        self._live = live
        self._budget = budget
        self._timeout = timeout_seconds
        self._clock = clock
        self._rest = rest
        self._waiting: deque[tuple[Release, Answer]] = deque()
        self._offered = asyncio.Event()
        self._named = ""
        self.on_dropped: Callable[[int], None] = lambda _: None
        """Called with how many answers there was no room for."""

    def offer(self, release: Release, answers: Sequence[Answer]) -> None:
        """Have answers of a release compared, where they are to be and as far as there is room. Never waits."""
        pair = pair_of(self._routed.traffic)
        if pair is None or release.number != pair.answering:
            return
        telling = [answer for answer in answers if answer.history and answer.degraded is Degraded.NO]
        room = MOST_WAITING - len(self._waiting)
        self._waiting.extend((release, answer) for answer in telling[:room])
        if len(telling) > room:
            self.on_dropped(len(telling) - room)
        self._offered.set()

    async def work(self) -> None:
        """Compare until cancelled. Never ends by an exception."""
        while True:
            await self._offered.wait()
            start = self._clock()
            try:
                await self.compare_some()
            except SegrecError as error:
                self._name(str(error))
            except Exception:
                log.exception("comparing releases failed; going on")
            await self._rest((self._clock() - start) * (1.0 / self._budget - 1.0))

    async def compare_some(self) -> None:
        """Compare a batch of what waits. Raises `NotFound` while the other release is not loaded."""
        pair = pair_of(self._routed.traffic)
        release, answers = self._take()
        if pair is None or release is None or release.number != pair.answering:
            return
        with self._routed.lease(pair.beside) as beside:
            try:
                histories = [answer.history for answer in answers]
                other = await self._pipeline.answer_histories(beside, histories, self._timeout)
            except EncoderUnavailable as error:
                if pair.told == pair.beside:
                    self._live.failed(pair.told, len(answers))
                self._name(str(error))
                return
            found = await self._compare(release, beside, answers, other)
            if pair.told == pair.beside:
                self._live.computed(pair.told, other)
            self._live.compared(pair.told, pair.other, found)
        self._named = ""

    def _take(self) -> tuple[Release | None, list[Answer]]:
        """Some of what waits, all of one release."""
        release = self._waiting[0][0] if self._waiting else None
        answers: list[Answer] = []
        while self._waiting and len(answers) < BATCH and self._waiting[0][0] is release:
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
        items = [_scores(first, one) for one in ranked]
        return compare_answers(segments, other_segments, items, [_scores(second, one) for one in ranked_others])

    def _name(self, problem: str) -> None:
        """Say in the log what is wrong, once."""
        if problem != self._named:
            self._named = problem
            log.warning("answers are not compared: %s", problem)


def segment_id(release: Release, answer: Answer) -> int:
    """The stable id of the user's segment; 0 without one."""
    if answer.embedded.embedding is None:
        return 0
    return release.segments[answer.embedded.segment_index].segment_id


def _scores(release: Release, ranked: Sequence[Ranked]) -> dict[str, float]:
    return {release.item_ids[one.row]: one.score for one in ranked}


def compare_answers(
    segments: Sequence[int],
    other_segments: Sequence[int],
    items: Sequence[dict[str, float]],
    other_items: Sequence[dict[str, float]],
) -> ShadowComparison:
    """Sums over users: their segments by stable id, and their top items by id with their scores, of two releases."""
    overlap = shift = 0.0
    sharing = 0
    for one, other in zip(items, other_items, strict=True):
        common = one.keys() & other.keys()
        overlap += len(common) / max(len(one), len(other)) if one or other else 1.0
        if common:
            sharing += 1
            shift += float(np.mean([abs(one[item_id] - other[item_id]) for item_id in common]))
    changed = sum(one != other for one, other in zip(segments, other_segments, strict=True))
    return ShadowComparison(len(segments), changed, overlap, sharing, shift)
