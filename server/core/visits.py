"""Visits: events of one user with the same time stamp, or each close to the one before."""

import numpy as np
from numpy.typing import NDArray


def visit_starts(rows: NDArray[np.integer], timestamps: NDArray[np.int64], gap_seconds: float) -> NDArray[np.bool_]:
    """Whether each event (N,) is the first of a visit.

    `rows` (N,) is the history of each event; a history's events are consecutive and in time order. `timestamps` are in
    milliseconds. An event more than `gap_seconds` after the one before begins a visit.
    """
    starts = np.ones(len(rows), np.bool_)
    starts[1:] = (np.diff(rows) != 0) | (np.diff(timestamps) > 1000 * gap_seconds)
    return starts
