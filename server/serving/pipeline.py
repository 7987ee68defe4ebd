"""The steps of one request: history store → cache → encoder → nearest centroid → ranking, with fallbacks."""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from time import monotonic
from typing import TypeVar

from server import tracing
from server.adapters.ports import HistoryStore, Recorded
from server.core.errors import EncoderAway, EncoderUnavailable, ReleaseNotLoaded, StoreUnavailable
from server.core.features import ignored_count
from server.core.history import EMPTY, Event, History
from server.core.ranking.contributions import left_out, reads_history, with_history_items
from server.core.ranking.query import Query, Ranking, Subject
from server.core.ranking.rank import past_events, rank
from server.core.release import Release
from server.serving.answer import Answer, Degraded, Embedded, PreparedSegment
from server.serving.batching import MicroBatcher
from server.serving.bounded_store import BoundedStore
from server.serving.breaker import SLOW_SECONDS, Breaker
from server.serving.cache import EmbeddingCache
from server.serving.embedding import Embedder

log = logging.getLogger(__name__)
T = TypeVar("T")

WARM_UP_SIZES = (1, 4, 32, 64)
"""Batch sizes (histories) of the warm-up of a release."""
WARM_UP_SECONDS = 10.0
RANK_IN_THREAD_FROM = 4
"""Fewer users than this are ranked without a thread, which is quicker, unless the catalogue is large."""
LARGE_CATALOGUE = 50_000
"""Items from which one user's ranking would hold up other calls for milliseconds."""
BATCH_STORE_SECONDS = 10.0
"""Longest wait for the histories of many users at once."""
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.05, 1.0
"""Pauses of `answer_users` before it asks a part again that does not answer; each is twice the one before."""

CANARY_PATIENCE_SECONDS = 5.0
"""How long a batch asks a canary that fails while Triton answers others; a model process is replaced within it."""

