"""Items like an item: nearest first, by embeddings and categories, without variants."""

from dataclasses import replace

import numpy as np
import polars as pl
import pytest

from server.core.ranking.filters import ItemFilters
from server.core.ranking.similar import CATEGORY_SHARE, SimilarQuery, similar_items, similarities
from server.core.release import GROUP, Release
from server.core.repository.read import read_release
from tests.support.releases import item_id, tiny_release


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Release:
    return read_release(tiny_release(tmp_path_factory.mktemp("repository")))


def test_similarity_is_cosine_and_share_of_categories(release: Release) -> None:
    found = similarities(release, 0)
    vectors = release.item_embeddings
    cosine = vectors @ vectors[0] / np.linalg.norm(vectors, axis=1) / np.linalg.norm(vectors[0])
    same = np.arange(len(vectors)) % 4 == 0
    np.testing.assert_allclose(found, (1 - CATEGORY_SHARE) * cosine + CATEGORY_SHARE * same, atol=1e-5)
    bare = replace(release, items=release.items.with_columns(pl.lit([], pl.List(pl.String)).alias("category")))
    np.testing.assert_allclose(similarities(bare, 0), cosine, atol=1e-5)


def test_the_nearest_come_first_without_the_item_and_what_filters_leave_out(release: Release) -> None:
    expected = [row for row in np.argsort(-similarities(release, 5), kind="stable").tolist() if row != 5]
    assert [row for row, _ in similar_items(release, 5, SimilarQuery(49))] == expected
    query = SimilarQuery(49, ItemFilters(exclude_item_ids=(item_id(expected[0] + 1),)))
    assert [row for row, _ in similar_items(release, 5, query)] == expected[1:]
    assert similar_items(release, 5, SimilarQuery(5, ItemFilters(candidate_item_ids=(item_id(6),)))) == []


def test_variants_are_left_out_unless_asked(release: Release) -> None:
    groups = np.arange(50, dtype=np.int32) // 2 * 2
    doubled = replace(release, items=release.items.with_columns(pl.Series(GROUP, groups)))
    rows = [row for row, _ in similar_items(doubled, 4, SimilarQuery(50))]
    assert sorted(groups[rows].tolist()) == [group for group in range(0, 50, 2) if group != 4]
    assert len(similar_items(doubled, 4, SimilarQuery(50, include_variants=True))) == 49
