"""Confidence is the share of users who stay in their segment, on a log where that can be planted."""

import numpy as np
import polars as pl
import pytest
from numpy.typing import NDArray

from server.core.features import Features
from server.core.segments import Nearest, margin
from training.config import SegmentSettings
from training.data.sequences import EventLog
from training.kmeans.fit import assign
from training.segments.confidence import DROPPED_SHARE, KNOTS, calibrate, calibration_error, fit_curve

MAX_LENGTH = 30
CENTROIDS = np.eye(2, dtype=np.float32)


def mixed_log(users: int, seed: int, shortest: int = 3, longest: int = 40) -> EventLog:
    """Users who take item 1 or 2, each with a taste of its own: near one half a few events more or less decide."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(shortest, longest + 1, users)
    taste = np.repeat(rng.random(users), lengths)
    items = (1 + (rng.random(len(taste)) < taste)).astype(np.int32)
    zeros = np.zeros(len(items), np.int32)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    features = Features(items, zeros + 1, zeros.astype(np.float32), zeros, offsets, np.zeros(users, np.int32))
    return EventLog(pl.Series([f"u{n}" for n in range(users)]), features, np.zeros(len(items), np.int64), offsets[1:])


def embed(features: Features) -> NDArray[np.float32]:
    """The share of each item among the newest events."""
    edges = zip(features.offsets[:-1], features.offsets[1:], strict=True)
    spans = [slice(max(start, end - MAX_LENGTH), end) for start, end in edges]
    return np.array([np.bincount(features.item_index[span], minlength=3)[1:] for span in spans], np.float32)


def place(features: Features) -> Nearest:
    return assign(embed(features), CENTROIDS)


def outcomes(log: EventLog) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Margins of all users, and whether they stay when the newest fifth of what is read is gone; user by user."""
    placed, stays = place(log.features), []
    for user, cluster in enumerate(placed.first):
        items = log.features.item_index[log.features.offsets[user] : log.features.offsets[user + 1]]
        left = items[: len(items) - max(1, int(min(len(items), MAX_LENGTH) * DROPPED_SHARE))][-MAX_LENGTH:]
        ones = (left == 1).sum()
        stays.append((0 if ones >= len(left) - ones else 1) == cluster)
    return margin(placed), np.array(stays)


def test_confidence_equals_the_share_of_users_who_stay() -> None:
    log = mixed_log(6_000, seed=0)
    calibration = calibrate(log, place(log.features), place, MAX_LENGTH, SegmentSettings())
    assert calibration is not None
    margins, stayed = outcomes(mixed_log(6_000, seed=1))
    predicted = calibration.confidence.at(margins)
    edges = np.quantile(predicted, np.linspace(0, 1, 9)[1:-1])
    bins = np.searchsorted(edges, predicted)
    for bin_index in np.unique(bins):
        chosen = bins == bin_index
        assert predicted[chosen].mean() == pytest.approx(stayed[chosen].mean(), abs=0.05)
    assert calibration.error < 0.03
    assert calibration_error(predicted, stayed) < 0.03
    assert predicted.max() - predicted.min() > 0.3


def test_confidence_rises_with_the_margin_and_has_few_knots() -> None:
    log = mixed_log(3_000, seed=2)
    calibration = calibrate(
        log, place(log.features), place, MAX_LENGTH, SegmentSettings(min_confidence=0.7, min_history=4)
    )
    assert calibration is not None
    curve = calibration.confidence
    assert (curve.margins[0], curve.margins[-1]) == (0.0, 1.0)
    assert 5 < len(curve.margins) <= KNOTS
    assert (curve.min_confidence, curve.min_history) == (0.7, 4)


def test_histories_too_short_to_drop_from_give_no_confidence() -> None:
    log = mixed_log(500, seed=0, shortest=1, longest=2)
    assert calibrate(log, place(log.features), place, MAX_LENGTH, SegmentSettings(min_history=3)) is None
    assert calibrate(log, place(log.features), place, MAX_LENGTH, SegmentSettings(min_history=2)) is not None


def test_a_history_as_long_as_can_be_read_is_never_short() -> None:
    log = mixed_log(500, seed=0, shortest=40)
    calibration = calibrate(log, place(log.features), place, MAX_LENGTH, SegmentSettings(min_history=100))
    assert calibration is not None
    assert calibration.confidence.min_history == MAX_LENGTH


def test_one_segment_is_certain() -> None:
    log = mixed_log(200, seed=0)

    def alone(features: Features) -> Nearest:
        return assign(embed(features), CENTROIDS[:1])

    calibration = calibrate(log, alone(log.features), alone, MAX_LENGTH, SegmentSettings())
    assert calibration is not None
    assert set(calibration.confidence.stays) == {1.0}
    assert calibration.error == 0.0


def test_chance_that_breaks_the_order_is_smoothed_out() -> None:
    margins = np.repeat(np.linspace(0.1, 0.9, 5), 40)
    stayed = np.concatenate([np.arange(40) < share * 40 for share in (0.2, 0.5, 0.4, 0.9, 0.8)])
    knots, stays = fit_curve(margins, stayed)
    assert np.all(np.diff(knots) >= 0)
    np.testing.assert_allclose(np.interp(np.linspace(0.1, 0.9, 5), knots, stays), [0.2, 0.45, 0.45, 0.85, 0.85])


def test_the_error_is_the_mean_gap_between_predicted_and_seen() -> None:
    predicted = np.repeat([0.2, 0.8], 500)
    right = np.concatenate([np.arange(500) < 100, np.arange(500) < 400])
    assert calibration_error(predicted, right) == pytest.approx(0.0)
    assert calibration_error(predicted, np.ones(1000, np.bool_)) == pytest.approx((0.8 + 0.2) / 2)
