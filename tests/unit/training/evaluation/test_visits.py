"""Evaluation by visit on three users: targets, lists, figures and slices, computed by hand."""

import json
import math
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from numpy.typing import NDArray
from scipy import sparse

from server.core.figures import NEXT_VISIT
from server.core.preprocessing import Action, Preprocessing
from training.data.sequences import read_log
from training.evaluation.list_filling import LENGTH
from training.evaluation.results import UserSlice
from training.evaluation.visit_rules import OWN_FADING, OWN_FREQUENT, OWN_ONLY, POPULARITY, own_frequent, popularity
from training.evaluation.visits import (
    NEW_TO_USER,
    REPEATS,
    Ranking,
    Visitors,
    chosen_rules,
    hits_of,
    measure_visits,
    pair_ranks,
    rule_lists,
    scored_lists,
    without_seen,
)
from training.metrics import target_ranks

ITEMS = "abcdef"
DAY_MS = 86_400_000
HISTORIES = {"ann": ["ab", "ab", "a", "ad"], "ben": ["c", "a", "ac"], "eve": ["e"]}
PREPROCESSING = Preprocessing(
    max_length=9,
    actions=(Action(name="buy", weight=1.0), Action(name="return", weight=-1.0)),
    has_clock=True,
    exclude_seen=False,
)


def visitors_of(
    directory: Path,
    from_end: int = 1,
    exclude_seen: bool = False,
    histories: dict[str, list[str]] = HISTORIES,
    most: int = 99,
) -> Visitors:
    """Visits a day apart; an item in capitals was returned."""
    rows = [
        (user, item.lower(), "return" if item.isupper() else "buy", 1.0, day * DAY_MS)
        for user, visits in histories.items()
        for day, visit in enumerate(visits)
        for item in visit
    ]
    names = ["user_id", "item_id", "action", "value", "timestamp"]
    pl.DataFrame(rows, schema=names, orient="row").write_parquet(directory / "events.parquet")
    pl.DataFrame({"item_id": [*ITEMS]}).write_parquet(directory / "items.parquet")
    split = {"validation_from": 0, "test_from": 0, "by_visit": True}
    (directory / "split.json").write_text(json.dumps(split))
    preprocessing = PREPROCESSING.model_copy(update={"exclude_seen": exclude_seen})
    return Visitors.of(read_log(directory, preprocessing), from_end, preprocessing, len(ITEMS), most)


def text(lists: NDArray[np.int64]) -> list[str]:
    return ["".join(ITEMS[item] for item in row if item >= 0) for row in lists]


def lists_of(*texts: str) -> NDArray[np.int64]:
    return np.array([[*map(ITEMS.index, one)] + [-1] * (LENGTH - len(one)) for one in texts])


def sets(matrix: sparse.csr_matrix) -> list[str]:
    return ["".join(sorted(ITEMS[item] for item in row.indices)) for row in matrix]


def test_each_user_is_asked_once_for_the_items_of_the_visit(tmp_path: Path) -> None:
    last = visitors_of(tmp_path)
    assert sets(last.wanted) == ["ad", "ac"]
    assert sets(last.seen) == ["ab", "ac"]
    assert text(last.past.item[None]) == ["ababacae"]  # Eve's only visit is known
    assert last.past.asked_at.tolist() == [3 * DAY_MS, 2 * DAY_MS]
    before = visitors_of(tmp_path, from_end=2)
    assert sets(before.wanted) == ["a", "a"]
    assert text(before.past.item[None]) == ["ababce"]


def test_a_sample_has_all_items_of_its_users(tmp_path: Path) -> None:
    one = visitors_of(tmp_path, most=1)
    assert sets(one.wanted) in (["ad"], ["ac"])


def test_what_was_returned_is_known_to_no_rule_but_not_new(tmp_path: Path) -> None:
    visitors = visitors_of(tmp_path, histories={"ann": ["aF", "ab", "abF"], "ben": ["b", "a"]})
    assert sets(visitors.wanted) == ["ab", "a"]
    assert sets(visitors.seen) == ["abf", "b"]
    assert "f" not in text(visitors.past.item[None])[0]


def test_popularity_orders_equal_scores_and_fills_up(tmp_path: Path) -> None:
    """Popular are a (4), b (2), then c and e (1), then d and f (0)."""
    visitors = visitors_of(tmp_path)
    own = rule_lists(own_frequent(visitors.past), visitors)
    assert text(own.served) == ["abcedf", "acbedf"]
    assert text(own.new) == ["cedf", "bedf"]
    everybody = rule_lists(popularity(visitors.past), visitors)
    assert text(everybody.served) == ["abcedf"] * 2
    assert text(everybody.new) == ["cedf", "bedf"]


def test_among_equal_scores_the_popular_item_is_first(tmp_path: Path) -> None:
    visitors = visitors_of(tmp_path, histories={"ann": ["bc", "c", "a"], "ben": ["c", "a"]})
    everything = rule_lists(lambda users: sparse.csr_matrix(np.ones((users.stop - users.start, 6))), visitors)
    assert text(everything.served) == ["cbadef"] * 2


