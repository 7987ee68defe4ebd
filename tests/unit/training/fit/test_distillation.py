"""What a student learns from its teacher."""

import pytest
import torch

from training.fit import distillation
from training.fit.batching import Batch
from training.fit.distillation import TEACHER_SHARE, Distillation
from training.model.encoder import Encoder, EncoderShape

SHAPE = EncoderShape(item_count=30, action_count=2, max_length=8, embedding_dim=8, layers=1, heads=1)


@pytest.fixture
def inputs() -> Batch:
    torch.manual_seed(0)
    return {
        "item_index": torch.randint(1, 31, (4, 8), dtype=torch.int32),
        "action_index": torch.randint(1, 3, (4, 8), dtype=torch.int32),
        "value": torch.randn(4, 8),
        "gap_index": torch.randint(1, 5, (4, 8), dtype=torch.int32),
    }


def sharp(seed: int) -> Encoder:
    """An encoder with opinions: new ones score all items alike."""
    torch.manual_seed(seed)
    encoder = Encoder(SHAPE)
    with torch.no_grad():
        encoder.item_embeddings().normal_()
    return encoder.eval()


def loss_of(teacher: Encoder, student: Encoder, inputs: Batch) -> torch.Tensor:
    has_target = inputs["item_index"] > 0
    users = student.sequence(**inputs)[has_target]
    targets = inputs["item_index"][has_target].long() - 1
    return Distillation(teacher).loss(inputs, has_target, targets, users, student.item_rows())


@pytest.mark.parametrize("small_catalogue", [True, False])
def test_nothing_is_left_to_learn_from_an_equal(
    inputs: Batch, small_catalogue: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not small_catalogue:
        monkeypatch.setattr(distillation, "FULL_SOFTMAX_ITEMS", 10)
    student = sharp(1)
    assert loss_of(sharp(1), student, inputs).item() == pytest.approx(0, abs=1e-5)
    assert loss_of(sharp(2), student, inputs).item() > 0.01


def test_the_teacher_stays_as_it_is_and_the_student_moves(inputs: Batch) -> None:
    teacher, student = sharp(1), sharp(2)
    torch.autograd.backward(loss_of(teacher, student, inputs))
    assert all(parameter.grad is None for parameter in teacher.parameters())
    moved = dict(student.named_parameters())["item.weight"].grad
    assert moved is not None
    assert moved.abs().sum() > 0


def test_shares_add_up(inputs: Batch) -> None:
    distillation = Distillation(sharp(1))
    student = sharp(1)
    has_target = inputs["item_index"] > 0
    users, targets = student.sequence(**inputs)[has_target], inputs["item_index"][has_target].long() - 1
    mixed = distillation.mixed(torch.tensor(3.0), inputs, has_target, targets, users, student.item_rows())
    assert mixed.item() == pytest.approx(3.0 * (1 - TEACHER_SHARE), abs=1e-4)
