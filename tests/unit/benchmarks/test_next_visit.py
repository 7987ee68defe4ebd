"""The rules of `bench_next_visit` and its figures, on logs whose right answer can be counted by hand."""

import math
from datetime import UTC, datetime

import numpy as np
import polars as pl
import pytest

from tests.benchmarks import next_visit_rules as rules
from tests.benchmarks.bench_next_visit import histories_of, score, split
from tests.benchmarks.next_visit_rules import Histories

DAY = 86_400_000


def log_of(*rows: tuple[str, str, int]) -> pl.DataFrame:
    """Events (user, item, day)."""
    users, items, days = zip(*rows, strict=True)
    times = [datetime.fromtimestamp(86_400 * day, UTC) for day in days]
    return pl.DataFrame({"user_id": users, "item_id": items, "action": "buy", "timestamp": times})


@pytest.fixture
def histories() -> Histories:
    """User 0 had item 0 in two visits, item 1 once and later; user 1 had items 2 and 3 together, then 1."""
    user = np.array([0, 0, 0, 1, 1, 1])
    item = np.array([0, 0, 1, 2, 3, 1])
    visit = np.array([0, 1, 2, 3, 3, 4])
    time = DAY * np.array([0, 10, 100, 0, 0, 5])
    return Histories(user, item, visit, time, DAY * np.array([101, 10]), item_count=12)


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


def test_an_item_that_the_history_lacks_counts_as_missed() -> None:
    histories, [target] = histories_of(split(log_of(("a", "x", 1), ("a", "x", 2), ("a", "new", 2)), 0.0, ()))
    assert histories.item_count == 1
    assert 0 in target
    assert len(target) == 2


def test_own_items_come_by_number_of_visits_or_by_time(histories: Histories) -> None:
    assert rules.top_items(rules.own_frequency(histories))[0, :2].tolist() == [0, 1]
    assert rules.top_items(rules.own_fading(histories, 7.0))[0, :2].tolist() == [1, 0]
    assert rules.top_items(rules.own_fading(histories, 480.0))[0, :2].tolist() == [0, 1]


def test_popularity_counts_everybody(histories: Histories) -> None:
    assert rules.popularity(histories)[1, :4].tolist() == [2, 2, 1, 1]
    assert rules.popularity(histories, since=DAY * 50)[0, :4].tolist() == [0, 1, 0, 0]


def test_the_graph_goes_from_the_last_visit_to_what_followed_it() -> None:
    user, item = np.array([0, 0, 1]), np.array([0, 1, 0])
    found = rules.graph(Histories(user, item, np.array([0, 1, 2]), DAY * user, DAY * np.ones(2, int), 12))
    assert rules.top_items(found)[1, 0] == 1


def test_neighbours_lend_what_one_did_not_have() -> None:
    user, item = np.array([0, 0, 1, 1, 2]), np.array([0, 1, 0, 1, 0])
    visit = np.array([0, 1, 2, 3, 4])
    histories = Histories(user, item, visit, DAY * visit, DAY * np.full(3, 9), 12)
    scores = rules.tifu_knn(histories, rules.TifuSettings(7, 0.9, 0.7, neighbours=1, own=0.7))
    assert scores[2, 0] > scores[2, 1] > 0
    assert rules.item_knn(histories)[2, 1] > 0


def test_figures_are_those_of_the_set() -> None:
    figures = score(np.array([[1, 2, *range(10, 18)], [5, *range(20, 29)]]), [{2, 99}, {1}])
    assert figures["hr"].tolist() == [1.0, 0.0]
    assert figures["recall"].tolist() == [0.5, 0.0]
    assert figures["ndcg"].tolist() == pytest.approx([(1 / math.log2(3)) / (1 + 1 / math.log2(3)), 0.0])
