"""The rules of `bench_next_visit` and its figures, on logs whose right answer can be counted by hand."""

import math
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from numpy.typing import NDArray
from scipy import sparse

from tests.benchmarks import next_visit_rules as rules
from tests.benchmarks.bench_next_visit import by_seed, compare, rules_of, write_config
from tests.benchmarks.next_visit_logs import NEW, REPEATS, TASKS, Figures, figures_of, score, split, visitors_of
from tests.benchmarks.next_visit_rules import Histories, Recommended, Rule, WalkSettings, recommend
from training.config import load_config
from training.data import demo

DAY = 86_400_000
ITEMS = 12


def log_of(*rows: tuple[str, str, int], action: str = "buy") -> pl.DataFrame:
    """Events (user, item, day)."""
    users, items, days = zip(*rows, strict=True)
    times = [datetime.fromtimestamp(86_400 * day, UTC) for day in days]
    return pl.DataFrame({"user_id": users, "item_id": items, "action": action, "timestamp": times})


def histories_of(
    *events: tuple[int, int, int, int], asked: int = 2, words: sparse.csr_matrix | None = None
) -> Histories:
    """Histories of (user, item, visit, day), all asked for a day after the newest event."""
    user, item, visit, day = np.array(events).T
    users = int(user.max()) + 1
    seen = sparse.csr_matrix((np.ones(len(user), bool), (user, item)), (users, ITEMS))[:asked]
    return Histories(user, item, visit, DAY * day, np.full(users, DAY * (day.max() + 1)), asked, seen, words)


@pytest.fixture
def histories() -> Histories:
    """User 0 had item 0 in two visits, item 1 once and later; user 1 had items 2 and 3 together, then 1."""
    return histories_of((0, 0, 0, 0), (0, 0, 1, 10), (0, 1, 2, 100), (1, 2, 3, 0), (1, 3, 3, 0), (1, 1, 4, 5))


def best(rule: Rule, histories: Histories, user: int = 0) -> list[int]:
    """The ten items of one user."""
    found: list[int] = recommend(rule, histories).any[user].tolist()
    return found


def scores_of(rule: Rule, user: int) -> NDArray[np.float32]:
    """The scores of one user, (V,)."""
    scores: NDArray[np.float32] = rule(slice(user, user + 1)).toarray()[0]
    return scores


def test_the_last_visit_is_held_out_whole() -> None:
    log = split(log_of(("a", "x", 1), ("a", "y", 2), ("a", "z", 2), ("b", "x", 1)), 0.0, ())
    assert log.targets["user_id"].to_list() == ["a"]
    assert sorted(log.targets["item_id"].to_list()[0]) == ["y", "z"]
    assert log.history.select("user_id", "item_id").rows() == [("a", "x"), ("b", "x")]


def test_events_within_the_gap_are_one_visit() -> None:
    log = split(log_of(("a", "x", 1), ("a", "y", 3), ("a", "z", 4)), 86_400, ())
    assert sorted(log.targets["item_id"].to_list()[0]) == ["y", "z"]


def test_times_in_seconds_are_read_as_seconds() -> None:
    log = log_of(("a", "x", 17_000), ("a", "y", 17_001))
    seconds = log.with_columns(pl.col("timestamp").dt.epoch("s"))
    assert split(seconds, 0.0, ()).targets["asked_at"].to_list() == [17_001 * DAY]
    assert split(log, 0.0, ()).targets["asked_at"].to_list() == [17_001 * DAY]


def test_of_too_many_users_the_same_sample_is_asked_for_and_all_are_held_out() -> None:
    rows = [(f"u{user}", f"i{visit}", visit) for user in range(20) for visit in (1, 2)]
    log = split(log_of(*rows), 0.0, (), most=5)
    assert log.users == 20
    assert len(log.targets) == 5
    assert log.targets["user_id"].to_list() == split(log_of(*rows), 0.0, (), most=5).targets["user_id"].to_list()
    assert len(log.history) == 20


def test_users_who_are_not_asked_for_count_too() -> None:
    visitors = visitors_of(split(log_of(("a", "x", 1), ("b", "y", 1), ("b", "y", 2), ("b", "z", 3)), 0.0, ()))
    assert visitors.histories.asked == 1
    counts = scores_of(rules.popularity(visitors.histories), 0)
    assert [counts[visitors.row_of[item]] for item in ("x", "y")] == [1, 2]


