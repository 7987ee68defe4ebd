"""Comparing the answers of two releases in the background."""

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from server.core.errors import NotFound
from server.core.repository.layout import MODEL_NAME
from server.core.repository.read import read_release
from server.core.repository.traffic import Traffic
from server.monitoring import shadow as module
from server.monitoring.release_stats import ReleaseStats, ShadowComparison
from server.monitoring.shadow import BATCH_ANSWERS, WAITING_MAX, Shadow, ShadowPair, compare_answers, pair_of
from server.releases.directory import ReleaseDirectory
from server.releases.registry import ReleaseRegistry
from server.serving.answer import Answer, Degraded
from server.serving.batching import MicroBatcher
from server.serving.cache import EmbeddingCache
from server.serving.embedding import Embedder
from server.serving.pipeline import NO_ANSWER, Pipeline
from tests.support.memory_store import MemoryStore
from tests.support.onnx_encoder import OnnxEncoder
from tests.support.releases import CONFIDENCE, group_history, tiny_release
from tests.support.ticking import Clock

BESIDE = Traffic(stable=1, shadow=2)


@pytest.fixture
def encoder(tmp_path: Path) -> OnnxEncoder:
    encoder = OnnxEncoder(tmp_path)
    encoder.loaded = (1, 2)
    return encoder


@pytest.fixture
def releases(tmp_path: Path) -> ReleaseRegistry:
    """Releases 1 and 2 with the same items and other scores."""
    figures = ReleaseRegistry(ReleaseDirectory(tmp_path / MODEL_NAME))
    for number in (1, 2):
        figures.add(read_release(tiny_release(tmp_path, number, confidence=CONFIDENCE)))
    figures.set_traffic(BESIDE)
    return figures


@pytest.fixture
def pipeline(encoder: OnnxEncoder) -> Iterator[Pipeline]:
    with ThreadPoolExecutor(1) as executor:
        embedder = Embedder(encoder, executor)
        yield Pipeline(MemoryStore(), EmbeddingCache(0), embedder, MicroBatcher(embedder, 8), executor)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def stats(clock: Clock) -> ReleaseStats:
    return ReleaseStats(clock)


@pytest.fixture
def shadow(releases: ReleaseRegistry, pipeline: Pipeline, stats: ReleaseStats, clock: Clock) -> Shadow:
    return Shadow(releases, pipeline, stats, 0.1, 5.0, clock, clock.rest)


async def answers_of(pipeline: Pipeline, releases: ReleaseRegistry, number: int, amount: int = 4) -> list[Answer]:
    histories = [group_history(place % 4) for place in range(amount)]
    return await pipeline.answer_histories(releases.get(number), histories, 5.0)


@pytest.mark.parametrize(
    ("traffic", "pair"),
    [
        (Traffic(), None),
        (Traffic(stable=7), None),
        (Traffic(stable=7, shadow=9), ShadowPair(7, 9, 9)),
        (Traffic(stable=7, canary=8, canary_share=0.05, shadow=9), ShadowPair(7, 9, 9)),
        (Traffic(stable=7, canary=8, canary_share=0.05), ShadowPair(8, 7, 8)),
    ],
)
def test_a_shadow_is_compared_before_a_canary(traffic: Traffic, pair: ShadowPair | None) -> None:
    assert pair_of(traffic) == pair
    assert pair is None or {pair.measured, pair.other} == {pair.answering, pair.beside}


def test_answers_are_compared_by_stable_segment_ids_and_item_ids() -> None:
    items = [{"a": 1.0, "b": 2.0}, {"a": 1.0}, {}, {"a": 1.0, "b": 1.0}]
    others = [{"b": 2.5, "c": 9.0}, {"z": 1.0}, {}, {"a": 2.0}]
    assert compare_answers([1, 2, 0, 3], [1, 3, 0, 0], items, others) == ShadowComparison(
        4, 2, 0.5 + 0 + 1 + 0.5, 2, 0.5 + 1.0
    )


async def test_a_shadow_computes_the_same_histories_and_gets_the_figures(
    shadow: Shadow, pipeline: Pipeline, releases: ReleaseRegistry, stats: ReleaseStats
) -> None:
    shadow.offer(releases.get(1), await answers_of(pipeline, releases, 1))
    await shadow.compare_some()
    figures = stats.figures(2)
    assert figures is not None
    assert (figures.compared_release, figures.compared_count, figures.answer_count) == (1, 4, 0)
    assert (figures.request_count, figures.unconfident_share) == (4, 0.0)
    assert figures.changed_share == 0.0, "segments of both have the same ids and meanings"
    assert 0 < figures.top_items_overlap <= 1
    assert figures.score_shift > 0
    assert stats.figures(1) is None