_NO_EMBEDDING = Embedded(None)
NO_ANSWER = Answer(_NO_EMBEDDING, EMPTY)
"""The answer for a user without history."""
_UNREADABLE = Answer(_NO_EMBEDDING, EMPTY, Degraded.STORE_UNAVAILABLE, tells_of_release=False)
"""The answer for a user whose history could not be read."""


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a batch asks a store or an encoder that does not answer: for `seconds`, or until `stopping` is set.

    `for_release`: whether it also waits for a release that Triton has not loaded, and for so long for a release that
    fails while Triton answers others; else only for `CANARY_PATIENCE_SECONDS`.
    """

    seconds: float = 0.0
    stopping: asyncio.Event | None = None
    for_release: bool = True


IMPATIENT = Patience()


class _RecentUsers:
    """Ids of the latest users of requests, at most the largest warm-up batch, in memory only."""

    def __init__(self) -> None:
        self._ids: dict[str, None] = {}

    def add(self, user_id: str) -> None:
        """Remember a user; the user who was added first is dropped when there are too many."""
        if user_id in self._ids:
            return
        self._ids[user_id] = None
        if len(self._ids) > WARM_UP_SIZES[-1]:
            del self._ids[next(iter(self._ids))]

    def forget(self, user_id: str) -> None:
        self._ids.pop(user_id, None)

    def ids(self) -> list[str]:
        return list(self._ids)


class Pipeline:
    """Computes answers for stored users and for inline histories, each with the release that the caller gives."""

    def __init__(
        self,
        store: HistoryStore,
        cache: EmbeddingCache,
        embedder: Embedder,
        batcher: MicroBatcher,
        executor: Executor,
        unary_executor: Executor | None = None,
    ) -> None:
        """`unary_executor`: threads for unary calls, so that they do not wait for batches; default the same threads."""
        self._store = BoundedStore(store)
        self._encoder_breakers: dict[int, Breaker] = {}
        self._cache = cache
        self._embedder = embedder
        self._batcher = batcher
        self._executor = executor
        self._unary_executor = unary_executor or executor
        self._recent_users = _RecentUsers()
        self.on_encoder_failure: Callable[[], None] = lambda: None
        """Called after each call that the encoder did not answer."""

    @property
    def waiting_count(self) -> int:
        """Unary calls that wait for the encoder."""
        return self._batcher.waiting_count

    async def answer_user(self, release: Release, user_id: str, timeout_seconds: float) -> Answer:
        """The answer for a stored user; a degraded answer when the store or the encoder does not respond.

        `timeout_seconds` is for both together.
        """
        end = monotonic() + timeout_seconds
        erasure_count = self._cache.erasure_count
        self._recent_users.add(user_id)
        try:
            history = await self._store.get(user_id, timeout_seconds)
        except StoreUnavailable:
            return _UNREADABLE
        cached = self._cache.answer(release.number, user_id, history)
        if cached is not None:
            return cached
        if not history:
            return Answer(_NO_EMBEDDING, history)
        try:
            embedded = await self._embed_one(release, history, end - monotonic())
        except EncoderUnavailable as error:
            return self._fallback(release, user_id, history, error)
        self._cache.put(release.number, user_id, history, embedded, erasure_count)
        return Answer(embedded, history)

    def keep_prepared(self, release: Release, user_id: str, answer: Answer, prepared: PreparedSegment) -> None:
        """Have later answers for this revision of the user's history carry the response that was made of this one."""
        if answer.degraded is Degraded.NO:
            self._cache.prepare(release.number, user_id, answer.history, prepared)

    async def answer_events(self, release: Release, history: History, timeout_seconds: float) -> Answer:
        """The answer for an inline history. `ignored_count` counts events of the whole history."""
        ignored = ignored_count(history, release.item_index, release.action_index, release.preprocessing)
        try:
            embedded = await self._embed_one(release, history, timeout_seconds)
        except EncoderUnavailable as error:
            nothing = _NO_EMBEDDING._replace(ignored_count=ignored)
            return Answer(nothing, history, _reason(error), _tells_of_release(error))
        return Answer(embedded._replace(ignored_count=ignored), history)

    async def _embed_one(self, release: Release, history: History, seconds: float) -> Embedded:
        async def embed() -> list[Embedded]:
            return [await self._batcher.embed(release, history, seconds)]

        [embedded] = await self._guarded(release, embed)
        return embedded

    async def _guarded(self, release: Release, embed: Callable[[], Awaitable[list[Embedded]]]) -> list[Embedded]:
        """Call `embed` unless the encoder is known not to answer for this release. Raises `EncoderUnavailable`."""
        breaker = self._encoder_breakers.get(release.number)
        if breaker is None:
            breaker = self._encoder_breakers[release.number] = Breaker(f"the encoder of release {release.number}")
        if not breaker.allows_call():
            error = EncoderAway if breaker.is_whole_part_away else EncoderUnavailable
            raise error("the encoder has not answered lately")
        start = monotonic()
        try:
            results = await embed()
        except EncoderUnavailable as error:
            is_away = isinstance(error, EncoderAway) or self._was_silent_since(start)
            # "Not loaded" is an answer of Triton's, however long it took. A breaker is for what does not answer:
            # open, it would degrade calls that the active release can answer.
            seconds = 0.0 if isinstance(error, ReleaseNotLoaded) else monotonic() - start
            breaker.failed(str(error), seconds, is_whole_part_away=is_away)
            self.on_encoder_failure()
            if is_away and not isinstance(error, EncoderAway | ReleaseNotLoaded):
                raise EncoderAway(str(error)) from error
            raise
        if any(result.embedding is not None for result in results):
            breaker.succeeded()
        return results

    def _was_silent_since(self, start: float) -> bool:
        """Whether the encoder has answered no call of any release for half of the time since `start`.

        Then a call that had no answer says nothing about its release. Only half: before the silence come answers to
        calls from before the encoder began to hang, and after it to those that are quicker than this one.
        """
        seconds = monotonic() - start
        return seconds >= SLOW_SECONDS and self._embedder.longest_silence(start) >= seconds / 2

    async def answer_histories(
        self, release: Release, histories: Sequence[History], call_seconds: float
    ) -> list[Answer]:
        """One answer per history, in order, without store, cache or fallback. Raises `EncoderUnavailable`."""
        embedded = await self._embedder.embed(release, histories, call_seconds)
        return [Answer(*pair) for pair in zip(embedded, histories, strict=True)]

    async def answer_users(
        self,
        release: Release,
        user_ids: Sequence[str],
        call_seconds: float,
        patience: Patience = IMPATIENT,
    ) -> list[Answer]:
        """One answer per user, in order. Reads the cache but does not fill it: a batch would evict the unary users.

        `call_seconds` is the longest wait for one call to Triton; see `Embedder.embed`. While the store or the encoder
        does not answer, both are asked again before the answers are degraded; see `Patience`.
        """
        end = monotonic() + patience.seconds
        for user_id in user_ids[:1]:
            self._recent_users.add(user_id)
        try:
            histories = await _patiently(lambda: self._store.get_many(user_ids, BATCH_STORE_SECONDS), end, patience)
        except StoreUnavailable:
            return [_UNREADABLE] * len(user_ids)
        answers: list[Answer] = []
        missing: list[int] = []
        for place, (user_id, history) in enumerate(zip(user_ids, histories, strict=True)):
            if history is None:
                answers.append(_UNREADABLE)
                continue
            cached = self._cache.get(release.number, user_id, history)
            if cached is None and history:
                missing.append(place)
            answers.append(Answer(cached or _NO_EMBEDDING, history))
        if not missing:
            return answers
        missing_histories = [answers[place].history for place in missing]
        try:
            embedded = await _patiently(
                lambda: self._guarded(release, lambda: self._embedder.embed(release, missing_histories, call_seconds)),
                end,
                patience,
            )
        except EncoderUnavailable as error:
            for place, history in zip(missing, missing_histories, strict=True):
                answers[place] = self._fallback(release, user_ids[place], history, error)
            return answers
        for place, history, result in zip(missing, missing_histories, embedded, strict=True):
            answers[place] = Answer(result, history)
        return answers

    async def warm_up(self, release: Release) -> None:
        """Embed histories of recent users with a release. Raises `EncoderUnavailable` when that fails.

        Does nothing without recent users or when the history store does not answer.
        """
        try:
            recent = await self._store.get_many(self._recent_users.ids(), BATCH_STORE_SECONDS)
        except StoreUnavailable as error:
            log.warning("release %d gets no warm-up: %s", release.number, error)
            return
        histories = [history for history in recent if history]
        for count in WARM_UP_SIZES:
            if histories:
                await self._embedder.embed(release, histories[:count], WARM_UP_SECONDS)

    async def recommend(self, release: Release, query: Query, answers: Sequence[Answer]) -> list[Ranking]:
        """Rank items for each answer; see `server.core.ranking.rank`."""
        with tracing.span("rank", answers=len(answers)):
            if len(answers) < RANK_IN_THREAD_FROM and len(release.item_ids) < LARGE_CATALOGUE:
                return _rank(release, query, answers)
            executor = self._unary_executor if len(answers) < RANK_IN_THREAD_FROM else self._executor
            return await asyncio.get_running_loop().run_in_executor(executor, _rank, release, query, answers)

    async def explain(self, release: Release, ranking: Ranking, answer: Answer, timeout_seconds: float) -> Ranking:
        """The ranking of an answer, made with `explain`, with the items of the user's history that count most.

        None are named without an embedding, for a degraded answer, and by strategies that do not read the history.
        Raises `EncoderUnavailable` when the encoder does not answer within `timeout_seconds`.
        """
        is_whole = answer.degraded is Degraded.NO and answer.embedded.embedding is not None
        if not (is_whole and ranking.items and reads_history(ranking.strategy)):
            return ranking
        in_thread = asyncio.get_running_loop().run_in_executor
        try:
            async with asyncio.timeout(timeout_seconds):
                left = await in_thread(self._executor, left_out, release, answer.history, ranking)
                embedded = await self._guarded(
                    release, lambda: self._embedder.embed(release, left.histories, timeout_seconds)
                )
        except TimeoutError as error:
            raise EncoderUnavailable("the encoder did not explain an answer in time") from error
        answers = [Answer(*pair) for pair in zip(embedded, left.histories, strict=True)]

        def named() -> Ranking:
            return with_history_items(release, ranking, left, [_subject(release, one) for one in answers])

        return await in_thread(self._executor, named)

    async def record(self, user_id: str, events: Sequence[Event], seconds: float) -> Recorded:
        """Store a user's events durably within `seconds`. Raises `StoreUnavailable` and `Overloaded`."""
        return await self._store.record(user_id, events, seconds)

    async def history(self, user_id: str, seconds: float) -> History:
        """The stored history of a user, within `seconds`. Raises `StoreUnavailable`."""
        return await self._store.get(user_id, seconds)

    async def erase(self, user_id: str, releases: list[int], seconds: float) -> int:
        """Erase a user from the store and from the cache of these releases; returns the number of erased events.

        Raises `StoreUnavailable` after `seconds`; the user may be erased then, and is no longer in the cache.
        """
        try:
            return await self._store.erase(user_id, seconds)
        finally:
            self._recent_users.forget(user_id)
            self._cache.forget_user(user_id, releases)

    def forget_release(self, number: int) -> None:
        """Drop what is kept of a release that is no longer loaded."""
        self._cache.forget_release(number)
        self._encoder_breakers.pop(number, None)

    def _fallback(self, release: Release, user_id: str, history: History, error: EncoderUnavailable) -> Answer:
        reason = _reason(error)
        latest = self._cache.latest(release.number, user_id, history)
        tells = _tells_of_release(error)
        if latest is None or latest.embedding is None:
            return Answer(_NO_EMBEDDING, history, reason, tells)
        is_lost = reason is Degraded.RELEASE_NOT_LOADED
        return Answer(latest, history, reason if is_lost else Degraded.STALE_EMBEDDING, tells)