def test_a_return_is_no_target_and_counts_for_no_rule_but_was_had() -> None:
    bought = log_of(("a", "x", 1), ("a", "y", 3), ("a", "z", 3))
    returned = log_of(("a", "y", 2), ("a", "w", 3), action="return")
    visitors = visitors_of(split(pl.concat([bought, returned]), 0.0, ("return",)))
    row = visitors.row_of
    assert visitors.histories.item.tolist() == [row["x"]]
    assert visitors.targets_of(REPEATS) == [{row["y"]}]
    assert len(visitors.targets[0]) == 2


def test_an_item_that_the_history_lacks_counts_as_missed() -> None:
    visitors = visitors_of(split(log_of(("a", "x", 1), ("a", "x", 2), ("a", "new", 2)), 0.0, ()))
    assert visitors.histories.item_count == 1
    assert visitors.targets_of(REPEATS) == [{0}]
    assert [len(target) for target in visitors.targets_of(NEW)] == [1]
    assert len(visitors.targets[0]) == 2


def test_new_items_and_repeats_are_scored_apart_over_users_who_have_some() -> None:
    log = log_of(("a", "x", 1), ("a", "x", 2), ("a", "y", 2), ("b", "y", 1), ("b", "y", 2))
    visitors = visitors_of(split(log, 0.0, ()))
    x, y = visitors.row_of["x"], visitors.row_of["y"]
    rest = [99] * 9
    figures = figures_of(Recommended(np.array([[x, *rest], [x, *rest]]), np.array([[y, *rest], [y, *rest]])), visitors)
    assert figures["all items"]["recall"].tolist() == [0.5, 0.0]
    assert figures[NEW]["recall"].tolist() == [1.0]
    assert figures[REPEATS]["recall"].tolist() == [1.0, 0.0]


def test_words_of_an_item_table_describe_items(tmp_path: Path) -> None:
    path = tmp_path / "items.parquet"
    table = {
        "item_id": ["x", "y", "z"],
        "title": ["red cup", "blue plate", "lamp"],
        "category": [["ware"], ["ware"], []],
    }
    pl.DataFrame(table, schema_overrides={"category": pl.List(pl.String)}).write_parquet(path)
    log = log_of(("a", "x", 1), ("a", "y", 2), ("a", "z", 3), ("a", "none", 4), ("a", "x", 5))
    visitors = visitors_of(split(log, 0.0, ()), path)
    assert visitors.histories.words is not None
    likeness = (visitors.histories.words @ visitors.histories.words.T).toarray()
    x, y, z, none = (visitors.row_of[item] for item in ("x", "y", "z", "none"))
    assert likeness[x, x] == pytest.approx(1)
    assert likeness[x, y] > 0.1
    assert likeness[x, z] == likeness[none, none] == 0


def test_own_items_come_by_number_of_visits_or_by_time(histories: Histories) -> None:
    assert best(rules.own_frequency(histories), histories)[:2] == [0, 1]
    assert best(rules.own_fading(histories, 7.0), histories)[:2] == [1, 0]
    assert best(rules.own_fading(histories, 480.0), histories)[:2] == [0, 1]


def test_popularity_counts_everybody_and_fills_up(histories: Histories) -> None:
    assert scores_of(rules.popularity(histories), 1)[:4].tolist() == [2, 2, 1, 1]
    assert scores_of(rules.popularity(histories, since=DAY * 50), 0)[:4].tolist() == [0, 1, 0, 0]
    assert best(rules.own_frequency(histories), histories, user=1)[3] == 0


def test_of_new_items_none_was_had(histories: Histories) -> None:
    found = recommend(rules.own_frequency(histories), histories)
    assert found.any[0, :2].tolist() == [0, 1]
    assert found.new[0].tolist() == list(range(2, 12))
    assert found.new[1, 0] == 0


