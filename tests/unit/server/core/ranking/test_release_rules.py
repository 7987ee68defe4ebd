"""Lists under operators' rules, against what each rule promises, for any rules, query and user."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.core.history import Event, history_of
from server.core.own_items import PastEvents
from server.core.ranking.query import Part, Query, Ranked, Ranking, Strategy, Subject
from server.core.ranking.rank import past_events, rank
from server.core.ranking.release_rules import action_weights
from server.core.release import GROUP, SELLER, TREND, Release
from server.core.repository.read import read_release
from server.core.rules import Rule, Rules, RulesInForce
from tests.support.releases import item_id, ranking_of, tiny_release

ITEMS, SEGMENTS = 50, 4
SELLERS = ("Ana", "Bo", "Cy")


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Release:
    """Fifty items of four categories; each third one is of a seller, and items 1 and 2 are variants."""
    release = read_release(tiny_release(tmp_path_factory.mktemp("repository")))
    rng = np.random.default_rng(3)
    groups = np.arange(ITEMS, dtype=np.int32)
    groups[1] = 0
    sellers = [SELLERS[row % 3] if row % 2 else None for row in range(ITEMS)]
    items = release.items.with_columns(
        pl.Series(SELLER, sellers),
        pl.Series(GROUP, groups),
        pl.Series(TREND, rng.normal(size=ITEMS).astype(np.float32)),
    )
    return replace(release, items=items)


@pytest.fixture(scope="module")
def releases(plain: Release, tmp_path_factory: pytest.TempPathFactory) -> list[Release]:
    """The same with the log-linear hybrid, and with the ranking of the next visit."""
    ranked = read_release(
        tiny_release(tmp_path_factory.mktemp("ranked"), ranking=ranking_of(personal=1.0, popularity=0.3, segment=0.5))
    )
    return [plain, replace(ranked, items=ranked.items.with_columns(plain.items[SELLER], plain.items[GROUP]))]


def past(release: Release, rows: list[int]) -> PastEvents:
    events = [Event(item_id(row + 1), "view", timestamp=day * 86_400_000) for day, row in enumerate(rows)]
    return past_events(release, history_of(events))


def subject(release: Release, segment: int, seed: int = 0, seen: tuple[int, ...] = ()) -> Subject:
    """A user of a segment, from 1; 0 is one without an embedding."""
    rng = np.random.default_rng([seed, segment])
    embedding = rng.normal(size=release.manifest.embedding_dim).astype(np.float32) if segment else None
    return Subject(embedding, segment, past(release, list(seen)))


def rule(kind: str, rule_id: str = "one", **fields: Any) -> Rule:
    return Rule.model_validate({"rule_id": rule_id, "kind": kind, **fields})


def under(release: Release, rules: Sequence[Rule]) -> Release:
    """The release with rules in force."""
    return replace(release, rules=RulesInForce(Rules(rules=tuple(rules))))


def listed(release: Release, query: Query, user: Subject, *rules: Rule) -> list[Ranked]:
    return rank(under(release, rules), query, [user])[0].items


def rows(items: list[Ranked]) -> list[int]:
    return [item.row for item in items]


ids = st.integers(1, ITEMS).map(item_id)
segments = st.lists(st.integers(1, SEGMENTS), max_size=2, unique=True)
targets = st.one_of(
    st.builds(lambda one: {"item_ids": one}, st.lists(ids, min_size=1, max_size=4, unique=True)),
    st.builds(lambda one: {"categories": [f"category-{one}"]}, st.integers(1, SEGMENTS)),
    st.builds(lambda one: {"sellers": [one]}, st.sampled_from(SELLERS)),
)


@st.composite
def rule_lists(draw: st.DrawFn) -> tuple[Rule, ...]:
    """Some rules of all kinds that do not contradict each other."""
    found: list[Rule] = []
    places = iter(draw(st.permutations(range(1, 9))))
    pinned: set[str] = set()
    replaced: set[str] = set()
    for number in range(draw(st.integers(1, 6))):
        kind = draw(st.sampled_from(["boost", "bury", "ban", "cap", "per", "pin", "replace"]))
        fields: dict[str, Any] = {"segment_ids": draw(segments)}
        if kind in ("pin", "replace"):
            target = draw(ids)
            if target in (pinned if kind == "pin" else replaced):
                continue
            (pinned if kind == "pin" else replaced).add(target)
            fields["item_ids"] = [target]
            if kind == "pin":
                fields["place"] = next(places)
            else:
                fields["replacement_item_id"] = draw(ids.filter(target.__ne__))
        elif kind == "per":
            kind, fields["per"] = "cap", draw(st.sampled_from(["category", "seller"]))
        else:
            fields |= draw(targets)
        if kind in ("boost", "bury"):
            fields["factor"] = draw(st.floats(1.1, 1e4))
        if kind == "cap":
            fields["max_items"] = draw(st.integers(1, 3))
        found.append(rule(kind, f"rule-{number}", **fields))
    return Rules(rules=tuple(found)).rules


queries = st.builds(
    Query,
    top_k=st.integers(1, 20),
    strategy=st.sampled_from(list(Strategy)),
    exclude_seen=st.booleans(),
    exclude_item_ids=st.lists(ids, max_size=3).map(tuple),
    include_categories=st.sampled_from([(), ("category-1", "category-2", "category-3")]),
    diversity=st.sampled_from([0.0, 0.5]),
    include_variants=st.booleans(),
    explain=st.just(True),
)


@settings(max_examples=300, deadline=None)
@given(rule_lists(), queries, st.integers(0, SEGMENTS), st.integers(0, 5), st.booleans(), st.data())
def test_every_rule_holds_in_any_list(
    releases: list[Release],
    rules: tuple[Rule, ...],
    query: Query,
    segment: int,
    seed: int,
    learned: bool,
    data: st.DataObject,
) -> None:
    release = releases[learned]
    seen = tuple(data.draw(st.lists(st.integers(0, ITEMS - 1), max_size=5), label="seen"))
    user = subject(release, segment, seed, seen)
    valid = [one for one in rules if not one.segment_ids or segment in one.segment_ids]
    [ranking] = rank(under(release, rules), query, [user])
    items, found = ranking.items, rows(ranking.items)
    may_show = allowed(release, query, set(seen), valid)
    assert len(found) == len(set(found)) <= query.top_k
    assert set(found) <= may_show
    check_variants(release, query, found)
    pins = {pin.place: index_of(release, pin) for pin in valid if pin.place and pin.place <= query.top_k}
    pinned = {row for row in pins.values() if row in may_show}
    check_caps(release, valid, found, pinned)
    check_pins(release, query, pins, pinned, found)
    check_explanations(items, {one.rule_id: one for one in valid})


def index_of(release: Release, one: Rule) -> int:
    return release.vocabulary[one.item_ids[0]] - 1


def targets_of(release: Release, one: Rule) -> set[int]:
    category = release.items["category"].to_list()
    sellers = release.items[SELLER].to_list()
    return {
        row
        for row in range(ITEMS)
        if release.item_ids[row] in one.item_ids
        or set(category[row]) & set(one.categories)
        or sellers[row] in one.sellers
    }


def allowed(release: Release, query: Query, seen: set[int], rules: list[Rule]) -> set[int]:
    """The rows that the query and the banning rules let pass; replaced items can only be there as candidates."""
    mask = query.filters.mask(release)
    found = set(range(ITEMS) if mask is None else np.flatnonzero(mask).tolist())
    if query.exclude_seen:
        found -= seen
    for one in rules:
        if one.kind == "ban":
            found -= targets_of(release, one)
        if one.kind == "replace":
            found -= {index_of(release, one)}
    return found


def check_variants(release: Release, query: Query, found: list[int]) -> None:
    if not query.include_variants:
        groups = release.items[GROUP].gather(found).to_list()
        assert max(Counter(groups).values(), default=0) <= 1


def check_caps(release: Release, rules: list[Rule], found: list[int], pinned: set[int]) -> None:
    """No cap is exceeded but by pinned items."""
    for one in rules:
        if one.kind != "cap" or one.max_items is None:
            continue
        members = targets_of(release, one) if one.item_ids or one.categories or one.sellers else set(range(ITEMS))
        column = {"category": "category", "seller": SELLER, None: ""}[one.per]
        counts: Counter[str] = Counter()
        of_pins: Counter[str] = Counter()
        for row in found:
            value = release.items[column][row] if column else "all"
            for name in [value] if isinstance(value, str) else value if value is not None else []:
                if row in members:
                    counts[name] += 1
                    of_pins[name] += row in pinned
        for name, count in counts.items():
            assert count <= max(one.max_items, of_pins[name]), (one, name)


def check_pins(release: Release, query: Query, pins: dict[int, int], pinned: set[int], found: list[int]) -> None:
    """A pinned item stands at its place, or in a short list at its end, unless a variant of it is pinned before."""
    groups = release.items[GROUP].to_list()
    variants = Counter(groups[row] for row in pinned)
    for place, row in pins.items():
        if row not in pinned or (not query.include_variants and variants[groups[row]] > 1):
            continue
        assert row in found
        if place <= len(found) - sum(other > place for other, one in pins.items() if one in pinned):
            assert found.index(row) == place - 1


def check_explanations(items: list[Ranked], rules: dict[str, Rule]) -> None:
    for item in items:
        assert set(item.rule_ids) <= rules.keys()
        assert item.explanation is not None
        total = item.explanation.base + sum(item.explanation.parts.values())
        assert total == pytest.approx(item.score, abs=2e-3, rel=1e-4)
        if Part.RULE in item.explanation.parts:
            assert item.rule_ids


@settings(max_examples=100, deadline=None)
@given(rule_lists(), queries, st.integers(0, 5))
def test_users_of_many_segments_get_what_each_gets_alone(
    releases: list[Release], rules: tuple[Rule, ...], query: Query, seed: int
) -> None:
    release = releases[0]
    users = [subject(release, segment, seed, (segment, 7)) for segment in (1, 0, 2, 1, 3)]
    together = rank(under(release, rules), query, users)
    alone = [rank(under(release, rules), query, [user])[0] for user in users]
    assert [shown(ranking) for ranking in together] == [shown(ranking) for ranking in alone]


def shown(ranking: Ranking) -> list[tuple[Any, ...]]:
    return [(item.row, round(item.score, 3), item.rule_ids) for item in ranking.items]


@pytest.mark.parametrize("strategy", list(Strategy))
def test_without_a_rule_for_the_user_the_list_is_as_before(releases: list[Release], strategy: Strategy) -> None:
    for release in releases:
        user = subject(release, 1)
        before = rank(release, Query(20, strategy), [user])
        assert rank(under(release, ()), Query(20, strategy), [user]) == before
        other = under(release, [rule("ban", segment_ids=[2], item_ids=[item_id(1)])])
        assert rank(other, Query(20, strategy), [user]) == before


@pytest.mark.parametrize("strategy", list(Strategy))
def test_a_boost_adds_the_logarithm_of_its_factor_and_orders_by_it(releases: list[Release], strategy: Strategy) -> None:
    for release in releases:
        user, last = subject(release, 1), item_id(50)
        query = Query(50, strategy, include_variants=True)
        plain = {item.row: item.score for item in listed(release, query, user)}
        if strategy is Strategy.SEGMENT:  # behind a segment's list all items are scored by the segment
            plain = {
                item.row: item.score for item in listed(release, query, user, rule("boost", item_ids=["x"], factor=2))
            }
        boosts = (
            rule("boost", item_ids=[last], factor=100.0),
            rule("bury", "two", categories=["category-1"], factor=3.0),
        )
        items = listed(release, query, user, *boosts)
        lowered = set(release.category_rows["category-1"].tolist())
        expected = {
            row: score + math.log(100) * (row == 49) - math.log(3) * (row in lowered) for row, score in plain.items()
        }
        assert {item.row: item.score for item in items} == pytest.approx(expected, abs=1e-4)
        scores = [item.score for item in items]
        assert scores == sorted(scores, reverse=True)
        raised = next(item for item in items if item.row == 49)
        assert raised.rule_ids == ("one",)


def test_a_replacement_stands_where_the_item_would(plain: Release) -> None:
    user, query = subject(plain, 1), Query(5, Strategy.PERSONAL)
    before = listed(plain, query, user)
    best, worst = before[0], listed(plain, Query(49, Strategy.PERSONAL), user)[-1]
    swap = rule("replace", item_ids=[plain.item_ids[best.row]], replacement_item_id=plain.item_ids[worst.row])
    after = listed(plain, query, user, swap)
    assert rows(after) == [worst.row, *rows(before)[1:]]
    assert after[0].score == pytest.approx(best.score)
    assert after[0].rule_ids == ("one",)
    assert after[0].reason is Part.RULE
    unknown = rule("replace", item_ids=[plain.item_ids[best.row]], replacement_item_id="not in this release")
    assert rows(listed(plain, Query(4, Strategy.PERSONAL), user, unknown)) == rows(before)[1:]


def test_weights_of_actions_take_the_place_of_the_releases(plain: Release) -> None:
    given = RulesInForce(Rules(action_weights={"view": -1.0, "not an action": 9.0}))
    release = replace(plain, rules=given)
    weights = action_weights(release)
    names = [action.name for action in plain.preprocessing.actions]
    assert dict(zip(["", *names], weights.tolist(), strict=True)) == pytest.approx(
        {"": 0.0} | {action.name: action.weight for action in plain.preprocessing.actions} | {"view": -1.0}
    )
    history = history_of([Event(item_id(1), "view"), Event(item_id(2), "purchase")])
    assert past_events(release, history).weight.tolist() == [-1.0, 1.0]
