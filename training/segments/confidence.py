"""The confidence of a user's segment: the probability that the user stays in it without the latest events.

A user near the border between two segments changes sides with a few events; `server.core.segments.margin` measures how
near. On half of a sample of users, isotonic regression fits the share of users who stay to the margin (Zadrozny and
Elkan, "Transforming classifier scores into accurate multiclass probability estimates", KDD 2002). The other half
measures the calibration error.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from server.core.features import Features
from server.core.release import Confidence
from server.core.segments import Nearest, margin, segment_part
from training.config import SegmentSettings
from training.data.sequences import EventLog
from training.kmeans.fit import assign
from training.ranking.hybrid import EmbedHistories
from training.runs import write_atomically
from training.segments.clusters import Segments

DROPPED_SHARE = 0.2
"""Share of a user's events, among those that the encoder reads, that calibration drops; at least one event."""

SAMPLED_USERS = 20_000
KNOTS = 20
USERS_PER_KNOT = 20
ERROR_BINS = 10
NOTE_SHARE = 0.5
"""A note warns of unstable segments, or of short histories, if they concern at least this share of users."""

_FILE = "confidence.json"


@dataclass(frozen=True, slots=True)
class Calibration:
    """The fitted `confidence`, and its expected calibration `error` on held-out users, 0 to 1, smaller is better.

    The error is the difference between the confidence and the share of users who stayed, averaged over bins of users
    with similar confidence.
    """

    confidence: Confidence
    error: float


FindNearest = Callable[[Features], Nearest]
"""Returns the nearest centroids of histories, as the server computes them."""


def calibrate(
    log: EventLog, placed: Nearest, find_nearest: FindNearest, max_length: int, settings: SegmentSettings
) -> Calibration | None:
    """Fit the confidence on a log; `placed` holds the nearest centroids of its users (U). None for too few users.

    Only users with `min_history` events count, and with at least two, so that an event remains after the drop.
    """
    known = np.minimum(log.features.lengths, max_length)
    min_history = min(settings.min_history, max_length)
    enough = np.flatnonzero(known >= max(min_history, 2))
    rng = np.random.default_rng(settings.seed)
    rows = rng.permutation(enough)[:SAMPLED_USERS]
    if len(rows) < 2 * USERS_PER_KNOT:
        return None
    stayed = find_nearest(_shortened(log, rows, known[rows], max_length)).first == placed.first[rows]
    margins = margin(placed)[rows]
    fit_half, error_half = np.array_split(np.arange(len(rows)), 2)
    knots, stays = fit_curve(margins[fit_half], stayed[fit_half])
    confidence = Confidence(
        margins=tuple(knots.tolist()),
        stays=tuple(stays.tolist()),
        min_confidence=settings.min_confidence,
        min_history=min_history,
    )
    error = calibration_error(confidence.at(margins[error_half]), stayed[error_half])
    return Calibration(confidence, error)


