"""Visits: events of one user with the same time stamp, or each close to the one before.

Events of one user with the same time stamp are tied. Unless `Visits.ordered`, their order means nothing: they are read
in canonical order, by the hashes of item and action, which say nothing about the item.
"""

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


def canonical_order(
    rows: NDArray[np.integer],
    timestamps: NDArray[np.int64],
    item_hashes: NDArray[np.uint64],
    action_hashes: NDArray[np.uint64],
    values: NDArray[np.float64],
) -> NDArray[np.intp] | None:
    """Places (N,) that sort tied events by item hash, action hash, then raw value (NaN last); None without ties.

    The events of a history are consecutive and in time order. Hashes are `server.core.history.text_hash`.
    """
    tied = (timestamps[1:] == timestamps[:-1]) & (rows[1:] == rows[:-1])
    if not tied.any():
        return None
    is_tied = np.append(tied, False) | np.append(False, tied)
    places = np.flatnonzero(is_tied)
    order = np.arange(len(timestamps))
    # The events of a tie are neighbours among `places` too.
    tie = (np.cumsum(~np.append(False, tied)[places]) - 1).astype(np.uint64)
    order[places] = places[_sorted_ties(tie, item_hashes[places], action_hashes[places], values[places])]
    return order


def _sorted_ties(
    tie: NDArray[np.uint64],
    item_hashes: NDArray[np.uint64],
    action_hashes: NDArray[np.uint64],
    values: NDArray[np.float64],
) -> NDArray[np.intp]:
    """Places (N,) that sort events by the number of their tie, from 0 and ascending, then in canonical order."""
    # One integer sorts far faster than four columns: the number of the tie, then the first bits of the item hash.
    bits = int(tie[-1] + 1).bit_length()
    packed = (tie << np.uint64(64 - bits)) | (item_hashes >> np.uint64(bits))
    order = np.argsort(packed, kind="stable")
    alike = packed[order][1:] == packed[order][:-1]
    if alike.any():
        open_places = np.flatnonzero(np.append(alike, False) | np.append(False, alike))
        part = order[open_places]
        columns = (values[part], action_hashes[part], item_hashes[part], packed[part])
        order[open_places] = part[np.lexsort(columns)]
    return order
