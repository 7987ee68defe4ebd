"""Objectives beside the next item: what is drawn, what each loss rewards, and what the slow copy does."""

import copy
import math
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
import torch
from torch import Tensor

from server.core.features import GAP_START, Features
from server.core.preprocessing import Action, Preprocessing, ValueNormaliser
from training.config import Config, Objectives, Text, TrainSettings
from training.data.sequences import EventLog
from training.errors import LogError
from training.fit.batching import Batch, EpochPlan
from training.fit.callbacks import Clock
from training.fit.lightning_module import NextItemModule
from training.fit.objectives import (
    FutureFeatures,
    OtherObjectives,
    SlicedWindows,
    contrastive_loss,
    future_of,
    other_objectives,
    slices_of,
)
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
    windows = SlicedWindows(log, PREPROCESSING, seed)
    return [windows[window] for window in plan]


@pytest.fixture
def encoder() -> Encoder:
    torch.manual_seed(0)
    return Encoder(SHAPE, dropout=0.3)


def inputs(encoder: Encoder, batch: int) -> Batch:
    return {name: torch.from_numpy(array) for name, array in random_inputs(encoder, batch, 12, seed=1).items()}


def test_slices_are_runs_of_one_users_training_events() -> None:
    lengths = set()
    for batch in batches(epoch=0):
        slices = slices_of(batch)
        assert set(batch) == {"item_index", "action_index", "value", "gap_index", "target", "weight"}
        owners = slices["owner"].tolist()
        assert all(owners.count(owner) == 2 for owner in owners)
        for row, owner in zip(slices["item_index"], owners, strict=True):
            places = row[row > 0] - 1 - owner * EVENTS
            assert torch.equal(places, torch.arange(int(places[0]), int(places[0]) + len(places)))
            assert 0 <= places[0] <= places[-1] < EVENTS - HELD_BACK
            assert len(places) <= 0.75 * MAX_LENGTH
            lengths.add(len(places))
    assert len(lengths) > 3


def test_slices_are_drawn_by_seed_and_epoch() -> None:
    def drawn(epoch: int, seed: int) -> list[list[list[int]]]:
        return [batch["slice_item_index"].tolist() for batch in batches(epoch, seed)]

    assert drawn(1, 0) == drawn(1, 0)
    assert drawn(1, 0) != drawn(2, 0)
    assert drawn(1, 0) != drawn(1, 1)


def test_parts_of_a_step_draw_apart() -> None:
    log = log_of()
    [window, *_] = EpochPlan(log, MAX_LENGTH, 8, 0)
    windows = SlicedWindows(log, PREPROCESSING, 0)
    parts = [windows[type(window)(window.ends, window.lengths, part, 16)]["slice_owner"] for part in range(2)]
    assert not torch.equal(*parts)
    assert len(parts[0]) < len(windows[window]["slice_owner"])


@pytest.mark.parametrize(("users", "events"), [(1, 20), (9, 5)])
def test_without_two_users_to_tell_apart_there_is_an_error(users: int, events: int) -> None:
    with pytest.raises(LogError, match="needs two users with 4 events"):
        SlicedWindows(log_of(users, events), PREPROCESSING, 0)


def test_the_contrastive_loss_wants_own_slices_near_and_others_far() -> None:
    owner = torch.tensor([3, 3, 7, 7])
    apart, together = torch.eye(4)[[0, 0, 1, 1]], torch.ones(4, 4)
    crossed = torch.eye(4)[[0, 1, 0, 1]]
    assert contrastive_loss(apart, owner).item() == pytest.approx(math.log(1 + 2 * math.exp(-10)), abs=1e-6)
    assert contrastive_loss(together, owner).item() == pytest.approx(math.log(3), abs=1e-6)
    assert contrastive_loss(crossed, owner) > contrastive_loss(together, owner)
    torch.testing.assert_close(contrastive_loss(5 * apart, owner), contrastive_loss(apart, owner))


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
    part = FutureFeatures(encoder)
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
    part = FutureFeatures(encoder)
    batch = inputs(encoder, 6)
    for name in batch:
        batch[name][:, :-1] = 0
    users = encoder.sequence(**batch)
    loss = part(users, batch)
    torch.autograd.backward(loss)
    assert loss.item() == 0
    assert not part.variance.any()
    assert all(parameter.grad is not None for parameter in part.head.parameters())  # as processes together need it


