"""The history store with a time limit for each call, and with a breaker: nobody waits for a store that hangs."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from time import monotonic
from typing import ParamSpec, TypeVar

from server.adapters.ports import HistoryStore, Recorded
from server.core.errors import StoreUnavailable
from server.core.histories import Histories
from server.core.history import Event, History
from server.serving.breaker import TRIAL_SECONDS, Breaker

P = ParamSpec("P")
T = TypeVar("T")

RETRY_SECONDS = 2 * TRIAL_SECONDS
"""What a caller is told to wait while the store does not answer."""


class BoundedStore:
    """The calls of a `HistoryStore`, each with `seconds` as its longest time. All raise `StoreUnavailable`.

    While the store is known not to answer, a call fails at once. A write that runs out of time may have been stored;
    the same events can be sent again, because they are stored once.
    """

    def __init__(self, store: HistoryStore, clock: Callable[[], float] = monotonic) -> None:
        self._store = store
        self._clock = clock
        self._breaker = Breaker("the history store", clock)

    async def get(self, user_id: str, seconds: float) -> History:
        """See `HistoryStore.get`."""
        if not self._store.answers_at_once or self._breaker.is_open:
            return await self._ask(seconds, self._store.get, user_id)
        try:
            history = await self._store.get(user_id)
        except StoreUnavailable as error:
            self._breaker.failed(str(error), 0.0)
            raise
        self._breaker.succeeded()
        return history

    async def get_many(self, user_ids: Sequence[str], seconds: float) -> Histories:
        """See `HistoryStore.get_many`."""
        return await self._ask(seconds, self._store.get_many, user_ids)

    async def record(self, user_id: str, events: Sequence[Event], seconds: float) -> Recorded:
        """See `HistoryStore.record`."""
        return await self._ask(seconds, self._store.record, user_id, events)

    async def erase(self, user_id: str, seconds: float) -> int:
        """See `HistoryStore.erase`."""
        return await self._ask(seconds, self._store.erase, user_id)

    async def _ask(self, seconds: float, method: Callable[P, Awaitable[T]], *args: P.args, **kwargs: P.kwargs) -> T:
        if not self._breaker.allows_call():
            raise StoreUnavailable("the history store has not answered lately: try again", retry_seconds=RETRY_SECONDS)
        start = self._clock()
        try:
            async with asyncio.timeout(seconds):
                answer = await method(*args, **kwargs)
        except TimeoutError as cause:
            error = StoreUnavailable(
                f"the history store did not answer within {seconds:.3f} s: try again; what was sent is stored once",
                retry_seconds=RETRY_SECONDS,
            )
            self._breaker.failed(str(error), seconds)
            raise error from cause
        except StoreUnavailable as error:
            self._breaker.failed(str(error), self._clock() - start)
            raise
        self._breaker.succeeded()
        return answer