def test_a_release_that_excludes_seen_items_lists_new_ones_only(tmp_path: Path) -> None:
    visitors = visitors_of(tmp_path, exclude_seen=True)
    assert text(rule_lists(popularity(visitors.past), visitors).served) == ["cedf", "bedf"]
    assert text(scored_lists(lambda places: torch.arange(6.0).repeat(len(places), 1), visitors).served) == [
        "fedc",
        "fedb",
    ]


def test_settings_are_chosen_on_the_visits_before_the_last(tmp_path: Path) -> None:
    """Ann bought a for 30 days, then b for 10, then a again: with a half-life of 7 days b is first, with 15 a."""
    histories = {"ann": ["a"] * 30 + ["b"] * 10 + ["a", "a"], "ben": ["d"] * 9}
    test, validation = (visitors_of(tmp_path, from_end, histories=histories) for from_end in (1, 2))
    notes: list[str] = []
    chosen = dict(chosen_rules(test, validation, notes))
    assert notes[0] == f"{NEXT_VISIT}: {OWN_FADING}: half-life 15 days, chosen on the visits before the last"
    assert len(notes) == 3
    assert text(rule_lists(chosen[OWN_FADING], test).served)[0].startswith("a")
    assert OWN_FREQUENT in chosen


def test_rules_of_own_items_are_left_out_where_seen_items_are(tmp_path: Path) -> None:
    test, validation = (visitors_of(tmp_path, from_end, exclude_seen=True) for from_end in (1, 2))
    assert not OWN_ONLY & set(dict(chosen_rules(test, validation, [])))


def test_lists_by_scores(tmp_path: Path) -> None:
    visitors = visitors_of(tmp_path)
    table = torch.tensor([[6.0, 1, 2, 3, 4, 5], [1.0, 6, 5, 4, 3, 2]])
    ranking = scored_lists(lambda places: table[torch.from_numpy(places)], visitors)
    assert text(ranking.served) == ["afedcb", "bcdefa"]
    assert text(ranking.new) == ["fedc", "bdef"]


def test_the_rest_of_a_list_without_seen_items_moves_up(tmp_path: Path) -> None:
    visitors = visitors_of(tmp_path)
    np.testing.assert_array_equal(without_seen(lists_of("adbc", "fc"), visitors.seen), lists_of("dc", "f"))


def test_the_empty_end_of_a_list_is_no_hit(tmp_path: Path) -> None:
    """The place before a user's first item must not be read as the last item of the user before."""
    wanted = sparse.csr_matrix(np.eye(2, 6, 5))
    assert not hits_of(lists_of("a", "b"), wanted).any()
    assert hits_of(lists_of("af", "b"), wanted).sum() == 1


def test_figures_and_slices(tmp_path: Path) -> None:
    """Ann bought a, as before, and d, which is new; Ben bought a and c, both as before."""
    visitors = visitors_of(tmp_path)
    ranking = Ranking(lists_of("bdeacf", "efb"), lists_of("dce", "efb"))
    counts = np.array([4, 2, 1, 0, 1, 0])
    result = measure_visits(POPULARITY, visitors, ranking, counts)
    gain = [1 / math.log2(place + 2) for place in range(9)]
    ideal = gain[0] + gain[1]
    assert result.protocol == NEXT_VISIT
    assert result.users == 2
    assert result.figures["hr@5"] == 0.5
    assert result.figures["recall@10"] == 0.5
    assert result.figures["ndcg@10"] == pytest.approx((gain[1] + gain[3]) / ideal / 2)
    assert result.figures["coverage@10"] == 1.0
    slices = {one.name: one for one in result.slices}
    repeats, news = slices[REPEATS], slices[NEW_TO_USER]
    assert (repeats.users, repeats.ndcg, repeats.hr) == (2, pytest.approx(gain[3] / 2), 0.5)
    assert (news.users, news.ndcg, news.hr) == (1, 1.0, 1.0)
    own = measure_visits(OWN_FREQUENT, visitors, ranking, counts)
    assert own.slices[-1] == UserSlice(NEW_TO_USER, 0, 0.0, 0.0)
    assert [one.users for one in result.slices[:3]] == [1, 0, 1]  # Ben had two events, Ann five


@pytest.mark.parametrize("exclude_seen", [False, True])
@pytest.mark.parametrize("histories", [HISTORIES, {"ann": ["a", "ab"], "ben": ["c", "cd"]}])
def test_ranks_of_pairs_are_those_of_the_metrics(
    tmp_path: Path, exclude_seen: bool, histories: dict[str, list[str]]
) -> None:
    """Scores with ties, and targets that are left out."""
    visitors = visitors_of(tmp_path, exclude_seen=exclude_seen, histories=histories)
    table = torch.tensor([[2.0, 1, 2, 2, 0, 1], [1.0, 2, 3, 0, 3, 1]])
    ranks = pair_ranks(lambda places: table[torch.from_numpy(places)], visitors)
    scores = table[torch.from_numpy(visitors.places)].clone()
    if exclude_seen:
        scores[torch.from_numpy(visitors.seen[visitors.places].toarray() > 0)] = -torch.inf
    expected = target_ranks(scores, torch.from_numpy(visitors.held.targets.astype(np.int64) - 1))
    assert ranks.tolist() == expected.tolist()
