"""Picks the best items under caps: at most so many of a category, of a seller, or of some named items."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Cap(NamedTuple):
    """At most `max_items` of each group are in a list; `groups` has the groups of each row that is in any."""

    max_items: int
    groups: dict[int, tuple[int, ...]]


class Picker:
    """Picks rows one after the other, one of each group of variants, within the caps."""

    def __init__(self, variants: NDArray[np.int32] | None, caps: Sequence[Cap]) -> None:
        """`variants` (V,) has the group of each item; without it each item is its own group."""
        self._variants = variants
        self._caps = caps
        self._taken: set[int] = set()
        self._counts: list[dict[int, int]] = [{} for _ in caps]

    def take(self, row: int) -> None:
        """Count an item that stands in the list whatever the caps say."""
        self._taken.add(self._variant(row))
        for cap, counts in zip(self._caps, self._counts, strict=True):
            for group in cap.groups.get(row, ()):
                counts[group] = counts.get(group, 0) + 1

    def pick(self, rows: NDArray[np.intp], count: int) -> NDArray[np.intp]:
        """The places of the first `count` rows (R,), best first, that may be in the list, ascending."""
        places: list[int] = []
        for place, row in enumerate(rows.tolist()):
            if len(places) >= count:
                break
            if self._has_room(row):
                self.take(row)
                places.append(place)
        return np.array(places, np.intp)

    def _variant(self, row: int) -> int:
        return row if self._variants is None else int(self._variants[row])

    def _has_room(self, row: int) -> bool:
        if self._variant(row) in self._taken:
            return False
        return all(
            counts.get(group, 0) < cap.max_items
            for cap, counts in zip(self._caps, self._counts, strict=True)
            for group in cap.groups.get(row, ())
        )