def fit_curve(
    margins: NDArray[np.float64], stayed: NDArray[np.bool_]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Knots (margins from 0 to 1) and the share of users who stay at each, both rising.

    Users with similar margins share a knot.
    """
    from sklearn.isotonic import IsotonicRegression

    count = int(np.clip(len(margins) // USERS_PER_KNOT, 1, KNOTS - 2))
    bins, sizes = _bins(margins, count)
    centers, shares = _means(bins, sizes, margins), _means(bins, sizes, stayed.astype(np.float64))
    rising = IsotonicRegression(y_min=0.0, y_max=1.0).fit_transform(centers, shares, sample_weight=sizes)
    knots = np.concatenate([[0.0], centers, [1.0]])
    return np.clip(knots, 0.0, 1.0), np.concatenate([rising[:1], rising, rising[-1:]])


def calibration_error(predicted: NDArray[np.float64], observed: NDArray[np.bool_]) -> float:
    """Expected calibration error, 0 to 1, over `ERROR_BINS` bins with about the same number of users."""
    bins, sizes = _bins(predicted, min(ERROR_BINS, len(predicted)))
    differences = np.abs(_means(bins, sizes, predicted) - _means(bins, sizes, observed.astype(np.float64)))
    return float((differences * sizes).sum() / sizes.sum())


@dataclass(frozen=True, slots=True)
class UserConfidence:
    """The confidence of each user's segment, as the server will answer it, and its calibration. Arrays are (U,).

    Without a calibration `confidence` is None, `is_confident` is true and `is_short` is false for every user.
    """

    calibration: Calibration | None
    confidence: NDArray[np.float64] | None
    is_confident: NDArray[np.bool_]
    is_short: NDArray[np.bool_]
    min_history: int

    @property
    def error(self) -> float | None:
        return self.calibration.error if self.calibration else None

    @property
    def doubtful_share(self) -> float | None:
        """The share of users without a confident segment; None without a calibration."""
        return float(1 - self.is_confident.mean()) if self.calibration else None

    @property
    def short_share(self) -> float:
        """The share of users with a short history."""
        return float(self.is_short.mean())

    @property
    def figures(self) -> dict[str, float]:
        """The known figures by name."""
        doubtful, short = self.doubtful_share, self.short_share
        figures = {"confidence_error": self.error, "doubtful_share": doubtful, "short_share": short}
        return {name: value for name, value in figures.items() if value is not None}

    @property
    def notes(self) -> list[str]:
        """Warnings for people, as sentences."""
        if self.calibration is None:
            return [
                f"Too few users have at least {max(self.min_history, 2)} events, so confidence cannot be calibrated "
                "and answers will have no confidence."
            ]
        doubtful, short = 1 - self.is_confident.mean(), self.is_short.mean()
        notes = []
        if doubtful >= NOTE_SHARE:
            notes.append(f"Segments are not stable: {doubtful:.0%} of users have no confident segment.")
        if short >= NOTE_SHARE:
            notes.append(f"Histories are short: {short:.0%} of users have fewer than {self.min_history} events.")
        return notes


def user_confidence(
    log: EventLog, segments: Segments, embed: EmbedHistories, item_dim: int, max_length: int, settings: SegmentSettings
) -> UserConfidence:
    """Calibrate the confidence on a log and its segments, and compute the confidence of all its users."""

    def find_nearest(features: Features) -> Nearest:
        return assign(segment_part(embed(features), item_dim), segments.fit.centroids)

    calibration = calibrate(log, segments.placed, find_nearest, max_length, settings)
    user_count = len(log.users)
    if calibration is None:
        confident, short = np.ones(user_count, np.bool_), np.zeros(user_count, np.bool_)
        return UserConfidence(None, None, confident, short, settings.min_history)
    curve = calibration.confidence
    confidence = curve.at(margin(segments.placed))
    short = np.minimum(log.features.lengths, max_length) < curve.min_history
    return UserConfidence(calibration, confidence, confidence >= curve.min_confidence, short, curve.min_history)


def write_confidence(directory: Path, calibration: Calibration | None) -> None:
    """Write `confidence.json` to the segment stage's directory; delete an old file if `calibration` is None."""
    if calibration is None:
        (directory / _FILE).unlink(missing_ok=True)
    else:
        write_atomically(directory / _FILE, calibration.confidence.model_dump_json(indent=1) + "\n")


def read_confidence(directory: Path) -> Confidence | None:
    """Read `confidence.json` of the segment stage's directory; None without the file."""
    path = directory / _FILE
    return Confidence.model_validate_json(path.read_bytes()) if path.is_file() else None


def _shortened(log: EventLog, rows: NDArray[np.intp], known: NDArray[np.int64], max_length: int) -> Features:
    """Histories of the users at `rows` (N,) without their latest events.

    `known` (N,) is the number of each user's events that the encoder reads.
    """
    dropped = np.maximum(1, np.floor(known * DROPPED_SHARE)).astype(np.int64)
    ends = log.features.ends[rows] - dropped
    return log.histories(rows, ends, max_length)


def _bins(values: NDArray[np.float64], count: int) -> tuple[NDArray[np.intp], NDArray[np.int64]]:
    """The bin of each value (N,), and the bin sizes. Bins have about the same size; equal values share a bin."""
    edges = np.unique(np.quantile(values, np.linspace(0, 1, count + 1)[1:-1]))
    _, bins, sizes = np.unique(np.searchsorted(edges, values, side="right"), return_inverse=True, return_counts=True)
    return bins, sizes


def _means(bins: NDArray[np.intp], sizes: NDArray[np.int64], values: NDArray[np.float64]) -> NDArray[np.float64]:
    """The mean of the values (N,) in each bin."""
    means: NDArray[np.float64] = np.bincount(bins, values) / sizes
    return means
