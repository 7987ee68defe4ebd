"""Puts the tied events of a log, those of one user and time stamp, into the order in which the server reads them."""

from collections.abc import Sequence

import numpy as np
import polars as pl
from numpy.typing import NDArray

from server.core.hash_index import hashes_of
from server.core.visits import canonical_order, visit_starts

Coded = tuple[NDArray[np.integer], Sequence[str]]
"""A column as codes (N,), and the text of each code."""


def sort_ties(events: pl.DataFrame, rows: NDArray[np.integer], items: Coded, actions: Coded) -> pl.DataFrame:
    """The events, which are sorted by user and time, with tied events in canonical order.

    `events` has `timestamp` and `value`; `rows` (N,) is the user of each event.
    """
    timestamps = events["timestamp"].to_numpy()
    if visit_starts(rows, timestamps, 0.0).all():
        return events
    item_hashes, action_hashes = (hashes_of(texts)[codes] for codes, texts in (items, actions))
    values = events["value"].fill_null(float("nan")).to_numpy()
    order = canonical_order(rows, timestamps, item_hashes, action_hashes, values)
    return events if order is None else events[order]


def sort_ties_of_log(events: pl.DataFrame) -> pl.DataFrame:
    """`sort_ties` of a cleaned log, whose ids and actions are Enums."""
    user, item, action = (events[name] for name in ("user_id", "item_id", "action"))
    return sort_ties(events, user.to_physical().to_numpy(), _coded(item), _coded(action))


def _coded(column: pl.Series) -> Coded:
    assert isinstance(column.dtype, pl.Enum)
    return column.to_physical().to_numpy(), column.dtype.categories.to_list()
