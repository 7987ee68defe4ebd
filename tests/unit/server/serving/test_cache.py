"""The cache of embeddings: of which history an embedding is."""

import gc

import numpy as np

from server.core.history import EMPTY, Event, History, history_of
from server.serving.answer import Answer, Embedded
from server.serving.cache import EmbeddingCache

EMBEDDED = Embedded(np.arange(3, dtype=np.float32), 4, 1, 2, 0.5, 3, 0.75, 0.9)
PREPARED = "a label", b"a response"


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
    assert cache.get(1, "u", history(5, origin=3)) == EMBEDDED
    assert cache.get(1, "u", history(6, origin=3)) is None
    assert cache.latest(1, "u", history(6, origin=3)) == EMBEDDED
    assert cache.get(2, "u", history(5, origin=3)) is None


def test_no_embedding_from_before_an_erasure_stands_in_for_a_user_who_came_back() -> None:
    assert filled().latest(1, "u", history(9, origin=8)) is None


def test_an_embedding_from_before_an_erasure_by_another_server_is_dropped_when_the_user_is_asked_for() -> None:
    for found in (history(9, origin=8), EMPTY):
        cache = filled()
        assert cache.get(1, "u", found) is None
        assert len(cache) == 0


def test_a_prepared_response_is_of_the_revision_that_it_was_made_of() -> None:
    cache, read = filled(), history(5, origin=3)
    assert cache.answer(1, "u", read) == Answer(EMBEDDED, read)
    cache.prepare(1, "u", history(4, origin=3), PREPARED)
    cache.prepare(1, "u", history(5, origin=2), PREPARED)
    cache.prepare(1, "someone else", read, PREPARED)
    assert cache.answer(1, "u", read) == Answer(EMBEDDED, read)
    cache.prepare(1, "u", read, PREPARED)
    assert cache.answer(1, "u", read) == Answer(EMBEDDED, read, prepared=PREPARED)
    later = history(6, origin=3)
    cache.put(1, "u", later, EMBEDDED, cache.erasure_count)
    assert cache.answer(1, "u", later) == Answer(EMBEDDED, later)
    assert len(cache) == 1


def test_the_garbage_collector_visits_no_entry() -> None:
    cache, read = EmbeddingCache(1000), history(5, origin=3)
    gc.collect()
    before = len(gc.get_objects())
    for number in range(1000):
        cache.put(1, str(number), read, Embedded(np.ones(3, np.float32), number), cache.erasure_count)
        cache.prepare(1, str(number), read, (f"label {number}", b"a response"))
    gc.collect()
    assert len(gc.get_objects()) < before + 500
