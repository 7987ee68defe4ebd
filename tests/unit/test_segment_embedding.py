"""What segments are made of: the encoder's last position beside a bag of items."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from server.core.features import batches
from server.core.segments import normalised
from tests.unit.test_probe import log_of
from training import segment_embedding
from training.encoder import Encoder, EncoderShape
from training.export import random_inputs
from training.ranks import embedded
from training.segment_embedding import SegmentEmbedding, UserEncoder
from training.sequences import Log

SHAPE = EncoderShape(9, 2, 8, 16, layers=1, heads=2)
DIM = SHAPE.embedding_dim


def two_tastes() -> Log:
    """Even users have items 4, 5 and 6, odd ones 1, 2 and 3; everybody has 9, and nobody 7 and 8."""
    return log_of(*[[1, 2, 3, 9] if user % 2 else [4, 5, 6, 9] for user in range(12)])


@pytest.fixture
def encoder() -> UserEncoder:
    torch.manual_seed(0)
    plain = Encoder(SHAPE).eval()
    return UserEncoder(plain, SegmentEmbedding.fit(plain, two_tastes(), seed=0)).eval()


def bags(encoder: UserEncoder, log: Log) -> np.ndarray:
    return embedded(encoder, log.features, SHAPE)[:, 3 * DIM :].numpy()


def test_the_first_numbers_are_the_encoders_own(encoder: UserEncoder) -> None:
    log = two_tastes()
    whole, last = embedded(encoder, log.features, SHAPE), embedded(encoder.encoder, log.features, SHAPE)
    assert whole.shape[1] == DIM + encoder.segment_dim
    torch.testing.assert_close(whole[:, :DIM], last)
    expected = normalised((last - last.mean(0)).numpy())
    np.testing.assert_allclose(whole[:, DIM : 2 * DIM], expected, atol=1e-5)


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


def test_a_bag_tells_tastes_and_not_what_everybody_has(encoder: UserEncoder) -> None:
    found = bags(encoder, two_tastes())
    likeness = found @ found.T
    assert likeness[0, 2] == pytest.approx(1.0, abs=1e-5)
    assert likeness[0, 1] == pytest.approx(0.0, abs=1e-5)


def test_order_padding_and_unknown_items_do_not_change_a_bag(encoder: UserEncoder) -> None:
    found = bags(encoder, log_of([1, 2], [2, 1], [7, 1, 8, 2], [7, 8]))
    np.testing.assert_allclose(found[1], found[0], atol=1e-6)
    np.testing.assert_allclose(found[2], found[0], atol=1e-6)
    assert not found[3].any()


def test_held_back_events_are_not_learned_from() -> None:
    log = two_tastes()
    torch.manual_seed(0)
    plain = Encoder(SHAPE).eval()
    short = SegmentEmbedding.fit(plain, replace(log, train_ends=log.train_ends - 1), seed=0)
    assert short.places[9] == 0  # everybody's last item
    assert short.places[1] > 0


def test_only_the_most_frequent_items_have_a_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segment_embedding, "_ITEMS_MAX", 2)
    log = log_of(*[[1, 2, user % 3 + 4] for user in range(9)], [1, 5], [2, 6])
    plain = Encoder(SHAPE).eval()
    found = SegmentEmbedding.fit(plain, log, seed=0)
    assert found.places.flatten().tolist() == [0, 1, 2, 0, 0, 0, 0, 0, 0, 0]
    assert len(found.items) == 3


def test_what_is_written_is_read_back(encoder: UserEncoder, tmp_path: Path) -> None:
    assert encoder.segments
    encoder.segments.write(tmp_path)
    inputs = {name: torch.from_numpy(array) for name, array in random_inputs(encoder, 4, 6, seed=0).items()}
    again = UserEncoder.load(encoder.encoder, tmp_path)
    torch.testing.assert_close(again(**inputs), encoder(**inputs))


def test_without_it_the_last_position_is_all(encoder: UserEncoder, tmp_path: Path) -> None:
    plain = UserEncoder.load(encoder.encoder, tmp_path)
    log = two_tastes()
    assert plain.segment_dim == DIM
    torch.testing.assert_close(embedded(plain, log.features, SHAPE), embedded(encoder.encoder, log.features, SHAPE))
