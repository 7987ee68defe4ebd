"""How sure a user's segment is, calibrated on whether users stay put when their latest events are dropped.

Between two segments a few events more or less decide; that is what the margin tells (`server.core.segments.margin`).
The share that stays is fitted over the margin by isotonic regression (Zadrozny and Elkan, "Transforming classifier
scores into accurate multiclass probability estimates", KDD 2002), on half of a sample of users, and checked on the
other half.
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
from training.ranking.hybrid import Embed
from training.runs import write_atomically
from training.segments.clusters import Segments

DROPPED_SHARE = 0.2
"""Of the events that the encoder reads, so many of the latest are dropped, but one at least."""

SAMPLED_USERS = 20_000
KNOTS = 20
USERS_PER_KNOT = 20
CHECKED_BINS = 10
MANY = 0.5
"""From this share of users on, people are told that segments are not stable, or histories short."""

_FILE = "confidence.json"


@dataclass(frozen=True, slots=True)
class Calibration:
    """The fitted `confidence`, and how far it is off.

    `error` is the expected calibration error on `checked_users` users who were not fitted on: the difference between
    confidence and the share that stayed, 0 to 1, averaged over bins of like confidence.
    """

    confidence: Confidence
    error: float
    checked_users: int


Place = Callable[[Features], Nearest]
"""The nearest centroids of histories, as the release will find them."""


def calibrate(
    log: EventLog, placed: Nearest, place: Place, max_length: int, settings: SegmentSettings
) -> Calibration | None:
    """Fit confidence on a log whose users (U) are `placed`; None where too few have enough history to tell.

    Enough is `min_history` events, and two at least, so that something is left of it.
    """
    known = np.minimum(log.features.lengths, max_length)
    min_history = min(settings.min_history, max_length)
    enough = np.flatnonzero(known >= max(min_history, 2))
    rng = np.random.default_rng(settings.seed)
    rows = rng.permutation(enough)[:SAMPLED_USERS]
    if len(rows) < 2 * USERS_PER_KNOT:
        return None
    stayed = place(_shortened(log, rows, known[rows], max_length)).first == placed.first[rows]
    margins = margin(placed)[rows]
    fitted, checked = np.array_split(np.arange(len(rows)), 2)
    knots, stays = fit_curve(margins[fitted], stayed[fitted])
    confidence = Confidence(
        margins=tuple(knots.tolist()),
        stays=tuple(stays.tolist()),
        min_confidence=settings.min_confidence,
        min_history=min_history,
    )
    error = calibration_error(confidence.at(margins[checked]), stayed[checked])
    return Calibration(confidence, error, len(checked))


def fit_curve(
    margins: NDArray[np.float64], stayed: NDArray[np.bool_]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Knots from 0 to 1 and the share that stays at each, both rising; users of like margin share a knot."""
    from sklearn.isotonic import IsotonicRegression

    count = int(np.clip(len(margins) // USERS_PER_KNOT, 1, KNOTS - 2))
    bins, sizes = _bins(margins, count)
    centers, shares = _means(bins, sizes, margins), _means(bins, sizes, stayed.astype(np.float64))
    rising = IsotonicRegression(y_min=0.0, y_max=1.0).fit_transform(centers, shares, sample_weight=sizes)
    knots = np.concatenate([[0.0], centers, [1.0]])
    return np.clip(knots, 0.0, 1.0), np.concatenate([rising[:1], rising, rising[-1:]])


def calibration_error(predicted: NDArray[np.float64], observed: NDArray[np.bool_]) -> float:
    """Expected calibration error, 0 to 1, over `CHECKED_BINS` bins of as many users each."""
    bins, sizes = _bins(predicted, min(CHECKED_BINS, len(predicted)))
    differences = np.abs(_means(bins, sizes, predicted) - _means(bins, sizes, observed.astype(np.float64)))
    return float((differences * sizes).sum() / sizes.sum())


@dataclass(frozen=True, slots=True)
class UserConfidence:
    """How sure the segment of each user is, (U,) each, as the server will say it; and the calibration behind it.

    Without a calibration there is no `confidence`, nobody is in doubt, and no history is told as short.
    """

    calibration: Calibration | None
    confidence: NDArray[np.float64] | None
    is_confident: NDArray[np.bool_]
    is_short: NDArray[np.bool_]
    min_history: int

    @property
    def error(self) -> float | None:
        """`Calibration.error`."""
        return self.calibration.error if self.calibration else None

    @property
    def doubtful_share(self) -> float | None:
        """The share of users whose segment is not confident; None without a calibration."""
        return float(1 - self.is_confident.mean()) if self.calibration else None

    @property
    def short_share(self) -> float:
        """The share of users with a short history."""
        return float(self.is_short.mean())

    @property
    def figures(self) -> dict[str, float]:
        """By name, those that are known."""
        found = {"confidence_error": self.error, "doubtful_share": self.doubtful_share, "short_share": self.short_share}
        return {name: value for name, value in found.items() if value is not None}

    @property
    def notes(self) -> list[str]:
        """What people should know of it, in sentences."""
        if self.calibration is None:
            return [
                f"Too few users have {max(self.min_history, 2)} events or more to tell how sure a segment is: answers "
                "will come without confidence."
            ]
        doubtful, short = 1 - self.is_confident.mean(), self.is_short.mean()
        notes = []
        if doubtful >= MANY:
            notes.append(f"Segments are not stable here: {doubtful:.0%} of users are in no segment with confidence.")
        if short >= MANY:
            notes.append(f"Histories are short here: {short:.0%} of users have fewer than {self.min_history} events.")
        return notes


def doubts_of(
    log: EventLog, segments: Segments, encode: Embed, item_dim: int, max_length: int, settings: SegmentSettings
) -> UserConfidence:
    """Calibrate confidence on a log and its segments, and apply it to all its users."""

    def place(features: Features) -> Nearest:
        return assign(segment_part(encode(features), item_dim), segments.fit.centroids)

    calibration = calibrate(log, segments.placed, place, max_length, settings)
    everyone = len(log.users)
    if calibration is None:
        confident, short = np.ones(everyone, np.bool_), np.zeros(everyone, np.bool_)
        return UserConfidence(None, None, confident, short, settings.min_history)
    curve = calibration.confidence
    confidence = curve.at(margin(segments.placed))
    short = np.minimum(log.features.lengths, max_length) < curve.min_history
    return UserConfidence(calibration, confidence, confidence >= curve.min_confidence, short, curve.min_history)


def write_confidence(directory: Path, calibration: Calibration | None) -> None:
    """Write it into the segment stage's directory, or take away what an earlier fit left there."""
    if calibration is None:
        (directory / _FILE).unlink(missing_ok=True)
    else:
        write_atomically(directory / _FILE, calibration.confidence.model_dump_json(indent=1) + "\n")


def read_confidence(directory: Path) -> Confidence | None:
    """Read it back; None where nothing could be fitted."""
    path = directory / _FILE
    return Confidence.model_validate_json(path.read_bytes()) if path.is_file() else None


def _shortened(log: EventLog, rows: NDArray[np.intp], known: NDArray[np.int64], max_length: int) -> Features:
    """The histories of these users without their latest events; `known` (N,) counts those that the encoder reads."""
    dropped = np.maximum(1, np.floor(known * DROPPED_SHARE)).astype(np.int64)
    ends = log.features.ends[rows] - dropped
    return log.histories(rows, ends, max_length)


def _bins(values: NDArray[np.float64], count: int) -> tuple[NDArray[np.intp], NDArray[np.int64]]:
    """Bins of about as many values each: that of each value (N,), and the sizes; equal values share one."""
    edges = np.unique(np.quantile(values, np.linspace(0, 1, count + 1)[1:-1]))
    _, bins, sizes = np.unique(np.searchsorted(edges, values, side="right"), return_inverse=True, return_counts=True)
    return bins, sizes


def _means(bins: NDArray[np.intp], sizes: NDArray[np.int64], values: NDArray[np.float64]) -> NDArray[np.float64]:
    means: NDArray[np.float64] = np.bincount(bins, values) / sizes
    return means
