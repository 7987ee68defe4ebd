"""Finds the items with the highest inner products: exactly, or in a large catalogue by way of inverted lists.

Inverted lists (Sivic & Zisserman 2003; Jégou et al. 2011, faiss' IndexIVFFlat) put each item into the list of its
nearest centroid, and a search visits the lists whose centroids are nearest to the user. `training` makes them for
catalogues where an exact search would take too long, and measures what they miss.
"""

from dataclasses import dataclass
from math import ceil
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

# Its stubs know neither the arrays that faiss takes for pointers nor its keyword arguments.
_faiss: Any = faiss

SELECTED_BY_ROW = 20
"""A search visits only the allowed items where they are at most one in this many; else it tests every item."""

POOL_OF_PROBES = 400
"""Up to this many results `SearchLists.probes` lists are visited, and proportionally more for more results."""


@dataclass(frozen=True)
class SearchLists:
    """L inverted lists: `centroids` float32 (L, D), `list_of_item` int32 (V,) from 0, and how many lists a search
    visits, `probes`; `recall` is the share of the ten best items that it found for a sample of users, 0 to 1.
    """

    centroids: NDArray[np.float32]
    list_of_item: NDArray[np.int32]
    probes: int
    recall: float

    def check(self, items: int, dim: int) -> None:
        """Raises ValueError if the lists do not fit `items` items of `dim` numbers."""
        count = len(self.centroids)
        if self.centroids.dtype != np.float32 or self.centroids.shape != (count, dim) or not count:
            raise ValueError(f"the centroids of the search lists must be float32 (L, {dim})")
        if not np.isfinite(self.centroids).all():
            raise ValueError("the centroids of the search lists must be finite numbers")
        lists = self.list_of_item
        if lists.dtype != np.int32 or lists.shape != (items,) or lists.min() < 0 or lists.max() >= count:
            raise ValueError(f"each of the {items} items must have one of the {count} lists")
        if not 1 <= self.probes <= count:
            raise ValueError(f"a search visits 1 to {count} lists, not {self.probes}")


class ItemSearch:
    """A search over items (V, D) by inner product; exact without `lists`."""

    def __init__(self, items: NDArray[np.float32], lists: SearchLists | None = None) -> None:
        self._items = np.ascontiguousarray(items, np.float32)
        self._lists = lists
        self._index = _flat(self._items) if lists is None else _inverted(self._items, lists)

    def search(
        self, queries: NDArray[np.float32], count: int, allowed: NDArray[np.bool_] | None = None
    ) -> NDArray[np.int64]:
        """Rows of the `count` best items, best first, for each query (B, D): (B, count).

        Only `allowed` items (V,) are found, if given; there are fewer columns if fewer items are allowed.
        """
        queries = np.ascontiguousarray(queries, np.float32)
        if allowed is None:
            return self._found(queries, min(count, len(self._items)), len(self._items), None)
        rows = np.flatnonzero(allowed)
        count = min(count, len(rows))
        if not count:
            return np.empty((len(queries), 0), np.int64)
        if len(rows) <= len(allowed) // SELECTED_BY_ROW:
            best = _faiss.knn(queries, self._items[rows], count, metric=faiss.METRIC_INNER_PRODUCT)[1]
            found: NDArray[np.int64] = rows[best].astype(np.int64)
            return found
        selector = _faiss.IDSelectorBitmap(np.packbits(allowed, bitorder="little"))
        return self._found(queries, count, len(rows), selector)

    def _found(self, queries: NDArray[np.float32], count: int, allowed_count: int, selector: Any) -> NDArray[np.int64]:
        """The best of `allowed_count` items, which the selector admits; None admits all."""
        if self._lists is None:
            options = None if selector is None else _faiss.SearchParameters(sel=selector)
            exact: NDArray[np.int64] = self._index.search(queries, count, params=options)[1]
            return exact
        total = len(self._lists.centroids)
        # Where only one item in n is allowed, n times as many lists hold as many allowed items.
        factor = len(self._items) / allowed_count * max(1.0, count / POOL_OF_PROBES)
        found = self.visit(queries, count, min(total, ceil(self._lists.probes * factor)), selector)
        short = np.flatnonzero((found < 0).any(axis=1))  # the lists held fewer items than asked
        if len(short):
            found[short] = self.visit(queries[short], count, total, selector)
        return found

    def visit(self, queries: NDArray[np.float32], count: int, probes: int, selector: Any = None) -> NDArray[np.int64]:
        """The best items of the nearest `probes` lists, as `search`; -1 where they hold fewer than `count`."""
        options = _faiss.SearchParametersIVF(nprobe=probes, sel=selector)
        found: NDArray[np.int64] = self._index.search(queries, count, params=options)[1]
        return found


def _flat(items: NDArray[np.float32]) -> Any:
    index = _faiss.IndexFlatIP(items.shape[1])
    index.add(items)
    return index


def _inverted(items: NDArray[np.float32], lists: SearchLists) -> Any:
    count, dim = lists.centroids.shape
    index = _faiss.IndexIVFFlat(_flat(lists.centroids), dim, count, faiss.METRIC_INNER_PRODUCT)
    list_of_item = lists.list_of_item.astype(np.int64)
    index.add_core(len(items), _faiss.swig_ptr(items), None, _faiss.swig_ptr(list_of_item))
    return index
