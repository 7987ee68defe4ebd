"""One request, from history to answer: snapshot → history store → features → Triton → nearest centroid → items."""

import asyncio
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from typing import TypeVar

import numpy as np

from server.adapters.ports import HistoryStore
from server.core.errors import EncoderUnavailable, StoreUnavailable
from server.core.history import EMPTY, Event, History
from server.core.ranking import Query, Ranked, Subject, rank
from server.core.release import Release
from server.serving.answer import Answer, Degraded, Embedded
from server.serving.batching import MicroBatcher
from server.serving.cache import EmbeddingCache
from server.serving.embedding import Embedder

log = logging.getLogger(__name__)
T = TypeVar("T")

WARM_UP_SIZES = (1, 4, 32, 64)
"""So many histories at a time are run through a release before it answers."""
WARM_UP_SECONDS = 10.0
RANK_IN_THREAD_FROM = 4
"""Rankings of fewer users than this are quicker than a change of thread."""


_NOTHING = Embedded(None)
NO_ANSWER = Answer(_NOTHING, EMPTY)
"""The answer for a user without history."""
_UNREADABLE = Answer(_NOTHING, EMPTY, Degraded.STORE_UNAVAILABLE)
"""The answer for a user whose history could not be read."""


class _RecentUsers:
    """Ids of a few dozen users who were asked for lately, in memory only."""

    def __init__(self) -> None:
        self._ids: dict[str, None] = {}

    def saw(self, user_id: str) -> None:
        """Remember a user, forgetting the one who has been here longest when there are enough."""
        if user_id in self._ids:
            return
        self._ids[user_id] = None
        if len(self._ids) > WARM_UP_SIZES[-1]:
            del self._ids[next(iter(self._ids))]

    def forget(self, user_id: str) -> None:
        """Drop a user."""
        self._ids.pop(user_id, None)

    def ids(self) -> list[str]:
        """Those who are remembered."""
        return list(self._ids)


