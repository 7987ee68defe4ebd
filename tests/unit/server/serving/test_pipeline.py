"""Answers, their fallbacks and the warm-up, without Triton or a server."""

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import monotonic

import pytest

from server.core.errors import EncoderUnavailable, StoreUnavailable
from server.core.history import EMPTY, History
from server.core.release import Release
from server.core.repository.read import read_release
from server.serving import pipeline as serving_pipeline
from server.serving.answer import Degraded
from server.serving.batching import MicroBatcher
from server.serving.breaker import SLOW_FAILURES, SLOW_SECONDS, TRIAL_SECONDS
from server.serving.cache import EmbeddingCache
from server.serving.embedding import Embedder
from server.serving.pipeline import FIRST_PAUSE_SECONDS, Patience, Pipeline
from tests.support.memory_store import MemoryStore
from tests.support.onnx_encoder import OnnxEncoder
from tests.support.releases import group_history, tiny_release
from tests.support.waiting import pause, wait_until_async


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
        yield Pipeline(store, cache, embedder, MicroBatcher(embedder, 8), executor)


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


async def test_no_embedding_from_before_an_erasure_by_another_server_is_used(
    pipeline: Pipeline, store: MemoryStore, encoder: OnnxEncoder, release: Release
) -> None:
    await record(store, "u", group_history(1))
    await pipeline.answer_user(release, "u", 5.0)
    await store.erase("u")
    await record(store, "u", group_history(3))
    encoder.down = True
    for answer in (await pipeline.answer_user(release, "u", 1.0), *await pipeline.answer_users(release, ["u"], 1.0)):
        assert answer.degraded is Degraded.ENCODER_UNAVAILABLE
        assert answer.embedded.embedding is None


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
    await pipeline.erase("u", [1], 5.0)
    await record(store, "u", group_history(3))
    assert (await pipeline.answer_user(release, "u", 1.0)).degraded is Degraded.ENCODER_UNAVAILABLE


async def test_an_embedding_computed_while_its_user_is_erased_is_not_cached(
    pipeline: Pipeline, store: MemoryStore, cache: EmbeddingCache, release: Release, monkeypatch: pytest.MonkeyPatch
) -> None:
    await record(store, "u", group_history(1))
    read = store.get

    async def read_then_erased(user_id: str) -> History:
        history = await read(user_id)
        await pipeline.erase(user_id, [1], 5.0)
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
        await pipeline.erase(f"u{number}", [1], 5.0)
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


async def test_a_store_that_hangs_takes_no_more_than_the_callers_time_and_soon_none(
    pipeline: Pipeline, store: MemoryStore, release: Release
) -> None:
    store.gate = asyncio.Event()
    start = monotonic()
    for _ in range(SLOW_FAILURES):
        assert (await pipeline.answer_user(release, "u", SLOW_SECONDS)).degraded is Degraded.STORE_UNAVAILABLE
    assert monotonic() - start < 2 * SLOW_FAILURES * SLOW_SECONDS
    asked = store.call_count
    for _ in range(10):
        assert (await pipeline.answer_user(release, "u", 30.0)).degraded is Degraded.STORE_UNAVAILABLE
    for refused in (pipeline.record("u", group_history(1).events(), 30.0), pipeline.erase("u", [1], 30.0)):
        with pytest.raises(StoreUnavailable, match="lately") as failure:
            await refused
        assert failure.value.retry_seconds
    assert store.call_count == asked
    store.gate.set()

    async def answers_again() -> bool:
        return (await pipeline.answer_user(release, "u", 1.0)).degraded is Degraded.NO

    await wait_until_async(answers_again, 2 * TRIAL_SECONDS)


async def test_a_write_that_hangs_fails_in_its_time_and_can_be_repeated(pipeline: Pipeline, store: MemoryStore) -> None:
    store.gate = asyncio.Event()
    events = group_history(1).events()
    with pytest.raises(StoreUnavailable, match=r"within 0\.050 s"):
        await pipeline.record("u", events, 0.05)
    store.gate.set()
    assert (await pipeline.record("u", events, 5.0)).stored == len(events)


