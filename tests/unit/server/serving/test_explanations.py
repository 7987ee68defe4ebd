"""The items of a history that explain scores: as if each had never been there, computed from the beginning."""

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from server.core.errors import EncoderUnavailable
from server.core.history import EMPTY, Event, History, history_of
from server.core.next_visit import FEATURES, ITEM_STATISTICS, NextVisitModel
from server.core.ranking.contributions import MOST_LEFT_OUT, MOST_NAMED, MOST_SEEN, NOISE, left_out
from server.core.ranking.query import Part, Query, Ranked, Ranking, Strategy
from server.core.release import TREND, Release
from server.core.repository.read import read_release
from server.core.rules import Rules, RulesInForce
from server.serving.answer import Answer, Degraded
from server.serving.batching import MicroBatcher
from server.serving.cache import EmbeddingCache
from server.serving.embedding import Embedder
from server.serving.pipeline import Pipeline
from tests.support.memory_store import MemoryStore
from tests.support.onnx_encoder import OnnxEncoder
from tests.support.releases import START_MS, group_history, item_id, tiny_release

HOUR_MS = 3_600_000
SECONDS = 20.0
ACTIONS = ("view", "view", "cart", "purchase", "return")


def network(rng: np.random.Generator) -> NextVisitModel:
    """One network of a hidden layer, drawn at random."""
    sizes = [len(FEATURES), 8, 1]
    weights = [rng.normal(scale=0.5, size=(1, *pair)) for pair in pairwise(sizes)]
    biases = [rng.normal(size=(1, size)) for size in sizes[1:]]
    return NextVisitModel(
        features=FEATURES,
        weights=tuple(one.tolist() for one in weights),
        biases=tuple(one.tolist() for one in biases),
    )


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("repository")


@pytest.fixture(scope="module")
def releases(repository: Path) -> dict[str, Release]:
    """The ways in which a release ranks, each with a trend; `rules`: with rules of operators."""
    plain = read_release(tiny_release(repository))
    rng = np.random.default_rng(0)
    columns = [pl.Series(name, rng.normal(-4, 1, 50).astype(np.float32)) for name in ITEM_STATISTICS]
    columns.append(pl.Series(TREND, rng.normal(size=50).astype(np.float32)))
    mixed = replace(plain, items=plain.items.with_columns(columns))
    in_force = RulesInForce()
    in_force.put(RULES, seconds=0.0)
    learned = replace(mixed, next_visit=network(rng))
    return {"mix": mixed, "next visit": learned, "rules": replace(learned, rules=in_force)}


RULES = Rules.model_validate(
    {
        "action_weights": {"view": 2.0},
        "rules": [
            {"rule_id": "up", "kind": "boost", "factor": 20.0, "categories": ["category-2"]},
            {"rule_id": "first", "kind": "pin", "place": 2, "item_ids": [item_id(50)]},
        ],
    }
)


@pytest.fixture
def encoder(repository: Path) -> OnnxEncoder:
    encoder = OnnxEncoder(repository)
    encoder.loaded = (1,)
    return encoder


@pytest.fixture
def pipeline(encoder: OnnxEncoder) -> Iterator[Pipeline]:
    with ThreadPoolExecutor(2) as executor:
        embedder = Embedder(encoder, executor)
        yield Pipeline(MemoryStore(), EmbeddingCache(10), embedder, MicroBatcher(embedder, 8), executor)


def drawn_history(seed: int, items: int, events: int) -> History:
    """Events on `items` items of all groups, some with unknown items and actions."""
    rng = np.random.default_rng(seed)
    chosen = rng.choice(np.arange(1, 51), items, replace=False)
    drawn = [
        Event(item_id(int(rng.choice(chosen))), str(rng.choice(ACTIONS)), float(rng.integers(1, 9)), hour * HOUR_MS)
        for hour in np.cumsum(rng.integers(0, 30, events)).tolist()
    ]
    drawn += [Event("no-item", "view", 1.0, HOUR_MS), Event(item_id(int(chosen[0])), "no-action", 1.0, HOUR_MS)]
    return history_of(drawn)


