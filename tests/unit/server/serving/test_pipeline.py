"""Answers, their fallbacks and the warm-up, without Triton or a server."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from server.core.errors import EncoderUnavailable
from server.core.history import EMPTY, History
from server.core.release import Release
from server.core.repository.read import read_release
from server.serving.answer import Degraded
from server.serving.batching import MicroBatcher
from server.serving.cache import EmbeddingCache
from server.serving.embedding import Embedder
from server.serving.pipeline import Pipeline
from tests.support.memory_store import MemoryStore
from tests.support.onnx_encoder import OnnxEncoder
from tests.support.releases import group_history, tiny_release


@pytest.fixture
def release(tmp_path: Path) -> Release:
    return read_release(tiny_release(tmp_path))


@pytest.fixture
def encoder(tmp_path: Path) -> OnnxEncoder:
    encoder = OnnxEncoder(tmp_path)
    encoder.loaded = (1,)
    return encoder


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


@pytest.fixture
def cache() -> EmbeddingCache:
    return EmbeddingCache(10)


@pytest.fixture
def pipeline(store: MemoryStore, cache: EmbeddingCache, encoder: OnnxEncoder) -> Iterator[Pipeline]:
    with ThreadPoolExecutor(2) as executor:
        embedder = Embedder(encoder, executor)
        yield Pipeline(store, cache, embedder, MicroBatcher(embedder, 8, 100), executor)


async def record(store: MemoryStore, user_id: str, history: History) -> None:
    await store.record(user_id, history.events())


async def test_a_damaged_history_degrades_only_its_own_row(
    pipeline: Pipeline, store: MemoryStore, release: Release
) -> None:
    for user_id in ("fine", "broken"):
        await record(store, user_id, group_history(2))
    store.rows["broken"] = store.rows["broken"][:-1]
    answers = await pipeline.answer_users(release, ["broken", "fine", "nobody"], 5.0)
    assert [answer.degraded for answer in answers] == [Degraded.STORE_UNAVAILABLE, Degraded.NO, Degraded.NO]
    assert [answer.embedded.segment_index for answer in answers] == [-1, 2, -1]
    assert (await pipeline.answer_user(release, "broken", 5.0)).degraded is Degraded.STORE_UNAVAILABLE


async def test_a_store_that_does_not_answer_degrades_every_answer(
    pipeline: Pipeline, store: MemoryStore, release: Release
) -> None:
    store.unavailable = True
    assert (await pipeline.answer_user(release, "u", 5.0)).degraded is Degraded.STORE_UNAVAILABLE
    answers = await pipeline.answer_users(release, ["u", "v"], 5.0)
    assert [answer.degraded for answer in answers] == [Degraded.STORE_UNAVAILABLE] * 2


async def test_without_encoder_an_older_embedding_serves_until_the_user_is_erased(
    pipeline: Pipeline, store: MemoryStore, encoder: OnnxEncoder, release: Release
) -> None:
    await record(store, "u", group_history(1))
    await pipeline.answer_user(release, "u", 5.0)
    await record(store, "u", group_history(3, 12))
    encoder.down = True
    stale = await pipeline.answer_user(release, "u", 1.0)
    assert (stale.degraded, stale.embedded.segment_index) == (Degraded.STALE_EMBEDDING, 1)
    [row] = await pipeline.answer_users(release, ["u"], 1.0)
    assert (row.degraded, row.embedded.segment_index) == (Degraded.STALE_EMBEDDING, 1)
    await pipeline.erase("u", [1])
    await record(store, "u", group_history(3))
    assert (await pipeline.answer_user(release, "u", 1.0)).degraded is Degraded.ENCODER_UNAVAILABLE


async def test_an_embedding_computed_while_its_user_is_erased_is_not_cached(
    pipeline: Pipeline, store: MemoryStore, cache: EmbeddingCache, release: Release, monkeypatch: pytest.MonkeyPatch
) -> None:
    await record(store, "u", group_history(1))
    read = store.get

    async def read_then_erased(user_id: str) -> History:
        history = await read(user_id)
        await pipeline.erase(user_id, [1])
        return history

    monkeypatch.setattr(store, "get", read_then_erased)
    assert (await pipeline.answer_user(release, "u", 5.0)).embedded.segment_index == 1
    assert len(cache) == 0
    assert await read("u") is EMPTY


async def test_batches_do_not_fill_the_cache(
    pipeline: Pipeline, store: MemoryStore, cache: EmbeddingCache, release: Release
) -> None:
    await record(store, "u", group_history(1))
    await pipeline.answer_users(release, ["u"], 5.0)
    assert len(cache) == 0


async def test_recent_users_warm_up_a_release_until_they_are_erased(
    pipeline: Pipeline, store: MemoryStore, encoder: OnnxEncoder, release: Release
) -> None:
    await pipeline.warm_up(release)
    assert encoder.call_sizes == []  # nobody was seen yet
    for number in range(40):
        await record(store, f"u{number}", group_history(number % 4))
        await pipeline.answer_user(release, f"u{number}", 5.0)
    await pipeline.answer_user(release, "without-history", 5.0)
    encoder.call_sizes.clear()
    await pipeline.warm_up(release)
    assert encoder.call_sizes[:2] == [1, 4]
    assert sum(encoder.call_sizes[2:]) == 32 + 40
    for number in range(1, 40):
        await pipeline.erase(f"u{number}", [1])
        await record(store, f"u{number}", group_history(0))  # known again, but not seen again
    encoder.call_sizes.clear()
    await pipeline.warm_up(release)
    assert encoder.call_sizes == [1, 1, 1, 1]


async def test_a_warm_up_that_fails_raises_unless_the_store_is_down(
    pipeline: Pipeline, store: MemoryStore, encoder: OnnxEncoder, release: Release
) -> None:
    await record(store, "u", group_history(1))
    await pipeline.answer_users(release, ["u"], 5.0)
    encoder.down = True
    with pytest.raises(EncoderUnavailable):
        await pipeline.warm_up(release)
    store.unavailable = True
    await pipeline.warm_up(release)


async def test_the_warm_up_remembers_at_most_64_users(
    pipeline: Pipeline, store: MemoryStore, encoder: OnnxEncoder, release: Release
) -> None:
    for number in range(100):
        await record(store, f"u{number}", group_history(number % 4))
        await pipeline.answer_users(release, [f"u{number}"], 5.0)
    encoder.call_sizes.clear()
    await pipeline.warm_up(release)
    assert sum(encoder.call_sizes) == 1 + 4 + 32 + 64
