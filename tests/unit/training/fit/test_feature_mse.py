"""The feature loss: what it rewards, and what the slow copy of the encoder does."""

import copy

import numpy as np
import polars as pl
import pytest
import torch
from torch import Tensor

from server.core.features import GAP_START, Features
from server.core.preprocessing import Action, Preprocessing, ValueNormaliser
from training.config import TrainSettings
from training.data.sequences import EventLog
from training.fit.batching import Batch, EpochPlan, Windows
from training.fit.callbacks import TrainingClock
from training.fit.feature_mse import FeatureMSE, future_of
from training.fit.lightning_module import NextItemModule
from training.model.encoder import Encoder, EncoderShape
from training.model.export import random_inputs
from training.model.loss import NextItemLoss

USERS, EVENTS, HELD_BACK, MAX_LENGTH = 30, 20, 2, 16
SHAPE = EncoderShape(
    item_count=USERS * EVENTS, action_count=1, max_length=MAX_LENGTH, embedding_dim=16, layers=1, heads=2
)
PREPROCESSING = Preprocessing(
    max_length=MAX_LENGTH,
    actions=(Action(name="buy", weight=1.0),),
    value=ValueNormaliser(method="none", center=0.0, scale=1.0),
    has_clock=False,
    exclude_seen=False,
)


def log_of(users: int = USERS, events: int = EVENTS) -> EventLog:
    """User u has the items u * events + 1, u * events + 2, …, so that an item tells user and place."""
    count = users * events
    offsets = np.arange(users + 1, dtype=np.int64) * events
    ones = np.ones(count, np.int32)
    items = np.arange(1, count + 1, dtype=np.int32)
    features = Features(items, ones, np.zeros(count, np.float32), ones, offsets, np.zeros(users, np.int32))
    names = pl.Series([f"u{number}" for number in range(users)])
    return EventLog(names, features, np.arange(count), offsets[1:] - HELD_BACK)


def batches(epoch: int, seed: int = 0) -> list[Batch]:
    log = log_of()
    plan = EpochPlan(log, MAX_LENGTH, 8, seed)
    plan.set_epoch(epoch)
    windows = Windows(log, PREPROCESSING)
    return [windows[window] for window in plan]


@pytest.fixture
def encoder() -> Encoder:
    torch.manual_seed(0)
    return Encoder(SHAPE, dropout=0.3)


def inputs(encoder: Encoder, batch: int) -> Batch:
    return {name: torch.from_numpy(array) for name, array in random_inputs(encoder, batch, 12, seed=1).items()}


def test_a_future_is_what_the_history_would_be_if_it_began_there(encoder: Encoder) -> None:
    batch = inputs(encoder, 4)
    first = torch.tensor([5, 0, 11, 12])
    future = future_of(batch, first)
    for row, begin in enumerate(first.tolist()):
        for name, column in batch.items():
            assert not future[name][row, :begin].any()
            assert torch.equal(future[name][row, begin + 1 :], column[row, begin + 1 :])
        assert (future["gap_index"][row, begin : begin + 1] == GAP_START).all()
        assert torch.equal(future["item_index"][row, begin:], batch["item_index"][row, begin:])


def test_guessing_the_mean_of_the_features_costs_one_and_collapse_no_less(encoder: Encoder) -> None:
    part = FeatureMSE(encoder)
    torch.nn.init.zeros_(part.head[2].weight)  # type: ignore[arg-type]
    torch.nn.init.zeros_(part.head[2].bias)  # type: ignore[arg-type]
    batch = inputs(encoder, 400)
    users = encoder.sequence(**batch)
    assert part(users, batch).item() == pytest.approx(1.0, abs=0.01)
    with torch.no_grad():
        for parameter in part.slow.blocks.parameters():
            parameter.mul_(1e-3)
        part.slow.norm.weight.mul_(1e-2)
    part.variance.zero_()  # as a new one
    assert part(users, batch).item() == pytest.approx(1.0, abs=0.1)


def test_histories_of_one_event_have_no_future(encoder: Encoder) -> None:
    part = FeatureMSE(encoder)
    batch = inputs(encoder, 6)
    for name in batch:
        batch[name][:, :-1] = 0
    users = encoder.sequence(**batch)
    loss = part(users, batch)
    torch.autograd.backward(loss)
    assert loss.item() == 0
    assert not part.variance.any()
    assert all(parameter.grad is not None for parameter in part.head.parameters())  # as processes together need it


def test_the_loss_falls_and_moves_every_part_of_the_encoder(encoder: Encoder) -> None:
    part = FeatureMSE(encoder)
    optimizer = torch.optim.Adam([*encoder.parameters(), *part.head.parameters()], lr=0.003)
    before = copy.deepcopy(encoder)
    losses: list[float] = []
    for epoch in range(15):
        for batch in batches(epoch):
            del batch["target"], batch["weight"]
            loss: Tensor = part(encoder.sequence(**batch), batch)
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            part.follow(encoder)
            losses.append(loss.item())
    assert np.mean(losses[-10:]) < 0.8 * np.mean(losses[:10])
    for (name, new), old in zip(encoder.named_parameters(), before.parameters(), strict=True):
        assert name == "value.weight" or not torch.equal(new, old), name  # all values of this log are 0


def test_the_copy_follows_slowly_and_never_learns_by_itself(encoder: Encoder) -> None:
    part = FeatureMSE(encoder)
    batch = inputs(encoder, 8)
    part(encoder.sequence(**batch), batch).backward()
    assert all(parameter.grad is None for parameter in part.slow.parameters())
    assert encoder.blocks[0].query.weight.grad is not None  # type: ignore[union-attr]
    assert not part.train().slow.training
    start = copy.deepcopy(part.slow.position.weight)
    with torch.no_grad():
        encoder.position.weight.add_(1.0)
    part.follow(encoder)
    torch.testing.assert_close(part.slow.position.weight - start, torch.full_like(start, 0.01), atol=1e-6, rtol=0)
    for _ in range(1000):
        part.follow(encoder)
    torch.testing.assert_close(part.slow.position.weight, encoder.position.weight, atol=1e-3, rtol=0)


@pytest.mark.parametrize("weight", [0.0, 0.5])
def test_the_weighted_loss_is_added(encoder: Encoder, weight: float, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = TrainSettings(feature_mse=weight)
    plan = EpochPlan(log_of(), MAX_LENGTH, 8, 0)
    loss = NextItemLoss(torch.ones(SHAPE.item_count), 0)
    module = NextItemModule(encoder.eval(), loss, settings, plan, TrainingClock())
    assert (module.feature_mse is None) == (weight == 0)
    logged: dict[str, float] = {}
    monkeypatch.setattr(module, "log", lambda name, value, **_: logged.update({name: value.item()}))
    total = module.training_step(batches(0)[0], 0)
    assert total.item() == pytest.approx(logged["loss"] + weight * logged.get("feature_mse", 0.0))
    assert ("feature_mse" in logged) == (weight > 0)


def test_the_weight_is_checked() -> None:
    with pytest.raises(ValueError, match="greater than or equal to 0"):
        TrainSettings(feature_mse=-1)