def test_small_chunks_and_blocks_recommend_the_same(histories: Histories, monkeypatch: pytest.MonkeyPatch) -> None:
    def all_ways() -> list[Recommended]:
        copy = replace(histories)  # without what it computed before
        ways = [
            rules.own_fading(copy, 30.0),
            rules.item_knn(copy),
            rules.tifu_knn(copy, rules.TIFU_SETTINGS[0]),
            rules.walk(copy, rules.WALK_SETTINGS[3]),
            rules.rings(copy, rules.RING_BUDGETS[1]),
        ]
        return [recommend(rule, copy) for rule in ways]

    whole = all_ways()
    monkeypatch.setattr(rules, "_CHUNK", ITEMS)
    monkeypatch.setattr(rules, "_BLOCK", 1)
    assert np.array_equal(whole, all_ways())


def test_ten_best_come_by_score_then_by_popularity_then_by_row() -> None:
    past = histories_of((0, 3, 0, 0), (1, 3, 1, 0), (1, 7, 2, 1), asked=1)
    scores = np.zeros((1, ITEMS), np.float32)
    scores[0, [9, 8, 7, 2]] = 2, 3, 1, 1
    assert best(lambda _: sparse.csr_matrix(scores), past) == [8, 9, 7, 2, 3, 0, 1, 4, 5, 6]
    assert best(lambda _: sparse.csr_matrix(np.ones((1, ITEMS), np.float32)), past)[:4] == [3, 7, 0, 1]


def test_the_walk_goes_from_the_last_visits_to_what_followed_them() -> None:
    past = histories_of((0, 0, 0, 0), (0, 1, 1, 1), (1, 2, 2, 0), (1, 3, 3, 1), (2, 0, 4, 0), (2, 2, 5, 1), asked=3)
    newest = scores_of(rules.walk(past, WalkSettings(1, 1, 0.5)), 2)
    assert newest[3] > 0.1 > newest[1]
    both = scores_of(rules.walk(past, WalkSettings(2, 1, 0.5)), 2)
    assert both[[3, 1]].tolist() == [1.0, 0.25]


def test_the_walk_can_go_from_moment_to_moment() -> None:
    past = histories_of((0, 0, 0, 0), (0, 1, 0, 1), (1, 0, 1, 5))
    one_step = WalkSettings(1, 1, 0.5)
    assert scores_of(rules.walk(past, one_step), 1)[1] == 0
    assert scores_of(rules.walk(past, one_step, lambda one: one.moments), 1)[1] == 1
    assert any(setting.startswith("moments") for setting in rules.families(past)["graph, walk"])


def test_rings_take_their_shares_nearest_first() -> None:
    first_ring = [(0, item, 1, 1) for item in range(1, 9)]
    past = histories_of((0, 0, 0, 0), *first_ring, (0, 9, 2, 2), (0, 10, 2, 2), (0, 11, 3, 3), (1, 0, 4, 0))
    found = best(rules.rings(past, ((7, 2, 1),)), past, user=1)
    assert set(found[:7]) < set(range(1, 9))
    assert found[7:] == [9, 10, 11]
    found = best(rules.rings(past, ((2, 1),)), past, user=1)
    assert found[2] in (9, 10)
    assert set(found[:2] + found[3:9]) == set(range(1, 9))


def test_rings_go_around_the_last_item_then_the_one_before() -> None:
    past = histories_of((0, 0, 0, 0), (0, 1, 1, 1), (0, 4, 2, 2), (0, 2, 3, 3), (1, 0, 4, 0), (1, 4, 5, 1))
    assert best(rules.rings(past, ((5, 1), (3, 1))), past, user=1)[:3] == [2, 1, 4]
    assert best(rules.rings(past, ((7, 2, 1),)), past, user=1)[:3] == [2, 0, 4]
    fork = [(0, 0, 0, 0), (0, 7, 1, 1), (0, 4, 2, 2), (0, 5, 3, 3), (0, 6, 3, 3), (1, 0, 4, 0), (1, 4, 5, 1)]
    past = histories_of(*fork)
    found = best(rules.rings(past, ((1,), (2,))), past, user=1)
    assert found[0] in (5, 6)
    assert set(found[1:3]) == {4, 7}


@pytest.mark.parametrize(("like", "first"), [(1, 1), (2, 2)])
def test_of_a_ring_the_likest_item_is_first(like: int, first: int) -> None:
    words = np.zeros((ITEMS, 2), np.float32)
    words[[0, like], 0] = 1
    past = histories_of((0, 0, 0, 0), (0, 1, 1, 1), (0, 2, 1, 1), (1, 0, 2, 0), asked=2, words=sparse.csr_matrix(words))
    assert best(rules.rings(past, ((7, 2, 1),)), past, user=1)[0] == first