class Pipeline:
    """Answers for users and for histories given inline. Every answer is of the one release handed in."""

    def __init__(
        self,
        store: HistoryStore,
        cache: EmbeddingCache,
        embedder: Embedder,
        batcher: MicroBatcher,
        executor: Executor,
    ) -> None:
        self._store = store
        self._cache = cache
        self._embedder = embedder
        self._batcher = batcher
        self._executor = executor
        self._recent = _RecentUsers()
        self.on_encoder_failure: Callable[[], None] = lambda: None
        """Called whenever the encoder did not answer a call."""

    async def answer_user(self, release: Release, user_id: str, timeout_seconds: float) -> Answer:
        """The answer for a stored user; falls back, and says so, when the store or the encoder does not answer."""
        erasures = self._cache.erasures
        self._recent.saw(user_id)
        try:
            history = await self._store.get(user_id)
        except StoreUnavailable as error:
            log.warning("the history store did not answer: %s", error)
            return _UNREADABLE
        cached = self._cache.get(release.number, user_id, history.revision)
        if cached is not None:
            return Answer(cached, history)
        if not history:
            return Answer(_NOTHING, history)
        try:
            embedded = await self._batcher.embed(release, history, timeout_seconds)
        except EncoderUnavailable as error:
            return self._fallback(release, user_id, history, error)
        self._cache.put(release.number, user_id, history.revision, embedded, erasures)
        return Answer(embedded, history)

    async def answer_events(self, release: Release, history: History, timeout_seconds: float) -> Answer:
        """The answer for a history given inline. Unknown items and actions are counted over all of it."""
        items, actions = release.item_index.find(history.item_hashes), release.action_index.find(history.action_hashes)
        unknown = int(((items == 0) | (actions == 0)).sum())
        try:
            embedded = await self._batcher.embed(release, history, timeout_seconds)
        except EncoderUnavailable as error:
            self._report(error)
            return Answer(_NOTHING._replace(ignored_count=unknown), history, Degraded.ENCODER_UNAVAILABLE)
        return Answer(embedded._replace(ignored_count=unknown), history)

    async def answer_histories(
        self, release: Release, histories: Sequence[History], call_seconds: float
    ) -> list[Answer]:
        """One answer per history, in order, without store, cache or fallback. Raises `EncoderUnavailable`."""
        embedded = await self._embedder.embed(release, histories, call_seconds)
        return [Answer(*one) for one in zip(embedded, histories, strict=True)]

    async def answer_users(self, release: Release, user_ids: Sequence[str], call_seconds: float) -> list[Answer]:
        """One answer per user, in order. Reads the cache but does not fill it, so that batches leave it warm.

        `call_seconds` is the longest wait for one call to Triton; see `Embedder.embed`.
        """
        for user_id in user_ids[:1]:
            self._recent.saw(user_id)
        try:
            histories = await self._store.get_many(user_ids)
        except StoreUnavailable as error:
            log.warning("the history store did not answer: %s", error)
            return [_UNREADABLE] * len(user_ids)
        answers: list[Answer] = []
        missing: list[int] = []
        for place, (user_id, history) in enumerate(zip(user_ids, histories, strict=True)):
            if history is None:
                answers.append(_UNREADABLE)
                continue
            cached = self._cache.get(release.number, user_id, history.revision)
            if cached is None and history:
                missing.append(place)
            answers.append(Answer(cached or _NOTHING, history))
        if not missing:
            return answers
        wanted = [answers[place].history for place in missing]
        try:
            embedded = await self._embedder.embed(release, wanted, call_seconds)
        except EncoderUnavailable as error:
            for place, history in zip(missing, wanted, strict=True):
                answers[place] = self._fallback(release, user_ids[place], history, error)
            return answers
        for place, history, result in zip(missing, wanted, embedded, strict=True):
            answers[place] = Answer(result, history)
        return answers

    async def warm_up(self, release: Release) -> None:
        """Run histories of users seen lately through a release. Raises `EncoderUnavailable` when it cannot embed them.

        Where nobody was seen yet, or the store does not answer, there is nothing to do.
        """
        try:
            found = await self._store.get_many(self._recent.ids())
        except StoreUnavailable as error:
            log.warning("release %d answers without a warm-up: %s", release.number, error)
            return
        histories = [history for history in found if history]
        for count in WARM_UP_SIZES:
            if histories:
                await self._embedder.embed(release, histories[:count], WARM_UP_SECONDS)

    async def recommend(self, release: Release, query: Query, answers: Sequence[Answer]) -> list[list[Ranked]]:
        """Rank items for each answer; see `server.core.ranking.rank`."""
        if len(answers) < RANK_IN_THREAD_FROM:
            return _rank(release, query, answers)
        return await self._in_thread(_rank, release, query, answers)

    async def record(self, user_id: str, events: Sequence[Event]) -> tuple[int, int]:
        """Store a user's events durably; returns (stored, duplicates). Raises `StoreUnavailable`."""
        return await self._store.record(user_id, events)

    async def history(self, user_id: str) -> History:
        """What is stored of a user. Raises `StoreUnavailable`."""
        return await self._store.get(user_id)

    async def erase(self, user_id: str, releases: list[int]) -> int:
        """Forget a user, cached embeddings of these releases included; returns the events erased."""
        erased = await self._store.erase(user_id)
        self._recent.forget(user_id)
        self._cache.forget_user(user_id, releases)
        return erased

    async def _in_thread(self, function: Callable[..., T], *arguments: object) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._executor, function, *arguments)

    def _fallback(self, release: Release, user_id: str, history: History, error: EncoderUnavailable) -> Answer:
        self._report(error)
        latest = self._cache.latest(release.number, user_id)
        if latest is None or latest[1].embedding is None:
            return Answer(_NOTHING, history, Degraded.ENCODER_UNAVAILABLE)
        return Answer(latest[1], history, Degraded.STALE_EMBEDDING)

    def _report(self, error: EncoderUnavailable) -> None:
        log.debug("the encoder did not answer a call: %s", error)
        self.on_encoder_failure()


def _rank(release: Release, query: Query, answers: Sequence[Answer]) -> list[list[Ranked]]:
    return rank(release, query, [_subject(release, answer) for answer in answers])


def _subject(release: Release, answer: Answer) -> Subject:
    embedded = answer.embedded
    segment_id = release.segments[embedded.segment_index].segment_id if embedded.embedding is not None else 0
    rows = np.unique(release.item_index.find(answer.history.item_hashes)).astype(np.intp) - 1
    return Subject(embedded.embedding, segment_id, rows[rows >= 0])
