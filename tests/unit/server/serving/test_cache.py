"""The cache of embeddings: of which history an embedding is."""

from server.core.history import EMPTY, Event, History, history_of
from server.serving.answer import Embedded
from server.serving.cache import EmbeddingCache

EMBEDDED = Embedded(None)


def history(revision: int, origin: int) -> History:
    parts = history_of([Event("a", "view", 1.0, 5)])
    columns = (parts.timestamps, parts.values, parts.item_hashes, parts.action_hashes, parts.keys)
    return History.of(parts.item_ids, parts.actions, columns, revision, origin)


def filled() -> EmbeddingCache:
    cache = EmbeddingCache(10)
    cache.put(1, "u", history(5, origin=3), EMBEDDED, cache.erasure_count)
    return cache


def test_an_embedding_is_of_one_revision_and_may_stand_in_for_later_ones() -> None:
    cache = filled()
    assert cache.get(1, "u", history(5, origin=3)) is EMBEDDED
    assert cache.get(1, "u", history(6, origin=3)) is None
    assert cache.latest(1, "u", history(6, origin=3)) is EMBEDDED
    assert cache.get(2, "u", history(5, origin=3)) is None


def test_no_embedding_from_before_an_erasure_stands_in_for_a_user_who_came_back() -> None:
    assert filled().latest(1, "u", history(9, origin=8)) is None


def test_an_embedding_from_before_an_erasure_by_another_server_is_dropped_when_the_user_is_asked_for() -> None:
    for found in (history(9, origin=8), EMPTY):
        cache = filled()
        assert cache.get(1, "u", found) is None
        assert len(cache) == 0
