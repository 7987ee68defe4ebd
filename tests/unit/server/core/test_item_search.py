"""Items by inner product: exact search, inverted lists, filters."""

import numpy as np
import pytest
from numpy.typing import NDArray

from server.core.item_search import ItemSearch, SearchLists
from training.segments.search_lists import LEAST_RECALL, search_lists, with_new_items

ITEMS, DIM, GROUPS = 20_000, 16, 100
LISTS = 141


def vectors(count: int, seed: int) -> NDArray[np.float32]:
    """Vectors around the same directions for each seed, of different lengths."""
    rng = np.random.default_rng(seed)
    groups = np.random.default_rng(0).normal(size=(GROUPS, DIM))
    noise = rng.normal(scale=0.3, size=(count, DIM))
    return ((groups[rng.integers(GROUPS, size=count)] + noise) * rng.uniform(0.5, 2.0, (count, 1))).astype(np.float32)


@pytest.fixture(scope="module")
def items() -> NDArray[np.float32]:
    return vectors(ITEMS, seed=1)


@pytest.fixture(scope="module")
def lists(items: NDArray[np.float32]) -> SearchLists:
    found = search_lists(items, vectors(1000, seed=2), seed=0)
    assert found is not None
    return found


def best_of(
    items: NDArray[np.float32], queries: NDArray[np.float32], count: int, allowed: NDArray[np.bool_]
) -> list[list[int]]:
    scores = np.where(allowed, queries @ items.T, -np.inf)
    best: list[list[int]] = np.argsort(-scores, axis=1, kind="stable")[:, :count].tolist()
    return best


@pytest.mark.parametrize("share", [1.0, 0.5, 0.03])
def test_an_exact_search_finds_the_best_of_the_allowed_items(items: NDArray[np.float32], share: float) -> None:
    queries, allowed = vectors(20, seed=3), np.random.default_rng(4).random(ITEMS) < share
    found = ItemSearch(items).search(queries, 30, None if share == 1.0 else allowed)
    assert found.tolist() == best_of(items, queries, 30, allowed)


@pytest.mark.parametrize("share", [1.0, 0.9, 0.3, 0.06, 0.03])
def test_lists_find_nearly_all_of_the_best_with_and_without_filters(
    items: NDArray[np.float32], lists: SearchLists, share: float
) -> None:
    queries, allowed = vectors(300, seed=5), np.random.default_rng(6).random(ITEMS) < share
    found = ItemSearch(items, lists).search(queries, 50, None if share == 1.0 else allowed)
    best = best_of(items, queries, 10, allowed)
    shares = [len(set(right) & set(given)) / 10 for right, given in zip(best, found.tolist(), strict=True)]
    assert np.mean(shares) > 0.98
    assert allowed[found].all()


def test_lists_visit_few_items_and_keep_the_promised_recall(lists: SearchLists) -> None:
    assert lists.recall >= LEAST_RECALL
    assert lists.probes <= len(lists.centroids) // 8


def test_more_items_than_the_visited_lists_hold_are_found_all_the_same(
    items: NDArray[np.float32], lists: SearchLists
) -> None:
    found = ItemSearch(items, lists).search(vectors(3, seed=7), ITEMS)
    assert [sorted(row) for row in found.tolist()] == [list(range(ITEMS))] * 3
    only = np.zeros(ITEMS, bool)
    only[::10] = True
    assert ItemSearch(items, lists).search(vectors(3, seed=7), ITEMS, only).shape == (3, ITEMS // 10)


def test_nothing_is_found_where_nothing_is_allowed(items: NDArray[np.float32], lists: SearchLists) -> None:
    for search in (ItemSearch(items), ItemSearch(items, lists)):
        assert search.search(vectors(2, seed=8), 10, np.zeros(ITEMS, bool)).shape == (2, 0)


def test_items_without_structure_get_no_lists() -> None:
    rng = np.random.default_rng(9)
    noise = rng.normal(size=(ITEMS, 64)).astype(np.float32)
    assert search_lists(noise, rng.normal(size=(200, 64)).astype(np.float32), seed=0) is None


def test_new_items_are_found_through_the_old_lists(items: NDArray[np.float32], lists: SearchLists) -> None:
    new = vectors(50, seed=10) * 10
    longer = with_new_items(lists, new)
    longer.check(ITEMS + 50, DIM)
    found = ItemSearch(np.vstack([items, new]), longer).search(new[:20], 10)
    assert (found[:, 0] >= ITEMS).all()


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"centroids": np.zeros((3, DIM + 1), np.float32)}, "must be float32"),
        ({"centroids": np.full((LISTS, DIM), np.nan, np.float32)}, "finite"),
        ({"list_of_item": np.zeros(ITEMS - 1, np.int32)}, "must have one"),
        ({"list_of_item": np.full(ITEMS, LISTS, np.int32)}, "must have one"),
        ({"list_of_item": np.full(ITEMS, -1, np.int32)}, "must have one"),
        ({"probes": 0}, "visits 1 to 141"),
        ({"probes": LISTS + 1}, "visits 1 to 141"),
    ],
)
def test_lists_that_do_not_fit_are_refused(lists: SearchLists, change: dict[str, object], problem: str) -> None:
    fields = {name: getattr(lists, name) for name in ("centroids", "list_of_item", "probes", "recall")}
    with pytest.raises(ValueError, match=problem):
        SearchLists(**(fields | change)).check(ITEMS, DIM)
