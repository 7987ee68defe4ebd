"""Faults that are put into the product on purpose, to see that the simulation finds them."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any
from unittest.mock import patch

from server.adapters import valkey_store
from server.adapters.triton import TritonEncoder
from server.core.history import History
from server.monitoring.release_stats import ReleaseStats
from server.serving.answer import Answer
from server.serving.cache import EmbeddingCache


@contextmanager
def cache_of_all_releases() -> Iterator[None]:
    """The cache gives the embedding of whichever release put it in."""

    def current(self: EmbeddingCache, release: int, user_id: str, history: History) -> Any:
        entries = [entry for (_, user), entry in self._entries.items() if user == user_id]
        return next((entry for entry in entries if entry[0] == history.revision), None)

    with patch.object(EmbeddingCache, "_current", current):
        yield


@contextmanager
def writes_that_compare_nothing() -> Iterator[None]:
    """A history is replaced also when another server changed it since it was read."""
    script = valkey_store._REPLACE
    blind = script.replace("redis.call('GETRANGE', KEYS[i], 8, 15) == revision", "true")
    assert blind != script
    with patch.object(valkey_store, "_REPLACE", blind):
        yield


@contextmanager
def loads_that_drop_the_others() -> Iterator[None]:
    """A server tells a shared Triton to load its own releases and no other."""
    load = TritonEncoder.load

    async def load_alone(self: TritonEncoder, releases: Any, keep: Any = None) -> None:
        await load(self, releases)

    with patch.object(TritonEncoder, "load", load_alone):
        yield


@contextmanager
def guard_that_blames_the_canary_for_all() -> Iterator[None]:
    """Degraded answers count against the release, whatever the cause."""
    answered = ReleaseStats.answered

    def blame(self: ReleaseStats, release: int, answers: Sequence[Answer], *more: Any) -> None:
        answered(self, release, [answer._replace(tells_of_release=True) for answer in answers], *more)

    with patch.object(ReleaseStats, "answered", blame):
        yield


PLANTED: dict[str, tuple[Callable[[], AbstractContextManager[None]], str]] = {
    "cache": (cache_of_all_releases, "rule 1"),
    "writes": (writes_that_compare_nothing, "rule"),
    "loads": (loads_that_drop_the_others, "rule 2"),
    "guard": (guard_that_blames_the_canary_for_all, "rule 3"),
}
"""Name → how to plant it, and the rule that it breaks."""

RARE = {"guard"}
"""Found in one of some hundred histories, which takes minutes: `make nightly` looks for it."""
