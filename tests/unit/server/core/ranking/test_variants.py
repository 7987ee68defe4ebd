"""Variants: the best item of a group stands for all, with every strategy, and lists stay full."""

from dataclasses import replace

import numpy as np
import polars as pl
import pytest

from server.core.history import EMPTY
from server.core.ranking.query import Query, Ranked, Strategy, Subject
from server.core.ranking.rank import past_events, rank
from server.core.ranking.variants import best_of_groups
from server.core.release import GROUP, Release
from server.core.repository.read import read_release
from tests.support.releases import item_id, ranking_of, tiny_release

GROUPS = np.arange(200, dtype=np.int32) // 20 * 20
"""Ten groups of twenty items."""


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Release:
    ranking = ranking_of(personal=1.0, popularity=0.5)
    return read_release(tiny_release(tmp_path_factory.mktemp("repository"), items=200, ranking=ranking))


@pytest.fixture(scope="module")
def release(plain: Release) -> Release:
    return replace(plain, items=plain.items.with_columns(pl.Series(GROUP, GROUPS)))


def listed(release: Release, query: Query) -> list[Ranked]:
    user = Subject(release.item_embeddings[0::4].mean(0), 1, past_events(release, EMPTY))
    return rank(release, query, [user])[0].items


def test_the_first_of_each_group_is_kept() -> None:
    groups = np.array([0, 0, 2, 2, 4], np.int32)
    rows = np.array([3, 1, 0, 2, 4])
    assert best_of_groups(groups, rows, 5).tolist() == [0, 1, 4]
    assert best_of_groups(groups, rows, 2).tolist() == [0, 1]
    assert best_of_groups(groups, rows, 5, {2}).tolist() == [1, 4]
    assert best_of_groups(None, rows, 3).tolist() == [0, 1, 2]


@pytest.mark.parametrize("next_visit", [True, False])
@pytest.mark.parametrize("diversity", [0.0, 0.5])
@pytest.mark.parametrize("strategy", list(Strategy))
def test_the_best_of_each_group_is_shown_and_the_list_is_full(
    release: Release, strategy: Strategy, diversity: float, next_visit: bool
) -> None:
    """The personal pool holds a hundred items, which are of too few groups."""
    if not next_visit:
        release = replace(release, next_visit=None)
    items = listed(release, Query(10, strategy, diversity=diversity))
    assert sorted(GROUPS[item.row] for item in items) == list(range(0, 200, 20))
    if not diversity and strategy is not Strategy.SEGMENT:
        everything = listed(release, Query(200, strategy, include_variants=True))
        assert len(everything) == 200
        best: dict[int, int] = {}
        for item in everything:
            best.setdefault(int(GROUPS[item.row]), item.row)
        assert [item.row for item in items] == list(best.values())


def test_a_filter_decides_which_variant_stands_for_the_group(release: Release) -> None:
    first = listed(release, Query(1, Strategy.PERSONAL))[0].row
    items = listed(release, Query(10, Strategy.PERSONAL, exclude_item_ids=(item_id(first + 1),)))
    assert first not in {item.row for item in items}
    assert GROUPS[first] in {GROUPS[item.row] for item in items}


def test_groups_of_one_item_change_nothing(plain: Release) -> None:
    assert plain.variant_groups is None


def test_what_the_filters_removed_is_counted(release: Release) -> None:
    user = Subject(release.item_embeddings[0], 1, past_events(release, EMPTY))
    query = Query(10, include_categories=("category-1",), exclude_item_ids=(item_id(1), item_id(2)))
    assert rank(release, query, [user])[0].removed_count == 200 - 49
    assert rank(release, Query(), [user])[0].removed_count == 0
