"""Rows of different lengths, one after the other in one column: row b is `offsets[b]:offsets[b + 1]`."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def offsets_of(lengths: NDArray[np.integer] | NDArray[np.bool_]) -> NDArray[np.int64]:
    """Where rows of these lengths (B,) begin, and where the last one ends, (B + 1,).

    Of a mask (N,), how many places before each one are set.
    """
    offsets = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return offsets


def rows_of(lengths: NDArray[np.integer] | Sequence[int]) -> NDArray[np.int64]:
    """The row that each place of the column belongs to, (N,)."""
    return np.repeat(np.arange(len(lengths)), lengths)


def places_of(starts: NDArray[np.integer] | int, lengths: NDArray[np.integer]) -> NDArray[np.int64]:
    """Consecutive numbers for each row, (N,): `starts[b]`, `starts[b] + 1`, … `lengths[b]` of them."""
    offsets = offsets_of(lengths)
    places: NDArray[np.int64] = np.arange(offsets[-1]) + np.repeat(starts - offsets[:-1], lengths)
    return places
