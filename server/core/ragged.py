"""Rows of different lengths, one after the other in one column: row b is `offsets[b]:offsets[b + 1]`."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def offsets_of(lengths: NDArray[np.integer] | NDArray[np.bool_]) -> NDArray[np.int64]:
    """Start of each row for rows of these lengths (B,), and the end of the last row: (B + 1,).

    For a mask (N,): the number of set places before each place.
    """
    offsets = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return offsets


def rows_of(lengths: NDArray[np.integer] | Sequence[int]) -> NDArray[np.int64]:
    """The row of each place of the column, (N,)."""
    return np.repeat(np.arange(len(lengths)), lengths)


def places_of(starts: NDArray[np.integer] | int, lengths: NDArray[np.integer]) -> NDArray[np.int64]:
    """For each row b the `lengths[b]` consecutive numbers `starts[b]`, `starts[b] + 1`, …: (N,)."""
    offsets = offsets_of(lengths)
    places: NDArray[np.int64] = np.arange(offsets[-1]) + np.repeat(starts - offsets[:-1], lengths)
    return places
