"""Ids and text in one item vector: who leans on what, and that nothing changes without text."""

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.support.training import assert_plain_is_the_same
from training.data.item_text import ItemText, TextSource
from training.model.encoder import Encoder, EncoderShape
from training.model.loss import NextItemLoss
from training.model.text_tower import TextTower, whitened

SHAPE = EncoderShape(item_count=30, action_count=3, max_length=16, embedding_dim=16, layers=2, heads=2)
SOURCE = TextSource(model="", model_dim=0, file_dim=12, probe=())
UNSEEN, UNTOLD, RARE, COMMON = 0, 1, 2, 3
"""Rows of an item that training never saw, of one without text, and of two that were seen once and often."""


def text() -> ItemText:
    vectors = np.random.default_rng(0).normal(size=(30, 12)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    vectors[UNTOLD] = 0
    return ItemText(vectors, SOURCE)


def counts() -> Tensor:
    counted = torch.full((30,), 5)
    counted[[UNSEEN, RARE, COMMON]] = torch.tensor([0, 1, 100_000])
    return counted


@pytest.fixture
def encoder() -> Encoder:
    torch.manual_seed(0)
    made = Encoder(SHAPE)
    made.use_text(text(), counts())
    return made.eval()


def tower_of(encoder: Encoder) -> TextTower:
    assert isinstance(encoder.item, TextTower)
    return encoder.item


@torch.no_grad()
def moved_by_its_id(encoder: Encoder) -> Tensor:
    """How far each item's vector goes when its id goes one step, (V,)."""
    before = encoder.item_embeddings()
    tower_of(encoder).ids.weight.add_(1.0)
    return (encoder.item_embeddings() - before).mean(1)


def test_without_text_there_is_only_the_table() -> None:
    encoder = Encoder(SHAPE)
    assert encoder.item_rows() is not None
    torch.testing.assert_close(encoder.item_rows(), encoder.item_embeddings(), rtol=0, atol=0)
    assert {name for name in encoder.state_dict() if name.startswith("item")} == {"item.weight"}
    assert encoder.plain_state().keys() == encoder.state_dict().keys()


def test_the_fewer_events_the_more_text(encoder: Encoder) -> None:
    moved = moved_by_its_id(encoder)
    assert moved[UNSEEN] == 0
    assert moved[UNTOLD] == pytest.approx(1.0)
    assert moved[RARE] == pytest.approx(1 / 11, abs=1e-3)  # n / (n + k), with k 10 at first
    assert moved[COMMON] > 0.99


@torch.no_grad()
def test_an_unseen_item_is_its_projected_text(encoder: Encoder) -> None:
    tower_of(encoder).project.bias.normal_()
    projected = tower_of(encoder).projection()(text().vectors)
    np.testing.assert_allclose(encoder.item_embeddings()[UNSEEN].numpy(), projected[UNSEEN], atol=1e-6)
    assert not np.allclose(encoder.item_embeddings()[COMMON].numpy(), projected[COMMON], atol=1e-2)


def test_the_plain_encoder_computes_the_same(encoder: Encoder) -> None:
    assert_plain_is_the_same(encoder)


def test_training_sometimes_goes_without_ids_and_never_trains_the_text(encoder: Encoder) -> None:
    encoder.train()
    tower = tower_of(encoder)
    with torch.no_grad():
        many = tower.rows(torch.full((4000,), COMMON))
    alone = (many - torch.from_numpy(tower.projection()(text().vectors[COMMON : COMMON + 1]))).abs().amax(1) < 1e-5
    assert 0.05 < alone.float().mean() < 0.5
    assert all(not buffer.requires_grad for buffer in tower.buffers())
    assert not any(name.startswith("_") for name in tower.state_dict())


@pytest.mark.parametrize("negatives", [0, 8])
def test_the_loss_reaches_ids_gate_and_projection_of_the_rows_it_used(encoder: Encoder, negatives: int) -> None:
    loss = NextItemLoss(torch.ones(30), negatives)(torch.randn(5, 16), torch.arange(2, 7), encoder.item_rows())
    loss.backward()
    tower = tower_of(encoder)
    assert tower.ids.weight.grad is not None
    touched = tower.ids.weight.grad.any(1)
    assert int(touched.sum()) <= 5 + (negatives or 30)
    assert not touched[UNSEEN + 1]
    for parameter in (tower.gate_slope, tower.gate_shift, tower.project.weight):
        assert parameter.grad is not None
        assert parameter.grad.any()


def test_vectors_are_half_whitened() -> None:
    torch.manual_seed(0)
    vectors = torch.randn(500, 6) * torch.tensor([9.0, 3.0, 1.0, 1.0, 0.5, 0.0]) + 4
    mean, matrix = whitened(vectors)
    even = (vectors - mean) @ matrix.T
    assert even.shape == (500, 5)
    variances = (even.T @ even / 500).diagonal()
    spread = (((vectors - mean).T @ (vectors - mean)) / 500).diagonal().sort().values[1:]
    assert variances.sum() == pytest.approx(1, abs=1e-4)
    assert variances.sort().values[-1] / variances.min() == pytest.approx(float(spread[-1] / spread[0]) ** 0.5, rel=0.1)
    single, nothing = whitened(vectors[:1])
    assert torch.isfinite(single).all()
    assert torch.isfinite(nothing).all()