async def ranked(pipeline: Pipeline, release: Release, history: History, query: Query) -> tuple[Answer, Ranking]:
    answer = await pipeline.answer_events(release, history, SECONDS)
    [ranking] = await pipeline.recommend(release, query, [answer])
    return answer, ranking


async def explained(pipeline: Pipeline, release: Release, history: History, query: Query) -> Ranking:
    answer, ranking = await ranked(pipeline, release, history, query)
    return await pipeline.explain(release, ranking, answer, SECONDS)


def above_average(item: Ranked) -> float:
    """The score above its base, without what rules have added."""
    assert item.explanation is not None
    return item.score - item.explanation.base - item.explanation.parts.get(Part.RULE, 0.0)


@pytest.mark.parametrize("strategy", [Strategy.HYBRID, Strategy.PERSONAL])
@pytest.mark.parametrize("name", ["mix", "next visit", "rules"])
async def test_an_item_adds_what_the_score_loses_without_its_events(
    pipeline: Pipeline, releases: dict[str, Release], name: str, strategy: Strategy
) -> None:
    release, query = releases[name], Query(8, strategy, explain=True)
    for seed in range(5):
        history = drawn_history(seed, items=3 + 2 * seed, events=10 + 12 * seed)
        ranking = await explained(pipeline, release, history, query)
        again = replace(query, top_k=50, candidate_item_ids=tuple(release.item_ids[one.row] for one in ranking.items))
        added: dict[str, dict[int, float]] = {}
        for left_item in dict.fromkeys(history.item_ids):
            rest = history_of(event for event in history.events() if event.item_id != left_item)
            _, without = await ranked(pipeline, release, rest, again)
            others = {one.row: above_average(one) for one in without.items}
            added[left_item] = {one.row: above_average(one) - others[one.row] for one in ranking.items}
        for item in ranking.items:
            assert item.explanation is not None
            named = item.explanation.history_items
            expected = sorted(added, key=lambda one: -abs(added[one][item.row]))[:MOST_NAMED]
            assert [release.item_ids[one.row] for one in named] == expected
            for one in named:
                left_item = release.item_ids[one.row]
                assert one.value == pytest.approx(added[left_item][item.row], abs=1e-4)
                assert one.event_count == history.item_ids.count(left_item)


async def test_explaining_changes_nothing_else(pipeline: Pipeline, releases: dict[str, Release]) -> None:
    release, query = releases["next visit"], Query(explain=True)
    _, plain = await ranked(pipeline, release, group_history(2), query)
    told = await explained(pipeline, release, group_history(2), query)
    assert told != plain
    for item in told.items:
        assert item.explanation is not None
        assert item.explanation.history_items
    without = [
        item._replace(explanation=item.explanation._replace(history_items=()))
        for item in told.items
        if item.explanation
    ]
    assert told._replace(items=without) == plain


async def test_the_only_item_carries_all_that_rests_on_the_history(
    pipeline: Pipeline, releases: dict[str, Release]
) -> None:
    history = history_of([Event(item_id(3), "view", 2.0, START_MS), Event("no-item", "view", 2.0, START_MS)])
    for release in releases.values():
        ranking = await explained(pipeline, release, history, Query(50, exclude_seen=False, explain=True))
        for item in ranking.items:
            assert item.explanation is not None
            parts = item.explanation.parts
            of_history = [parts.get(part, 0.0) for part in (Part.OWN_HISTORY, Part.ENCODER, Part.SEGMENT)]
            [one] = item.explanation.history_items
            assert (one.row, one.event_count) == (2, 1)
            assert one.value == pytest.approx(sum(of_history), abs=1e-4)


