"""The encoder: one position or all, padding, causality, and the loss that trains it."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from torch import Tensor

from training.errors import RunError
from training.model.encoder import Encoder, EncoderShape
from training.model.export import random_inputs
from training.model.loss import NextItemLoss, choose_negatives

SHAPE = EncoderShape(item_count=30, action_count=3, max_length=16, embedding_dim=16, layers=3, heads=2)


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    torch.manual_seed(0)
    made = Encoder(SHAPE, dropout=0.3)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return made.eval()


def inputs(encoder: Encoder, batch: int, length: int) -> dict[str, Tensor]:
    return {name: torch.from_numpy(array) for name, array in random_inputs(encoder, batch, length, seed=1).items()}


@pytest.mark.parametrize("length", [1, 2, 7, 16])
@torch.inference_mode()
def test_the_last_position_alone_equals_the_last_of_all(encoder: Encoder, length: int) -> None:
    batch = inputs(encoder, 6, length)
    torch.testing.assert_close(encoder(**batch), encoder.sequence(**batch)[:, -1], rtol=0, atol=1e-6)


@torch.inference_mode()
def test_padding_does_not_matter(encoder: Encoder) -> None:
    batch = inputs(encoder, 1, 5)
    longer = {name: torch.cat([column.new_zeros(1, 9), column], 1) for name, column in batch.items()}
    torch.testing.assert_close(encoder(**batch), encoder(**longer), rtol=0, atol=1e-6)


@torch.inference_mode()
def test_a_wholly_padded_history_is_finite(encoder: Encoder) -> None:
    batch = {name: torch.zeros_like(column) for name, column in inputs(encoder, 2, 8).items()}
    assert torch.isfinite(encoder(**batch)).all()
    assert torch.isfinite(encoder.sequence(**batch)).all()


@torch.inference_mode()
def test_no_position_sees_what_comes_after_it(encoder: Encoder) -> None:
    batch = inputs(encoder, 2, 10)
    changed = {name: column.clone() for name, column in batch.items()}
    for name, column in inputs(encoder, 4, 10).items():
        changed[name][:, 6:] = column[2:, :4]
    before, after = encoder.sequence(**batch), encoder.sequence(**changed)
    torch.testing.assert_close(before[:, :6], after[:, :6], rtol=0, atol=1e-6)
    assert not torch.allclose(before[0, 6:], after[0, 6:])


@pytest.mark.parametrize("name", ["item_index", "action_index", "value", "gap_index"])
@torch.inference_mode()
def test_every_input_counts(encoder: Encoder, name: str) -> None:
    batch = inputs(encoder, 1, 6)
    other = {key: column.clone() for key, column in batch.items()}
    other[name][:, 2] = 1 if batch[name][0, 2] != 1 else 2
    assert not torch.allclose(encoder(**batch), encoder(**other))


@torch.inference_mode()
def test_a_freak_value_is_clipped(encoder: Encoder) -> None:
    batch = inputs(encoder, 1, 6)
    embeddings = []
    for value in (1e3, 1e30):
        batch["value"][:, -1] = value
        embeddings.append(encoder(**batch))
    torch.testing.assert_close(*embeddings, rtol=0, atol=0)


def test_a_new_encoder_guesses_evenly() -> None:
    torch.manual_seed(0)
    encoder = Encoder(SHAPE).eval()
    logits = encoder(**inputs(encoder, 8, 16)) @ encoder.item_embeddings().T
    assert logits.std() < 0.5


def test_shared_negatives_estimate_the_full_softmax() -> None:
    torch.manual_seed(0)
    counts = torch.arange(1, 101)
    users, items, targets = torch.randn(20, 8), torch.randn(100, 8) * 0.5, torch.randint(0, 100, (20,))
    full = NextItemLoss(counts, 0)(users, targets, items)
    loss = NextItemLoss(counts, 512)
    sampled = torch.stack([loss(users, targets, items) for _ in range(50)]).mean()
    assert sampled.item() == pytest.approx(full.item(), abs=0.05)


def test_negatives_by_size_of_the_catalogue() -> None:
    assert choose_negatives(100) == 0
    assert choose_negatives(1_000_000) >= 256


def test_a_shape_is_read_back_and_one_of_another_version_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "encoder.json"
    path.write_text(json.dumps(asdict(SHAPE)))
    assert EncoderShape.read(path) == SHAPE
    path.write_text(json.dumps(asdict(SHAPE) | {"tied": True}))
    with pytest.raises(RunError, match="written by another version"):
        EncoderShape.read(path)
