"""What segments are made of: a forecast, the mean over positions and a bag of items."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from server.core.features import GAP_START, batches
from server.core.segments import normalised
from tests.unit.training.evaluation.test_probe import PREPROCESSING, log_of, whole
from training.data.sequences import EventLog
from training.model import user_encoder
from training.model.encoder import Encoder, EncoderShape
from training.model.export import random_inputs
from training.model.torch_inference import embed_histories
from training.model.user_encoder import (
    BAG_HISTORY,
    SegmentEmbedding,
    UserEncoder,
)

SHAPE = EncoderShape(9, 2, 8, 16, layers=1, heads=2)
DIM = SHAPE.embedding_dim


def two_tastes() -> EventLog:
    """Even users have items 4, 5 and 6, odd ones 1, 2 and 3; everybody has 9, and nobody 7 and 8."""
    return log_of(*[[1, 2, 3, 9] if user % 2 else [4, 5, 6, 9] for user in range(12)])


@pytest.fixture
def encoder() -> UserEncoder:
    torch.manual_seed(0)
    plain = Encoder(SHAPE).eval()
    return UserEncoder(plain, SegmentEmbedding.fit(plain, two_tastes(), PREPROCESSING, seed=0)).eval()


def bag_size(encoder: UserEncoder) -> int:
    assert encoder.segments
    return encoder.segments.items.shape[1]


def bags(encoder: UserEncoder, log: EventLog) -> np.ndarray:
    """Bags of length 1, or 0."""
    return normalised(embed_histories(encoder, log.features, encoder.shape)[:, -bag_size(encoder) :].numpy())


def test_the_first_numbers_are_the_encoders_own(encoder: UserEncoder) -> None:
    log = two_tastes()
    whole, last = embed_histories(encoder, log.features, SHAPE), embed_histories(encoder.encoder, log.features, SHAPE)
    assert whole.shape[1] == DIM + encoder.segment_dim
    torch.testing.assert_close(whole[:, :DIM], last)


def test_the_mean_is_over_events_and_not_over_padding(encoder: UserEncoder) -> None:
    """With one block, the block reads the sum of all inputs' embeddings."""
    plain = encoder.encoder
    [(_, inputs)] = batches(log_of([4, 5, 6]).features, SHAPE.max_length)
    columns = {name: torch.from_numpy(array) for name, array in inputs.items()}
    assert columns["item_index"].shape[1] > 3
    with torch.inference_mode():
        _, mean = plain.last_and_mean(**columns)
        read = (
            plain.item(columns["item_index"]) * DIM**0.5
            + plain.action(columns["action_index"])
            + plain.gap(columns["gap_index"])
            + plain.value(columns["value"].unsqueeze(-1))
            + plain.position(torch.arange(columns["item_index"].shape[1] - 1, -1, -1))
        )
    real = columns["item_index"][0] > 0
    torch.testing.assert_close(mean[0], read[0, real].mean(0))


def test_a_bag_reflects_tastes_and_not_common_items(encoder: UserEncoder) -> None:
    found = bags(encoder, two_tastes())
    likeness = found @ found.T
    assert likeness[0, 2] == pytest.approx(1.0, abs=1e-5)
    assert likeness[0, 1] == pytest.approx(0.0, abs=1e-5)


def test_order_padding_and_unknown_items_do_not_change_a_bag(encoder: UserEncoder) -> None:
    found = bags(encoder, log_of([1, 2], [2, 1], [7, 1, 8, 2], [7, 8]))
    np.testing.assert_allclose(found[1], found[0], atol=1e-6)
    np.testing.assert_allclose(found[2], found[0], atol=1e-6)
    assert not found[3].any()


def test_the_bag_reads_further_back_than_the_encoder(encoder: UserEncoder) -> None:
    """The encoder's own numbers are those of the newest events alone; a gap before them does not tell."""
    assert encoder.shape.max_length == BAG_HISTORY > SHAPE.max_length
    of_old, of_new = [4, 5, 6] * 3, [9, 1, 9, 2, 9, 3, 9, 1]
    features = whole(log_of(of_old + of_new)).features
    [(_, inputs)] = batches(features, BAG_HISTORY)
    [(_, newest)] = batches(features, SHAPE.max_length)
    assert inputs["item_index"].shape[1] > newest["item_index"].shape[1] == SHAPE.max_length
    assert features.gap_index[-SHAPE.max_length] > GAP_START == newest["gap_index"][0, 0]
    long, short = (encoder(**{name: torch.from_numpy(one[name]) for name in inputs}) for one in (inputs, newest))
    size = bag_size(encoder)
    torch.testing.assert_close(long[:, :DIM], short[:, :DIM])
    torch.testing.assert_close(long[:, -DIM - size : -size], short[:, -DIM - size : -size])
    bag = bags(encoder, log_of(of_old))[0]
    assert bag @ long[0, -size:].detach().numpy() > 0.6
    assert abs(bag @ short[0, -size:].detach().numpy()) < 1e-4


def test_held_back_events_are_not_learned_from() -> None:
    log = two_tastes()
    torch.manual_seed(0)
    plain = Encoder(SHAPE).eval()
    short = SegmentEmbedding.fit(plain, replace(log, train_ends=log.train_ends - 1), PREPROCESSING, seed=0)
    assert short.places[9] == 0  # everybody's last item
    assert short.places[1] > 0


def test_only_the_most_frequent_items_have_a_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(user_encoder, "_ITEMS_MAX", 2)
    log = log_of(*[[1, 2, user % 3 + 4] for user in range(9)], [1, 5], [2, 6])
    plain = Encoder(SHAPE).eval()
    found = SegmentEmbedding.fit(plain, log, PREPROCESSING, seed=0)
    assert found.places.flatten().tolist() == [0, 1, 2, 0, 0, 0, 0, 0, 0, 0]
    assert len(found.items) == 3