async def test_while_the_encoder_hangs_callers_fall_back_at_once_and_some_try(
    pipeline: Pipeline, store: MemoryStore, encoder: OnnxEncoder, release: Release
) -> None:
    await record(store, "u", group_history(2))
    encoder.gate = asyncio.Event()
    for _ in range(SLOW_FAILURES):
        assert (await pipeline.answer_user(release, "u", SLOW_SECONDS)).degraded is Degraded.ENCODER_UNAVAILABLE
    asked = len(encoder.call_sizes)
    for _ in range(10):
        assert (await pipeline.answer_user(release, "u", 30.0)).degraded is Degraded.ENCODER_UNAVAILABLE
    inline = await pipeline.answer_events(release, group_history(2), 30.0)
    assert inline.degraded is Degraded.ENCODER_UNAVAILABLE
    assert len(encoder.call_sizes) == asked
    encoder.gate.set()

    async def answers_again() -> bool:
        return (await pipeline.answer_user(release, "u", 5.0)).embedded.segment_index == 2

    await wait_until_async(answers_again, 2 * TRIAL_SECONDS)


async def test_a_release_that_triton_has_lost_is_told_as_lost_however_slowly_triton_says_so(
    pipeline: Pipeline, store: MemoryStore, encoder: OnnxEncoder, release: Release
) -> None:
    await record(store, "u", group_history(2))
    encoder.loaded = ()
    for _ in range(SLOW_FAILURES + 1):
        encoder.gate = asyncio.Event()
        asyncio.get_running_loop().call_later(1.1 * SLOW_SECONDS, encoder.gate.set)
        assert (await pipeline.answer_user(release, "u", 30.0)).degraded is Degraded.RELEASE_NOT_LOADED


@pytest.mark.parametrize("answers_others", [True, False])
async def test_a_release_is_blamed_for_silence_only_while_the_encoder_answers_others(
    pipeline: Pipeline, store: MemoryStore, encoder: OnnxEncoder, release: Release, answers_others: bool
) -> None:
    await record(store, "u", group_history(2))
    encoder.gate, encoder.answers_others = asyncio.Event(), answers_others
    silent = [await pipeline.answer_user(release, "u", SLOW_SECONDS) for _ in range(SLOW_FAILURES)]
    at_once = await pipeline.answer_user(release, "u", 30.0)  # the breaker is open, and knows why
    batch = await pipeline.answer_users(release, ["u"], SLOW_SECONDS)
    answers = [*silent, at_once, *batch]
    assert {answer.degraded for answer in answers} == {Degraded.ENCODER_UNAVAILABLE}
    assert [answer.tells_of_release for answer in answers] == [answers_others] * len(answers)


async def test_a_store_that_is_away_says_nothing_about_a_release(
    pipeline: Pipeline, store: MemoryStore, release: Release
) -> None:
    store.unavailable = True
    assert not (await pipeline.answer_user(release, "u", 1.0)).tells_of_release


async def test_a_batch_waits_while_the_encoder_and_the_store_are_away(
    pipeline: Pipeline, store: MemoryStore, encoder: OnnxEncoder, release: Release
) -> None:
    users = [f"u{number}" for number in range(20)]
    for number, user_id in enumerate(users):
        await record(store, user_id, group_history(number % 4))
    store.unavailable = encoder.down = True
    batch = asyncio.ensure_future(pipeline.answer_users(release, users, 1.0, Patience(30.0)))
    await pause(4 * FIRST_PAUSE_SECONDS)
    store.unavailable = False
    await encoder.until_asked()
    await pause(4 * FIRST_PAUSE_SECONDS)
    assert not batch.done()
    encoder.down = False
    assert [answer.embedded.segment_index for answer in await batch] == [number % 4 for number in range(20)]


async def test_a_batch_does_not_wait_long_for_a_canary_that_fails_by_itself(
    pipeline: Pipeline, store: MemoryStore, encoder: OnnxEncoder, release: Release, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving_pipeline, "CANARY_PATIENCE_SECONDS", 0.2)
    await record(store, "u", group_history(2))
    encoder.down = True
    start = monotonic()
    [answer] = await pipeline.answer_users(release, ["u"], 1.0, Patience(30.0, for_release=False))
    assert answer.degraded is Degraded.ENCODER_UNAVAILABLE
    assert monotonic() - start < 5


async def test_the_patience_of_a_batch_ends(
    pipeline: Pipeline, store: MemoryStore, encoder: OnnxEncoder, release: Release
) -> None:
    await record(store, "u", group_history(2))
    encoder.down = True
    [answer] = await pipeline.answer_users(release, ["u"], 1.0, Patience(0.2))
    assert answer.degraded is Degraded.ENCODER_UNAVAILABLE
    assert len(encoder.call_sizes) > 1
