"""Variants: items of one group, such as those of one title, of which the best stands for all."""

from collections.abc import Collection

import numpy as np
from numpy.typing import NDArray


def best_of_groups(
    groups: NDArray[np.int32] | None, rows: NDArray[np.integer], count: int, taken: Collection[int] = ()
) -> NDArray[np.intp]:
    """The places of the first row of each group among rows (R,), best first: at most `count`, ascending.

    `groups` (V,) has the group of each item; without it each item is its own group. Groups in `taken` are left out.
    """
    if groups is None:
        return np.arange(min(count, len(rows)))
    found, places = set(taken), []
    step = 2 * count
    for start in range(0, len(rows), step):
        for place, group in enumerate(groups[rows[start : start + step]].tolist(), start):
            if group not in found:
                found.add(group)
                places.append(place)
                if len(places) == count:
                    return np.array(places, np.intp)
    return np.array(places, np.intp)
