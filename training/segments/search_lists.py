"""Makes the inverted lists by which a server searches a large catalogue, and measures what they miss.

The number of lists is the root of the number of items. The fewest lists are visited with which a sample of users is
given at least `LEAST_RECALL` of their ten best items; where no number does, the server searches exactly.
"""

from pathlib import Path
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from server.core.item_search import ItemSearch, SearchLists

APPROXIMATE_FROM = 300_000
"""Items from which an exact search takes a server more than some five milliseconds."""
LEAST_RECALL = 0.99
MOST_VISITED = 8
"""At most one list in this many is visited; more would cost as much as an exact search."""
_BEST, _POOL = 10, 100
_SAMPLE_USERS = 1000
_POINTS_PER_LIST = 64
_faiss: Any = faiss


def search_lists(items: NDArray[np.float32], users: NDArray[np.float32], seed: int) -> SearchLists | None:
    """Lists of items (V, D), measured on users (U, D); None if no number of visited lists finds `LEAST_RECALL`."""
    items = np.ascontiguousarray(items, np.float32)
    dim, count = items.shape[1], max(1, round(len(items) ** 0.5))
    index = _faiss.IndexIVFFlat(_faiss.IndexFlatIP(dim), dim, count, faiss.METRIC_INNER_PRODUCT)
    index.cp.spherical, index.cp.seed, index.cp.max_points_per_centroid = True, seed, _POINTS_PER_LIST
    index.train(items)
    centroids: NDArray[np.float32] = index.quantizer.reconstruct_n(0, count)
    list_of_item = index.quantizer.search(items, 1)[1][:, 0].astype(np.int32)
    rng = np.random.default_rng(seed)
    sample = users[np.sort(rng.permutation(len(users))[:_SAMPLE_USERS])]
    best = ItemSearch(items).search(sample, _BEST)
    search = ItemSearch(items, SearchLists(centroids, list_of_item, 1, 0.0))
    probes = 1
    while probes <= max(1, count // MOST_VISITED):
        recall = _share_found(best, search.visit(sample, _POOL, probes))
        if recall >= LEAST_RECALL:
            return SearchLists(centroids, list_of_item, probes, recall)
        probes *= 2
    return None


def with_new_items(lists: SearchLists, new_items: NDArray[np.float32]) -> SearchLists:
    """The lists with items (V', D) at the end; the recall stays that of the first measurement."""
    nearest = ItemSearch(lists.centroids).search(new_items, 1)[:, 0].astype(np.int32)
    return SearchLists(lists.centroids, np.concatenate([lists.list_of_item, nearest]), lists.probes, lists.recall)


def write_search_lists(path: Path, lists: SearchLists) -> None:
    """Write `search_lists.npz` of a release."""
    np.savez(path, centroids=lists.centroids, list_of_item=lists.list_of_item, probes=lists.probes, recall=lists.recall)


def _share_found(best: NDArray[np.int64], found: NDArray[np.int64]) -> float:
    """The share of the best rows (U, 10) that are among the found rows (U, 100)."""
    shares = [np.isin(right, given).mean() for right, given in zip(best, found, strict=True)]
    return float(np.mean(shares))
