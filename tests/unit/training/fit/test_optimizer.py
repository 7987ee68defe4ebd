"""Sparse gradients of a large catalogue: the same learning for the rows of a step, and no cost for the others."""

import pytest
import torch
from torch import Tensor, nn

from training.fit.optimizer import LazyAdamW, clip_gradients
from training.model.encoder import Encoder, EncoderShape
from training.model.loss import NextItemLoss

ITEMS, DIM = 60_000, 16


def large_encoder() -> tuple[Encoder, NextItemLoss, LazyAdamW]:
    torch.manual_seed(0)
    encoder = Encoder(EncoderShape(ITEMS, 2, 16, DIM, layers=1, heads=1))
    encoder.use_sparse_gradients()
    loss = NextItemLoss(torch.ones(ITEMS, dtype=torch.int64), 64)
    return encoder, loss, LazyAdamW(encoder.parameters(), lr=0.01, betas=(0.9, 0.98), weight_decay=0.0)


def take_step(encoder: Encoder, loss: NextItemLoss, optimizer: LazyAdamW, items: Tensor) -> Tensor:
    ones = torch.ones_like(items)
    users = encoder.sequence(items, ones, torch.zeros(items.shape), ones)
    value: Tensor = loss(users[:, :-1].flatten(0, 1), items[:, 1:].flatten().long() - 1, encoder.item_rows())
    optimizer.zero_grad()
    value.backward()  # type: ignore[no-untyped-call]
    clip_gradients(encoder.parameters(), 1.0)
    optimizer.step()
    return value.detach()


def test_a_step_allocates_less_than_the_catalogue_weighs() -> None:
    encoder, loss, optimizer = large_encoder()
    items = torch.arange(1, 33, dtype=torch.int32).reshape(4, 8)
    take_step(encoder, loss, optimizer, items)  # the optimiser's state comes with the first one
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        take_step(encoder, loss, optimizer, items)
    allocated = sum(max(event.self_cpu_memory_usage, 0) for event in profile.events() or [])
    assert 0 < allocated < ITEMS * DIM * 4


def test_only_items_of_the_step_move_and_they_learn() -> None:
    encoder, loss, optimizer = large_encoder()
    before = encoder.item_embeddings().detach().clone()
    items = torch.arange(1, 33, dtype=torch.int32).reshape(4, 8)
    losses = [float(take_step(encoder, loss, optimizer, items)) for _ in range(20)]
    assert losses[-1] < losses[0] - 1
    moved = (encoder.item_embeddings() != before).any(1)
    assert moved[:32].all()
    assert moved.sum() <= 32 + 20 * 64


def test_where_every_row_has_a_gradient_it_is_adam() -> None:
    torch.manual_seed(0)
    gradients = [torch.randn(5, 3) for _ in range(4)]
    table, dense = (nn.Parameter(torch.ones(5, 3)) for _ in range(2))
    lazy = LazyAdamW([table], lr=0.1, betas=(0.9, 0.98), weight_decay=0.0)
    plain = torch.optim.AdamW([dense], lr=0.1, betas=(0.9, 0.98), weight_decay=0.0)
    for gradient in gradients:
        table.grad, dense.grad = gradient.to_sparse(1), gradient.clone()
        lazy.step()
        plain.step()
    torch.testing.assert_close(table, dense)


def test_clipping_counts_sparse_gradients_as_dense_ones() -> None:
    torch.manual_seed(0)
    tables = [nn.Embedding(6, 3, sparse=sparse) for sparse in (False, True)]
    others = [nn.Linear(3, 1) for _ in range(2)]
    tables[1].load_state_dict(tables[0].state_dict())
    others[1].load_state_dict(others[0].state_dict())
    for table, other in zip(tables, others, strict=True):
        (100 * other(table(torch.tensor([1, 1, 4]))).sum()).backward()
    nn.utils.clip_grad_norm_([*tables[0].parameters(), *others[0].parameters()], 1.0)
    clip_gradients([*tables[1].parameters(), *others[1].parameters()], 1.0)
    for sparse, dense in zip(
        [tables[1].weight, *others[1].parameters()], [tables[0].weight, *others[0].parameters()], strict=True
    ):
        assert sparse.grad is not None
        assert dense.grad is not None
        torch.testing.assert_close(sparse.grad.to_dense(), dense.grad, rtol=1e-5, atol=1e-6)


def test_weight_decay_of_sparse_rows_is_refused() -> None:
    table = nn.Parameter(torch.ones(5, 3))
    table.grad = torch.ones(5, 3).to_sparse(1)
    with pytest.raises(ValueError, match="weight decay"):
        LazyAdamW([table], weight_decay=0.1).step()
