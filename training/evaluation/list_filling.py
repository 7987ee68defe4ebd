"""The list of one user by a rule: the best items by their values, then popular ones; of variants the best alone."""

import numpy as np
from numpy.typing import NDArray

from server.core.ranking.variants import best_of_groups
from training.metrics import CUTOFFS

LENGTH = max(CUTOFFS)
"""The length of a user's list."""


def best_of(
    items: NDArray[np.integer],
    values: NDArray[np.floating],
    place: NDArray[np.int64],
    groups: NDArray[np.int32] | None,
) -> NDArray[np.integer]:
    """At most `LENGTH` items of the largest values, best first, one of each group; the smaller `place` (V,) decides
    between equals.
    """
    if groups is None and len(items) > LENGTH:
        kept = values >= np.partition(values, len(values) - LENGTH)[-LENGTH]
        items, values = items[kept], values[kept]
    ordered = items[np.lexsort((place[items], -values))]
    return ordered[best_of_groups(groups, ordered, LENGTH)]


def filled(
    best: NDArray[np.integer],
    order: NDArray[np.intp],
    is_barred: NDArray[np.bool_],
    count: int,
    groups: NDArray[np.int32] | None,
) -> NDArray[np.integer]:
    """The best items, filled up to `LENGTH` from `order` (V,) with items that are not barred, one of each group.

    The first `count` of `order` hold enough items, unless they are variants of each other.
    """
    if len(best) >= LENGTH:
        return best[:LENGTH]
    while True:
        candidates = order[:count]
        rows = np.concatenate([best, candidates[~is_barred[candidates]]])
        full = rows[best_of_groups(groups, rows, LENGTH)]
        if len(full) == LENGTH or count >= len(order):
            return full
        count *= 4
