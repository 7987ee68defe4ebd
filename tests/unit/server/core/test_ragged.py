"""Rows of different lengths, one after the other: where they begin, whose each place is, and which places they hold."""

import numpy as np

from server.core.ragged import offsets_of, places_of, rows_of

LENGTHS = np.array([2, 0, 3])


def test_rows_and_their_offsets() -> None:
    assert offsets_of(LENGTHS).tolist() == [0, 2, 2, 5]
    assert rows_of(LENGTHS).tolist() == [0, 0, 2, 2, 2]


def test_a_mask_has_the_counts_before_each_place() -> None:
    assert offsets_of(np.array([True, False, True])).tolist() == [0, 1, 1, 2]


def test_places_count_up_from_each_start() -> None:
    assert places_of(np.array([7, 9, 1]), LENGTHS).tolist() == [7, 8, 1, 2, 3]
    assert places_of(0, LENGTHS).tolist() == [0, 1, 0, 1, 2]


def test_no_rows_have_no_places() -> None:
    nothing = np.empty(0, np.int64)
    assert offsets_of(nothing).tolist() == [0]
    assert places_of(nothing, nothing).tolist() == rows_of(nothing).tolist() == []