def _reason(error: EncoderUnavailable) -> Degraded:
    return Degraded.RELEASE_NOT_LOADED if isinstance(error, ReleaseNotLoaded) else Degraded.ENCODER_UNAVAILABLE


def _tells_of_release(error: EncoderUnavailable) -> bool:
    return not isinstance(error, EncoderAway | ReleaseNotLoaded)


async def _patiently(ask: Callable[[], Awaitable[T]], end: float, patience: Patience) -> T:
    """Ask until there is an answer, with growing pauses; at the monotonic time `end` the last failure is raised."""
    stopping = patience.stopping or asyncio.Event()
    pause = FIRST_PAUSE_SECONDS
    end_for_canary = monotonic() + CANARY_PATIENCE_SECONDS
    while True:
        try:
            return await ask()
        except (StoreUnavailable, EncoderUnavailable) as error:
            is_final = isinstance(error, ReleaseNotLoaded) and not patience.for_release
            if isinstance(error, EncoderUnavailable) and _tells_of_release(error) and not patience.for_release:
                end = min(end, end_for_canary)
            if is_final or stopping.is_set() or monotonic() + pause > end:
                raise
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stopping.wait(), pause)
        pause = min(2 * pause, LONGEST_PAUSE_SECONDS)


def _rank(release: Release, query: Query, answers: Sequence[Answer]) -> list[Ranking]:
    return rank(release, query, [_subject(release, answer) for answer in answers])


def _subject(release: Release, answer: Answer) -> Subject:
    embedded = answer.embedded
    segment_id = release.segments[embedded.segment_index].segment_id if embedded.embedding is not None else 0
    return Subject(embedded.embedding, segment_id, past_events(release, answer.history))
