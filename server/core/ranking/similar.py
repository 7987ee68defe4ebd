"""Items like an item: near in the space of item embeddings, and of the same categories."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from server.core.ranking.filters import NO_FILTERS, ItemFilters
from server.core.ranking.release_rules import rules_of
from server.core.ranking.variants import best_of_groups
from server.core.release import Release

CATEGORY_SHARE = 0.3
"""Weight of the categories in the similarity to an item that has any; the embeddings have the rest."""


@dataclass(frozen=True, slots=True)
class SimilarQuery:
    """Which items like an item are wanted. Without `include_variants` the best item of a group stands for all."""

    top_k: int = 10
    filters: ItemFilters = NO_FILTERS
    include_variants: bool = False


class Similar(NamedTuple):
    """An item, by its row, and its similarity, -1 to 1; larger is more alike."""

    row: int
    similarity: float


def similar_items(release: Release, row: int, query: SimilarQuery) -> list[Similar]:
    """The items most like item `row`, best first, without the item itself and what rules for all users ban.

    Without `include_variants` its own variants are left out too.
    """
    similarity = similarities(release, row)
    mask = query.filters.mask(release)
    if mask is not None:
        similarity[~mask] = -np.inf
    rules = rules_of(release)
    for_all = None if rules is None else rules.for_segment(0)
    if for_all is not None:
        similarity[for_all.banned] = -np.inf
    groups = None if query.include_variants else release.variant_groups
    similarity[row if groups is None else groups == groups[row]] = -np.inf
    order = np.argsort(-similarity, kind="stable")[: np.count_nonzero(similarity > -np.inf)]
    best = order[best_of_groups(groups, order, query.top_k)]
    return [Similar(*pair) for pair in zip(best.tolist(), similarity[best].tolist(), strict=True)]


def similarities(release: Release, row: int) -> NDArray[np.float32]:
    """The similarity of every item to item `row`, (V,): the cosine of their embeddings, and of two items with
    categories also the share of categories that they have in common (Jaccard).
    """
    vectors = release.item_embeddings
    lengths = np.maximum(np.linalg.norm(vectors, axis=1), 1e-12)
    cosine: NDArray[np.float32] = (vectors @ vectors[row] / (lengths * lengths[row])).astype(np.float32)
    own = [name for name in release.items["category"].gather([row]).to_list()[0] or () if name is not None]
    if not own:
        return cosine
    common = np.zeros(len(vectors), np.float32)
    for name in own:
        common[release.category_rows[name]] += 1
    every = release.category_counts + len(own) - common
    jaccard: NDArray[np.float32] = common / every
    return (1 - CATEGORY_SHARE) * cosine + CATEGORY_SHARE * jaccard
