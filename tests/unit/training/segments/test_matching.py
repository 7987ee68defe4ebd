"""Segment ids across a refit."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from training.segments.matching import fresh_ids, match_segments


def test_without_a_release_before_ids_count_up() -> None:
    matching = fresh_ids(3)
    assert matching.segment_ids == (1, 2, 3)
    assert matching.born == (1, 2, 3)
    assert matching.retired == ()


def test_renumbered_clusters_keep_their_ids() -> None:
    previous = np.repeat([4, 7, 9], [50, 10, 30])
    clusters = np.repeat([2, 0, 1], [50, 10, 30])
    matching = match_segments(previous, clusters, 3, [4, 7, 9], 12)
    assert matching.segment_ids == (7, 9, 4)
    assert matching.born == ()
    assert matching.retired == ()


def test_a_few_users_who_move_change_nothing() -> None:
    previous = np.repeat([1, 2], 50)
    clusters = np.where(np.arange(100) % 10 == 0, 1 - np.repeat([0, 1], 50), np.repeat([0, 1], 50))
    assert match_segments(previous, clusters, 2, [1, 2], 3).segment_ids == (1, 2)


def test_a_split_keeps_the_id_with_the_larger_part_and_the_other_is_new() -> None:
    previous = np.repeat([1, 2], [100, 50])
    clusters = np.concatenate([np.repeat([0, 1], [70, 30]), np.repeat(2, 50)])
    matching = match_segments(previous, clusters, 3, [1, 2], 8)
    assert matching.segment_ids == (1, 8, 2)
    assert matching.born == (8,)


def test_a_merge_retires_the_smaller() -> None:
    matching = match_segments(np.repeat([1, 2, 3], [60, 40, 80]), np.repeat([0, 1], [100, 80]), 2, [1, 2, 3], 4)
    assert matching.segment_ids == (1, 3)
    assert matching.retired == (2,)


def test_a_segment_without_heir_retires_and_its_id_is_not_used_again() -> None:
    """Segment 2 has no users any more, and cluster 1 is made of users whom the release before did not have."""
    matching = match_segments(np.repeat(1, 50), np.repeat(0, 50), 2, [1, 2], 3)
    assert matching.segment_ids == (1, 3)
    assert matching.born == (3,)
    assert matching.retired == (2,)


def test_a_handful_of_common_users_makes_no_heir() -> None:
    previous = np.repeat([1, 2], [100, 100])
    clusters = np.concatenate([np.repeat(0, 99), [1], np.repeat(0, 100)])
    matching = match_segments(previous, clusters, 2, [1, 2], 3)
    assert matching.born == (3,)


@given(
    st.lists(st.tuples(st.integers(1, 6), st.integers(0, 7)), max_size=60),
    st.integers(1, 8),
)
def test_ids_are_distinct_and_known_or_new(pairs: list[tuple[int, int]], cluster_count: int) -> None:
    previous = np.array([old for old, _ in pairs], np.int64)
    clusters = np.array([new % cluster_count for _, new in pairs], np.int64)
    matching = match_segments(previous, clusters, cluster_count, range(1, 7), 10)
    assert len(set(matching.segment_ids)) == cluster_count
    assert all(i <= 6 or i >= 10 for i in matching.segment_ids)
    assert set(matching.segment_ids) - set(range(1, 7)) == set(matching.born)
    assert set(range(1, 7)) - set(matching.segment_ids) == set(matching.retired)