def test_neighbours_lend_what_one_did_not_have() -> None:
    past = histories_of((0, 0, 0, 0), (0, 1, 1, 1), (1, 0, 2, 2), (1, 1, 3, 3), (2, 0, 4, 4), asked=3)
    scores = scores_of(rules.tifu_knn(past, rules.TifuSettings(7, 0.9, 0.7, neighbours=1, own=0.7)), 2)
    assert scores[0] > scores[1] > 0.01
    assert scores_of(rules.item_knn(past), 2)[0] == 0
    assert scores_of(rules.item_knn(past), 2)[1] == pytest.approx(2 / math.sqrt(6), rel=0.01)


def test_shrinkage_puts_what_many_share_before_what_one_has() -> None:
    rare = [(0, 0, 0, 0), (0, 1, 0, 0)]
    common = [(user, item, user, 0) for user in range(1, 6) for item in (2, 3)]
    asked = [(6, 0, 6, 0), (6, 2, 6, 0), (7, 2, 7, 0)]
    past = histories_of(*rare, *common, *asked, asked=8)
    few, many = (scores_of(rules.item_knn(past, shrinkage=one), 6) for one in (0.0, 100.0))
    assert few[1] / few[3] > many[1] / many[3]


def test_figures_are_those_of_the_set() -> None:
    figures = score(np.array([[1, 2, *range(10, 18)], [5, *range(20, 29)]]), [{2, 99}, {1}])
    assert figures["hr"].tolist() == [1.0, 0.0]
    assert figures["recall"].tolist() == [0.5, 0.0]
    assert figures["ndcg"].tolist() == pytest.approx([(1 / math.log2(3)) / (1 + 1 / math.log2(3)), 0.0])


def test_settings_of_rules_are_chosen_on_the_visit_before() -> None:
    rows = [(user, f"{user}-often-{item}", day) for user in "abc" for item in range(15) for day in range(4)]
    rows += [(user, f"{user}-lately-{item}", day) for user in "abc" for item in range(5) for day in (80, 90, 95)]
    test = split(log_of(*rows), 0.0, ())
    ways, chosen = rules_of(visitors_of(test), visitors_of(split(test.history, 0.0, ())))
    assert set(ways) == set(TASKS)
    assert chosen["own, fading"] == "half-life 7 days"
    assert ways["all items"]["own, fading"]["recall"].tolist() == [1, 1, 1]
    assert not [way for way in ways[NEW] if way.startswith("own")]
    assert set(chosen) == {"own, fading", "TIFU-KNN", "item-kNN", "graph, walk", "graph, rings"}


def figures(*ndcg: float) -> Figures:
    """Figures that are all the same."""
    return dict.fromkeys(("hr", "recall", "ndcg"), np.array(ndcg))


def test_several_seeds_have_a_mean_of_each_user() -> None:
    found = by_seed({0: {"Segrec": figures(0, 1)}, 7: {"Segrec": figures(1, 1)}})
    assert list(found) == ["Segrec, seed 0", "Segrec, seed 7", "Segrec, mean of 2"]
    assert found["Segrec, mean of 2"]["ndcg"].tolist() == [0.5, 1.0]
    assert list(by_seed({0: {"Segrec": figures(0, 1)}})) == ["Segrec"]


def test_differences_are_to_the_best_rule_and_for_new_items_to_popularity_and_item_knn() -> None:
    ways = {"Segrec, hybrid": figures(1, 1), "popularity": figures(0, 0), "item-kNN": figures(0.5, 0.5)}
    assert compare("all items", ways)["Segrec, hybrid"]["ndcg_difference"] == {"item-kNN": (0.5, 0.5)}
    assert compare("all items", ways)["item-kNN"]["ndcg_difference"] == {"item-kNN": None}
    assert compare(NEW, ways)["Segrec, hybrid"]["ndcg_difference"] == {"popularity": (1, 1), "item-kNN": (0.5, 0.5)}


def test_the_demo_is_trained_with_the_settings_of_the_demo(tmp_path: Path) -> None:
    assert load_config(write_config(tmp_path / "demo.toml")) == demo.CONFIG
