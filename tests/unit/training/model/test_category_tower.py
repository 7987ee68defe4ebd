"""Ids and categories in one item vector: which categories count, and that what is saved computes the same."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from server.core.features import Features
from tests.support.training import assert_plain_is_the_same
from training.data.sequences import EventLog
from training.fit.defaults import FEW_EVENTS_AN_ITEM, choose_categories
from training.model.category_tower import CATEGORIES_AN_ITEM, CategoryTower, ItemCategories, read_item_categories
from training.model.encoder import Encoder, EncoderShape
from training.model.loss import NextItemLoss

SHAPE = EncoderShape(item_count=6, action_count=3, max_length=16, embedding_dim=16, layers=2, heads=2)
CATEGORIES = ItemCategories(np.array([[1, 2], [1, 0], [2, 0], [0, 0], [1, 2], [2, 0]], np.int32), 2)


def read(directory: Path, categories: list[list[str] | None]) -> ItemCategories | None:
    pl.DataFrame({"category": pl.Series(categories, dtype=pl.List(pl.String))}).write_parquet(
        directory / "items.parquet"
    )
    return read_item_categories(directory)


@pytest.fixture
def encoder() -> Encoder:
    torch.manual_seed(0)
    made = Encoder(SHAPE)
    made.use_categories(CATEGORIES)
    return made.eval()


def tower_of(encoder: Encoder) -> CategoryTower:
    assert isinstance(encoder.item, CategoryTower)
    return encoder.item


def test_only_what_two_items_share_and_not_all_have_is_a_category(tmp_path: Path) -> None:
    found = read(tmp_path, [["all", "tea"], ["all", "tea", "tea"], ["all", "once"], ["all"]])
    assert found is not None
    assert found.count == 1
    assert found.index.tolist() == [[1], [1], [0], [0]]


def test_without_shared_categories_there_is_nothing_to_learn(tmp_path: Path) -> None:
    assert read(tmp_path, [["a"], ["b"], None, []]) is None


def test_of_many_categories_those_of_the_fewest_items_count(tmp_path: Path) -> None:
    wide, narrow = [f"wide {n}" for n in range(4)], [f"narrow {n}" for n in range(CATEGORIES_AN_ITEM)]
    found = read(tmp_path, [wide + narrow, wide + narrow, wide, []])
    assert found is not None
    assert found.index.shape == (4, CATEGORIES_AN_ITEM)
    assert set(found.index[0]).isdisjoint(found.index[2])


@torch.no_grad()
def test_items_move_with_their_categories(encoder: Encoder) -> None:
    before = encoder.item_embeddings()
    tower_of(encoder).categories.weight[1] += 1.0
    moved = (encoder.item_embeddings() - before).mean(1)
    np.testing.assert_allclose(moved.numpy(), [0.5, 1, 0, 0, 0.5, 0], atol=1e-6)


def test_the_plain_encoder_computes_the_same(encoder: Encoder) -> None:
    assert_plain_is_the_same(encoder)


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("negatives", [0, 3])
def test_the_loss_reaches_ids_and_categories(encoder: Encoder, negatives: int, sparse: bool) -> None:
    if sparse:
        encoder.use_sparse_gradients()
    loss = NextItemLoss(torch.ones(6), negatives)(torch.randn(2, 16), torch.tensor([0, 2]), encoder.item_rows())
    loss.backward()
    tower = tower_of(encoder)
    assert tower.ids.weight.grad is not None
    assert tower.ids.weight.grad.is_sparse == sparse
    assert tower.categories.weight.grad is not None
    assert tower.categories.weight.grad[1:].any(1).all()
    assert not tower.categories.weight.grad[0].any()


def test_categories_are_for_catalogues_of_few_events_an_item() -> None:
    column = np.ones(30, np.int32)
    features = Features(column, column, np.zeros(30, np.float32), column, np.array([0, 30]), np.zeros(1, np.int32))
    log = EventLog(pl.Series(["u"]), features, np.zeros(30, np.int64), np.array([30]))
    assert choose_categories(log, 30 // FEW_EVENTS_AN_ITEM + 1)
    assert not choose_categories(log, 30 // FEW_EVENTS_AN_ITEM)