@pytest.mark.parametrize("name", ["feature_mse", "contrastive"])
def test_each_loss_falls_and_moves_every_part_of_the_encoder(encoder: Encoder, name: str) -> None:
    others = OtherObjectives(Objectives.model_validate({"next_item": 0, name: 1}), encoder)
    optimizer = torch.optim.Adam(
        [*encoder.parameters(), *(p for p in others.parameters() if p.requires_grad)], lr=0.003
    )
    before = copy.deepcopy(encoder)
    losses: list[float] = []
    for epoch in range(15):
        for batch in batches(epoch):
            slices, _, _ = slices_of(batch), batch.pop("target"), batch.pop("weight")
            users = encoder.sequence(**batch)
            loss: Tensor = others(encoder, users, batch, slices)[name]
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            others.follow(encoder)
            losses.append(loss.item())
    assert np.mean(losses[-10:]) < 0.8 * np.mean(losses[:10])
    for (part, new), old in zip(encoder.named_parameters(), before.parameters(), strict=True):
        assert part == "value.weight" or not torch.equal(new, old), part  # all values of this log are 0


def test_the_copy_follows_slowly_and_never_learns_by_itself(encoder: Encoder) -> None:
    part = FutureFeatures(encoder)
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


def test_the_default_needs_nothing_of_all_this(encoder: Encoder) -> None:
    assert other_objectives(Objectives(), encoder) is None
    assert slices_of({"item_index": torch.zeros(1)}) == {}


def test_items_that_are_not_tied_are_foretold_by_vectors_of_their_own() -> None:
    torch.manual_seed(0)
    shape = EncoderShape(item_count=5, action_count=1, max_length=4, embedding_dim=8, layers=1, heads=1, tied=False)
    encoder = Encoder(shape)
    counts = torch.tensor([1, 2, 4, 8, 100])
    encoder.start_from_popularity(counts)
    assert (encoder.item_embeddings() @ encoder.bias).argsort().tolist() == [0, 1, 2, 3, 4]
    assert encoder.item_embeddings().shape == (5, 8)
    rows = torch.tensor([4, 0])
    for _ in range(2):
        items = encoder.item_rows()
        found = items(rows) if callable(items) else items[rows]
        torch.testing.assert_close(found, encoder.item_embeddings()[rows])
        encoder.use_sparse_gradients()


@pytest.mark.parametrize("next_item", [0.0, 1.0])
def test_without_weight_the_next_item_does_not_move_the_encoder(
    next_item: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = Encoder(replace(SHAPE, tied=next_item > 0))
    settings = TrainSettings(objectives=Objectives(next_item=next_item, feature_mse=1))
    plan = EpochPlan(log_of(), MAX_LENGTH, 8, 0)
    loss = NextItemLoss(torch.ones(SHAPE.item_count), 0)
    module = NextItemModule(encoder, loss, settings, plan, Clock())
    monkeypatch.setattr(OtherObjectives, "forward", lambda *_: {})
    monkeypatch.setattr(module, "log", lambda *_, **__: None)
    torch.autograd.backward(module.training_step(batches(0)[0], 0))
    moved = {name for name, parameter in encoder.named_parameters() if parameter.grad is not None}
    assert moved == ({name for name, _ in encoder.named_parameters()} if next_item else {"output.weight"})


def test_weights_are_checked() -> None:
    with pytest.raises(ValueError, match="must be above 0"):
        Objectives(next_item=0)
    with pytest.raises(ValueError, match="greater than or equal to 0"):
        Objectives(contrastive=-1)
    alone = TrainSettings(objectives=Objectives(next_item=0, contrastive=1))
    with pytest.raises(ValueError, match="learns from next items"):
        Config(train=alone, text=Text(model="auto"))
