"""Variants in training: groups by title, and lists and ranks in which the best of each group stands for it."""

import numpy as np
import polars as pl
import torch

from server.core.release import GROUP
from training.evaluation.list_filling import LENGTH, best_of, filled
from training.ranking.variants import (
    first_of_groups,
    groups_of,
    groups_with_new,
    leave_out_variants,
    variant_groups,
)

GROUPS = np.array([0, 1, 0, 1, 4], np.int32)


def test_titles_name_groups_unless_a_group_is_given() -> None:
    items = pl.DataFrame({"title": ["Milk", "b", " milk ", None, None, "", "b"]})
    assert variant_groups(items).to_list() == [0, 1, 0, 3, 4, 5, 1]
    given = items.with_columns(group=pl.Series(["g", None, None, "g", None, None, None]))
    assert variant_groups(given).to_list() == [0, 1, 2, 0, 4, 5, 1]
    assert groups_of(pl.DataFrame({"title": ["a", "b", None]})) is None


def test_new_items_join_the_group_of_their_title() -> None:
    old = pl.DataFrame({"title": ["a", "b", "a"], GROUP: pl.Series([0, 1, 0], dtype=pl.Int32)})
    new = pl.DataFrame({"title": ["A", "c", "c", None]})
    assert groups_with_new(old, new).to_list() == [0, 1, 0, 0, 4, 4, 6]


def test_a_variant_that_another_beats_has_no_score() -> None:
    scores = torch.tensor([[1.0, 5.0, 3.0, 2.0, 0.0], [4.0, -torch.inf, 3.0, 2.0, 0.0]])
    left = leave_out_variants(scores, GROUPS)
    assert torch.isfinite(left).tolist() == [[False, True, True, False, True], [True, False, False, True, True]]
    assert leave_out_variants(scores, None) is scores


def test_lists_have_the_first_of_each_group() -> None:
    lists = np.array([[2, 0, 3, 1, 4], [4, 2, 0, -1, -1]])
    assert first_of_groups(lists, GROUPS, 3).tolist() == [[2, 3, 4], [4, 2, -1]]
    assert first_of_groups(lists, None, 2).tolist() == [[2, 0], [4, 2]]


def test_a_rules_list_is_filled_up_with_other_groups() -> None:
    """A hundred items in fifty pairs: twenty of different pairs, the best of each."""
    groups = np.arange(100, dtype=np.int32) // 2 * 2
    order, place = np.arange(100), np.arange(100)
    best = best_of(np.array([3, 2, 50]), np.array([1.0, 2.0, 3.0]), place, groups)
    assert best.tolist() == [50, 2]
    barred = np.isin(order, [*best, 0])
    full = filled(best, order, barred, LENGTH, groups)
    assert full.tolist() == [50, 2, 1, *range(4, 38, 2)]
    assert filled(best, order, barred, LENGTH, None).tolist() == [50, 2, 1, *range(3, 20)]