async def test_an_item_that_changes_no_input_adds_nothing(pipeline: Pipeline, releases: dict[str, Release]) -> None:
    # By personal scores only the encoder counts, which does not read an event of an unknown action.
    read = [Event(item_id(number), "view", 1.0, START_MS + number * HOUR_MS) for number in (3, 7)]
    history = history_of([*read, Event(item_id(11), "no-action", 1.0, START_MS)])
    query = Query(50, Strategy.PERSONAL, exclude_seen=False, explain=True)
    _, ranking = await ranked(pipeline, releases["mix"], history, query)
    assert left_out(releases["mix"], history, ranking).rows.tolist().count(10) == 1, "item 11 is left out too"
    for item in (await explained(pipeline, releases["mix"], history, query)).items:
        assert item.explanation is not None
        assert {one.row for one in item.explanation.history_items} == {2, 6}
        assert all(abs(one.value) > NOISE for one in item.explanation.history_items)


async def test_recommended_items_are_left_out_first_then_the_newest(
    pipeline: Pipeline, releases: dict[str, Release], encoder: OnnxEncoder
) -> None:
    release = releases["mix"]
    numbers = [number for number in range(1, 51) if number != 49]
    history = history_of(
        Event(item_id(number), "view", 1.0, START_MS + place * HOUR_MS) for place, number in enumerate(numbers)
    )
    oldest = tuple(item_id(number) for number in range(1, 16))
    query = Query(15, Strategy.PERSONAL, exclude_seen=False, candidate_item_ids=oldest, explain=True)
    answer, ranking = await ranked(pipeline, release, history, query)
    left = left_out(release, history, ranking)
    assert left.rows[:MOST_SEEN].tolist() == [item.row for item in ranking.items][:MOST_SEEN]
    assert (left.rows[MOST_SEEN:] + 1).tolist() == numbers[::-1][: MOST_LEFT_OUT - MOST_SEEN]
    assert left.event_counts == [1] * MOST_LEFT_OUT
    encoder.call_sizes.clear()
    await pipeline.explain(release, ranking, answer, SECONDS)
    assert encoder.call_sizes == [MOST_LEFT_OUT + 1], "one call for all"


@pytest.mark.parametrize("strategy", [Strategy.POPULAR, Strategy.SEGMENT])
async def test_strategies_that_do_not_read_the_history_name_none(
    pipeline: Pipeline, releases: dict[str, Release], encoder: OnnxEncoder, strategy: Strategy
) -> None:
    answer, ranking = await ranked(pipeline, releases["mix"], group_history(1), Query(5, strategy, explain=True))
    encoder.down = True
    assert await pipeline.explain(releases["mix"], ranking, answer, SECONDS) == ranking


async def test_degraded_answers_and_users_without_history_name_none(
    pipeline: Pipeline, releases: dict[str, Release], encoder: OnnxEncoder
) -> None:
    release, query = releases["next visit"], Query(5, explain=True)
    answer, ranking = await ranked(pipeline, release, group_history(1), query)
    unknown, popular = await ranked(pipeline, release, EMPTY, query)
    encoder.down = True
    stale = answer._replace(degraded=Degraded.STALE_EMBEDDING)
    assert await pipeline.explain(release, ranking, stale, SECONDS) == ranking
    assert await pipeline.explain(release, popular, unknown, SECONDS) == popular
    nothing = ranking._replace(items=[])
    assert await pipeline.explain(release, nothing, answer, SECONDS) == nothing


async def test_an_encoder_that_fails_or_hangs_costs_no_more_than_the_time(
    pipeline: Pipeline, releases: dict[str, Release], encoder: OnnxEncoder
) -> None:
    release = releases["mix"]
    answer, ranking = await ranked(pipeline, release, group_history(1), Query(5, explain=True))
    encoder.down = True
    with pytest.raises(EncoderUnavailable):
        await pipeline.explain(release, ranking, answer, SECONDS)
    encoder.down, encoder.gate = False, asyncio.Event()
    async with asyncio.timeout(SECONDS / 2):
        with pytest.raises(EncoderUnavailable, match="in time"):
            await pipeline.explain(release, ranking, answer, 0.2)