def test_what_is_written_is_read_back(encoder: UserEncoder, tmp_path: Path) -> None:
    assert encoder.segments
    encoder.segments.write(tmp_path)
    inputs = {name: torch.from_numpy(array) for name, array in random_inputs(encoder, 4, 6, seed=0).items()}
    again = UserEncoder.load(encoder.encoder, tmp_path)
    torch.testing.assert_close(again(**inputs), encoder(**inputs))


def test_the_forecast_is_linear_in_all_three(encoder: UserEncoder) -> None:
    """Last position, mean and bag by a matrix, of length 1 times its weight."""
    assert encoder.segments
    parts = encoder.segments
    size = parts.items.shape[1]
    by_last = SegmentEmbedding(
        parts.center, parts.places, parts.items, torch.eye(2 * DIM + size, DIM), torch.zeros(DIM)
    )
    torch.manual_seed(1)
    forecast, center = torch.randn(2 * DIM + size, 5), torch.randn(5)
    other = SegmentEmbedding(parts.center, parts.places, parts.items, forecast, center, torch.tensor([2.0, 1.0, 0.5]))
    known, found = (
        embed_histories(whole, two_tastes().features, whole.shape)[:, DIM:].numpy()
        for whole in (UserEncoder(encoder.encoder, one).eval() for one in (by_last, other))
    )
    assert found.shape[1] == other.dim == 5 + DIM + size
    ahead = normalised(known @ forecast.numpy() - center.numpy())
    np.testing.assert_allclose(found[:, :5], 2.0 * ahead, atol=1e-5)
    np.testing.assert_allclose(found[:, 5 : 5 + DIM], known[:, DIM : 2 * DIM], atol=1e-5)
    np.testing.assert_allclose(found[:, 5 + DIM :], 0.5 * known[:, 2 * DIM :], atol=1e-5)


def test_a_forecast_is_fitted_where_users_are_enough() -> None:
    """Of two tastes, whose users go on as they began; four users are too few, and the last position stands."""
    torch.manual_seed(0)
    plain = Encoder(SHAPE).eval()
    log = long_tastes()
    fitted = SegmentEmbedding.fit(plain, log, PREPROCESSING, seed=0)
    size = fitted.items.shape[1]
    assert fitted.forecast.shape == (2 * DIM + size, size)  # fewer directions than a forecast may have
    encoder = UserEncoder(plain, fitted).eval()
    ahead = embed_histories(encoder, log.features, encoder.shape)[:, DIM : DIM + size].numpy()
    ahead = normalised(ahead)
    likeness = ahead @ ahead.T
    assert likeness[::2, ::2].mean() > 0.8 > 0.0 > likeness[::2, 1::2].mean()
    few = SegmentEmbedding.fit(plain, log_of([1, 2, 3], [4, 5, 6], [1, 3], [4, 6]), PREPROCESSING, seed=0)
    assert torch.equal(few.forecast, torch.eye(2 * DIM + few.items.shape[1], DIM))


@pytest.mark.parametrize(
    ("steady", "lengths"),
    [
        ((0.5, 0.5), [3.0, 1.0, 3.0]),
        ((0.5, 0.4, 0.6), [2.0, 1.0, 2.0]),
        ((0.5, 0.4, 0.3, 0.45), [1.4, 1.0, 1.8]),
        ((0.5, 0.4, 0.3, 0.35), [3.0, 1.0, 3.0]),
        ((0.5, 0.3, 0.4, 0.4), [2.0, 1.0, 2.0]),
    ],
)
def test_segments_look_as_far_ahead_as_they_hold_together_like_counts(
    steady: tuple[float, ...], lengths: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first answer is asked of the bags, the others of everything, from the farthest on to the last position.

    Where none holds together like the bags, the steadiest is taken.
    """
    answers, asked = iter(steady), []

    def agreement_of_halves(halves: list[np.ndarray], seed: int) -> float:
        asked.append(halves[0])
        return next(answers)

    monkeypatch.setattr(user_encoder, "agreement_of_halves", agreement_of_halves)
    torch.manual_seed(0)
    fitted = SegmentEmbedding.fit(Encoder(SHAPE).eval(), long_tastes(), PREPROCESSING, seed=0)
    assert fitted.weights.tolist() == pytest.approx(lengths)
    assert next(answers, None) is None
    size = fitted.items.shape[1]
    by_last = torch.eye(2 * DIM + size, DIM)
    assert (lengths[0] == 1.4) == (fitted.forecast.shape == by_last.shape and torch.equal(fitted.forecast, by_last))
    dims = [size, size + DIM + size, size + DIM + size, DIM + DIM + size]
    assert [half.shape for half in asked] == [(40, dim) for dim in dims[: len(steady)]]
    np.testing.assert_allclose(np.linalg.norm(asked[0], axis=1), 1.0, atol=1e-5)
    for half, ahead in zip(asked[1:3], (3.0, 2.0), strict=False):
        found = [np.linalg.norm(part, axis=1) for part in np.split(half, [size, size + DIM], axis=1)]
        for length, weight in zip(found, (ahead, 1.0, ahead), strict=True):
            np.testing.assert_allclose(length, weight / np.sqrt(1 + 2 * ahead**2), atol=1e-5)


def long_tastes() -> EventLog:
    """Forty users of two tastes, twelve random events each."""
    rng = np.random.default_rng(0)
    return log_of(*[(rng.integers(1, 4, 12) + 3 * (user % 2)).tolist() for user in range(40)])