async def test_a_release_compared_with_itself_has_no_differences(
    shadow: Shadow, pipeline: Pipeline, releases: ReleaseRegistry, stats: ReleaseStats, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "pair_of", lambda _: ShadowPair(1, 1, 1))
    shadow.offer(releases.get(1), await answers_of(pipeline, releases, 1))
    await shadow.compare_some()
    figures = stats.figures(1)
    assert figures is not None
    assert (figures.compared_count, figures.changed_share) == (4, 0)
    assert (figures.top_items_overlap, figures.score_shift) == (1, 0)


async def test_without_a_shadow_the_canary_is_compared_with_the_active_release(
    shadow: Shadow, pipeline: Pipeline, releases: ReleaseRegistry, stats: ReleaseStats
) -> None:
    releases.set_traffic(Traffic(stable=1, canary=2, canary_share=0.05, key="0" * 32))
    shadow.offer(releases.get(1), await answers_of(pipeline, releases, 1))
    shadow.offer(releases.get(2), await answers_of(pipeline, releases, 2, 3))
    await shadow.compare_some()
    figures = stats.figures(2)
    assert figures is not None
    assert (figures.compared_release, figures.compared_count) == (1, 3)
    assert figures.request_count == 0, "its answers are counted where they are given"


async def test_degraded_answers_and_users_without_history_are_not_compared(
    shadow: Shadow, pipeline: Pipeline, releases: ReleaseRegistry, stats: ReleaseStats
) -> None:
    [whole] = await answers_of(pipeline, releases, 1, 1)
    shadow.offer(releases.get(1), [NO_ANSWER, whole._replace(degraded=Degraded.STALE_EMBEDDING)])
    await shadow.compare_some()
    assert stats.figures(2) is None


async def test_answers_beyond_the_queue_are_dropped_and_counted(
    shadow: Shadow, pipeline: Pipeline, releases: ReleaseRegistry, stats: ReleaseStats, encoder: OnnxEncoder
) -> None:
    [answer] = await answers_of(pipeline, releases, 1, 1)
    dropped: list[int] = []
    shadow.on_dropped = dropped.append
    shadow.offer(releases.get(1), [answer] * (WAITING_MAX - 1))
    shadow.offer(releases.get(1), [answer] * 3)
    assert dropped == [2]
    encoder.call_sizes.clear()
    await shadow.compare_some()
    assert encoder.call_sizes == [BATCH_ANSWERS]
    shadow.offer(releases.get(1), [answer] * BATCH_ANSWERS)
    assert dropped == [2]


async def test_answers_queued_under_another_traffic_are_not_compared(
    shadow: Shadow, pipeline: Pipeline, releases: ReleaseRegistry, stats: ReleaseStats
) -> None:
    shadow.offer(releases.get(1), await answers_of(pipeline, releases, 1))
    releases.set_traffic(Traffic(stable=2, shadow=1))
    await shadow.compare_some()
    assert stats.totals() == {}


async def test_a_shadow_without_an_answer_of_triton_counts_errors(
    shadow: Shadow, pipeline: Pipeline, releases: ReleaseRegistry, stats: ReleaseStats, encoder: OnnxEncoder
) -> None:
    answers = await answers_of(pipeline, releases, 1)
    encoder.loaded = (1,)
    shadow.offer(releases.get(1), answers)
    await shadow.compare_some()
    figures = stats.figures(2)
    assert figures is not None
    assert (figures.error_share, figures.request_count, figures.compared_count) == (1.0, 4, 0)


async def test_comparing_raises_while_the_shadow_is_not_loaded(
    shadow: Shadow, pipeline: Pipeline, releases: ReleaseRegistry
) -> None:
    releases.set_traffic(Traffic(stable=1, shadow=9))
    shadow.offer(releases.get(1), await answers_of(pipeline, releases, 1))
    with pytest.raises(NotFound, match="release 9 is not loaded"):
        await shadow.compare_some()


async def test_the_shadow_keeps_its_budget_of_time_and_survives_errors(
    shadow: Shadow,
    pipeline: Pipeline,
    releases: ReleaseRegistry,
    clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    problems: list[Exception | None] = [
        None,
        NotFound("release 9 is away", reason="NO_CANARY"),
        NotFound("release 9 is away", reason="NO_CANARY"),
        OSError(),
    ]
    rests: list[float] = []

    async def compare_some() -> None:
        clock.now += 2.0
        problem = problems.pop(0)
        if problem is not None:
            raise problem

    async def rest(seconds: float) -> None:
        rests.append(seconds)
        if not problems:
            raise asyncio.CancelledError

    monkeypatch.setattr(shadow, "compare_some", compare_some)
    monkeypatch.setattr(shadow, "_rest", rest)
    shadow.offer(releases.get(1), await answers_of(pipeline, releases, 1))
    with pytest.raises(asyncio.CancelledError):
        await shadow.work()
    assert rests == pytest.approx([18.0] * 4)
    assert caplog.text.count("release 9 is away") == 1
    assert "the comparison of releases failed" in caplog.text
