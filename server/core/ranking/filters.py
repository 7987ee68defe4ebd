"""Which items may be recommended: the filters of a query, and the items of a user's history."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from server.core.release import Release


@dataclass(frozen=True, slots=True)
class ItemFilters:
    """Items and categories by their ids; an empty tuple filters nothing. Unknown ids match no item."""

    exclude_item_ids: tuple[str, ...] = ()
    exclude_categories: tuple[str, ...] = ()
    include_categories: tuple[str, ...] = ()
    candidate_item_ids: tuple[str, ...] = ()

    def mask(self, release: Release) -> NDArray[np.bool_] | None:
        """Mask (V,) of the items that pass; None if nothing is filtered."""
        if not (self.exclude_item_ids or self.exclude_categories or self.include_categories or self.candidate_item_ids):
            return None
        keep = np.ones(len(release.item_ids), bool)
        if self.candidate_item_ids:
            keep &= _mask(len(keep), _rows_of_items(release, self.candidate_item_ids))
        if self.include_categories:
            keep &= _mask(len(keep), _rows_of_categories(release, self.include_categories))
        keep[_rows_of_items(release, self.exclude_item_ids)] = False
        keep[_rows_of_categories(release, self.exclude_categories)] = False
        return keep


NO_FILTERS = ItemFilters()


def _mask(size: int, rows: NDArray[np.intp]) -> NDArray[np.bool_]:
    mask = np.zeros(size, bool)
    mask[rows] = True
    return mask


def _rows_of_items(release: Release, item_ids: Iterable[str]) -> NDArray[np.intp]:
    known = (release.vocabulary.get(item_id, 0) for item_id in item_ids)
    return np.array([index - 1 for index in known if index], np.intp)


def _rows_of_categories(release: Release, categories: Iterable[str]) -> NDArray[np.intp]:
    """Rows of the items of any of these categories; an item of several can be there several times."""
    empty = np.empty(0, np.intp)
    return np.concatenate([empty, *(release.category_rows.get(category, empty) for category in categories)])


@dataclass(frozen=True, slots=True)
class Filter:
    """The items that one user may get: those of `mask` (V,), or all without it, but not the `banned` rows (ascending).

    `passing_count` is the number of items in the mask.
    """

    mask: NDArray[np.bool_] | None
    passing_count: int
    banned: NDArray[np.int64]

    def of(self, rows: NDArray[np.integer]) -> NDArray[np.bool_]:
        """Mask of the rows that may be returned."""
        keep = self.of_mask(rows)
        if len(self.banned):
            place = np.minimum(np.searchsorted(self.banned, rows), len(self.banned) - 1)
            keep &= self.banned[place] != rows
        return keep

    @property
    def left_count(self) -> int:
        """How many items may be returned."""
        if not len(self.banned):
            return self.passing_count
        return self.passing_count - int(np.count_nonzero(self.of_mask(self.banned)))

    def of_mask(self, rows: NDArray[np.integer]) -> NDArray[np.bool_]:
        """Mask of the rows that pass the filters of the query, whether banned or not."""
        return np.ones(len(rows), bool) if self.mask is None else self.mask[rows]
