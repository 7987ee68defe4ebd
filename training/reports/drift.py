"""Drift: how far the users of a log differ from the users that a release was made with.

Counts are compared by the population stability index (PSI): for shares p then and q now, the sum of (p - q) ln(p / q),
which is the divergence of Jeffreys (1946). By convention a population has moved from 0.1 on and has drifted from 0.25
on (Siddiqi, "Credit Risk Scorecards", 2006). By chance alone, samples of n and m users from one population have an
index of about (1/n + 1/m) times chi-square with K - 1 degrees of freedom for K shares (Yurdakul & Naranjo, "Statistical
properties of the population stability index", 2020). The mean of this chance index is subtracted, so that few users do
not look like drift. A measure counts only if it also exceeds the index that chance exceeds once in 1,000 comparisons.

Embeddings are compared by the same divergence: for normal distributions of equal covariance it is the squared
Mahalanobis distance of the means, and its chance distribution is Hotelling's T-squared.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import polars as pl
from numpy.typing import NDArray
from pydantic import Field
from rich.console import Group, RenderableType
from rich.table import Table
from scipy import stats

from server.core.frozen_model import FrozenModel
from server.core.release import Release
from server.core.repository.layout import MODEL_NAME
from training.config import Config
from training.data.account import Account
from training.data.reading.sources import Log
from training.errors import LogError
from training.repository import find_release
from training.runs import Progress, no_progress
from training.segments.drift_reference import DriftReference, read_reference
from training.segments.notes import with_names
from training.segments.placement import PlacedUsers, histories_of, place_users, read_events

Verdict = Literal["stable", "moved", "drifted"]
VERDICTS: tuple[Verdict, ...] = ("stable", "moved", "drifted")
EXIT_CODES: dict[Verdict, int] = {"stable": 0, "drifted": 3, "moved": 4}
"""Exit codes of `segrec-train drift`, for schedulers."""

PSI_LIMITS = (0.1, 0.25)
SHARE_LIMITS = (0.05, 0.2)
"""Limits for the shares of unknown users and of unknown events: moved from the first on, drifted from the second on."""

FALSE_ALARMS = 0.001
"""Probability that chance alone exceeds the `chance` limit of one measure."""


class DriftMeasure(FrozenModel):
    """One compared figure; larger is further. It counts from a limit on, if it also exceeds `chance`."""

    name: str
    kind: Literal["psi", "share"] = Field(description="PSI minus its chance mean, or a share from 0 to 1.")
    value: float = Field(ge=0)
    moved_from: float = Field(ge=0)
    drifted_from: float = Field(ge=0)
    chance: float = Field(ge=0, description="Exceeded by unmoved users once in 1,000 comparisons.")
    verdict: Verdict = Field(description="The verdict of this measure alone.")

    @classmethod
    def of(cls, name: str, kind: Literal["psi", "share"], value: float, chance: float) -> Self:
        """The measure with the limits of its kind, and its verdict."""
        moved, drifted = PSI_LIMITS if kind == "psi" else SHARE_LIMITS
        verdict: Verdict = "stable" if value <= chance or value < moved else "moved" if value < drifted else "drifted"
        limits = {"moved_from": moved, "drifted_from": drifted}
        return cls(name=name, kind=kind, value=value, chance=chance, verdict=verdict, **limits)


class SegmentDrift(FrozenModel):
    """Share of users in a segment: `then`, when the release was made, and `now`."""

    segment_id: int
    label: str
    then: float = Field(ge=0, le=1)
    now: float = Field(ge=0, le=1)


class Figure(FrozenModel):
    """A figure of users then and now; None if the release does not have it."""

    name: str
    then: float | None
    now: float | None


class Drift(FrozenModel):
    """The drift of a release's users: `verdict` is the worst verdict of `measures`."""

    release: int
    verdict: Verdict
    users_then: int
    users_now: int
    measures: tuple[DriftMeasure, ...]
    figures: tuple[Figure, ...]
    segments: tuple[SegmentDrift, ...]
    notes: tuple[str, ...] = ()
    account: Account = Field(description="Which rows of the log are compared.")

    def measure(self, name: str) -> DriftMeasure:
        """The measure with this name. Raises KeyError."""
        return {measure.name: measure for measure in self.measures}[name]

    def tables(self) -> RenderableType:
        """The account, tables of measures and figures, notes and the verdict."""
        parts: list[RenderableType] = [
            self.account.table(),
            "",
            _measures_table(self),
            "",
            _figures_table(self),
            "",
            *self.notes,
        ]
        return Group(*parts, self.sentence())

    def sentence(self) -> str:
        """The verdict and the measures that caused it."""
        causes = [measure.name for measure in self.measures if measure.verdict == self.verdict]
        reason = "no measure exceeds its limit" if self.verdict == "stable" else ", ".join(causes)
        return f"Release {self.release}: {self.verdict} ({reason})."


def drift(
    repository: Path,
    number: int,
    events: Log,
    config: Config,
    users: Path | None = None,
    progress: Progress = no_progress,
) -> Drift:
    """Compare the users of a log with the users that release `number` was made with.

    Histories must be as complete as in training, since shortened histories look like drift. `users` is a table of the
    users to compare; None compares all. Raises PublishError for a missing release, RunError for a release without a
    drift reference, LogError for a log that cannot be read or in which the release knows no user.
    """
    release = find_release(repository, number)
    reference = read_reference(repository / MODEL_NAME / str(number), release)
    read = read_events(events, config, release, users)
    histories = histories_of(read.events.lazy(), release)
    placed = place_users(histories, release, repository, progress)
    if not len(placed.users):
        raise LogError(
            f"Release {number} knows no item and action of the {len(histories.users):,} users in {events}; "
            "check that the log belongs to the same catalogue."
        )
    measures = (
        *measure_drift(release, reference, placed),
        unknown_share("users of whom nothing is known", 1 - len(placed.users) / len(histories.users), histories.users),
        unknown_share("events of unknown items", histories.unknown_events / histories.event_count, histories.users),
    )
    return Drift(
        release=number,
        verdict=max((measure.verdict for measure in measures), key=VERDICTS.index),
        users_then=reference.user_count,
        users_now=len(placed.users),
        measures=measures,
        figures=_figures(release, reference, placed),
        segments=_segments(with_names(release, repository), placed),
        notes=_notes(measures, placed),
        account=read.account,
    )


def measure_drift(release: Release, reference: DriftReference, placed: PlacedUsers) -> tuple[DriftMeasure, ...]:
    """The measures of segments, distances, embeddings and, if the release has a calibration, confidence."""
    segments_then = np.array([profile.user_count for profile in release.segments])
    segments_now = np.bincount(placed.nearest.first, minlength=len(segments_then))
    distances_now = reference.histogram(placed.nearest.first_distance)
    measures = [
        psi("shares of segments", segments_then, segments_now),
        psi("distances to centroids", np.array(reference.distance_users), distances_now),
        embedding_shift(reference, placed.points),
    ]
    doubtful = _doubtful(release, placed)
    if reference.doubtful_users is not None and doubtful is not None:
        then, now = reference.doubtful_users, int(doubtful.sum())
        pair = [
            np.array([count, total - count]) for count, total in ((then, reference.user_count), (now, len(doubtful)))
        ]
        measures.append(psi("share in doubt", *pair))
    return tuple(measures)


def psi(name: str, then: NDArray[np.integer[Any]], now: NDArray[np.integer[Any]]) -> DriftMeasure:
    """Population stability index of two counts (K,) of users.

    Half a user is added to each count, since an empty count makes the index infinite. With that, chi-square describes
    chance, or overstates it where counts are small.
    """
    p, q = ((counts + 0.5) / (counts.sum() + len(counts) / 2) for counts in (then, now))
    degrees, scale = len(then) - 1, 1 / float(then.sum()) + 1 / float(now.sum())
    chance = float(stats.chi2.isf(FALSE_ALARMS, degrees)) * scale if degrees else 0.0
    return _psi_measure(name, float(((p - q) * np.log(p / q)).sum()), degrees * scale, chance)


def embedding_shift(reference: DriftReference, points: NDArray[np.float64]) -> DriftMeasure:
    """Squared distance between the mean of `points` (U, E) and the mean embedding then, in standard deviations then.

    The distance is measured along the P directions of the reference.
    """
    shift = np.array(reference.directions).reshape(-1, len(reference.center)) @ (points.mean(0) - reference.center)
    value = float((shift**2 / np.array(reference.variances)).sum())
    n, m, p = reference.user_count, len(points), len(shift)
    if not p:
        return _psi_measure("embeddings", 0.0, 0.0, 0.0)
    hotelling = stats.f(p, n - p, scale=p * (n - 1) / (n - p) * (1 / n + 1 / m))
    return _psi_measure("embeddings", value, float(hotelling.mean()), float(hotelling.isf(FALSE_ALARMS)))


def unknown_share(name: str, value: float, users: Sequence[Any] | pl.Series) -> DriftMeasure:
    """A share that was 0 when the release was made. Chance depends on `users`, as events of a user are dependent."""
    count = len(users)
    chance = float(stats.binom.isf(FALSE_ALARMS, count, SHARE_LIMITS[0])) / count
    return DriftMeasure.of(name, "share", value, chance)


def _psi_measure(name: str, value: float, mean: float, chance: float) -> DriftMeasure:
    """The measure of an index: the chance mean is subtracted from `value` and from `chance`, down to 0 at most."""
    return DriftMeasure.of(name, "psi", max(value - mean, 0.0), max(chance - mean, 0.0))


def _doubtful(release: Release, placed: PlacedUsers) -> NDArray[np.bool_] | None:
    calibration = release.manifest.confidence
    if calibration is None or placed.confidence is None:
        return None
    doubtful: NDArray[np.bool_] = placed.confidence < calibration.min_confidence
    return doubtful


def _figures(release: Release, reference: DriftReference, placed: PlacedUsers) -> tuple[Figure, ...]:
    doubtful = _doubtful(release, placed)
    then = None if reference.doubtful_users is None else reference.doubtful_users / reference.user_count
    return (
        Figure(
            name="mean distance to the centroid",
            then=reference.mean_distance,
            now=float(placed.nearest.first_distance.mean()),
        ),
        Figure(name="share in doubt", then=then, now=None if doubtful is None else float(doubtful.mean())),
        Figure(name="events read of a user", then=reference.mean_events, now=float(placed.event_counts.mean())),
    )


def _segments(release: Release, placed: PlacedUsers) -> tuple[SegmentDrift, ...]:
    now = np.bincount(placed.nearest.first, minlength=len(release.segments)) / len(placed.users)
    return tuple(
        SegmentDrift(segment_id=profile.segment_id, label=profile.label, then=profile.share, now=share)
        for profile, share in zip(release.segments, now.tolist(), strict=True)
    )


def _notes(measures: Sequence[DriftMeasure], placed: PlacedUsers) -> tuple[str, ...]:
    hidden = [measure.name for measure in measures if measure.chance > measure.drifted_from]
    if not hidden:
        return ()
    users = f"{len(placed.users):,} user{'' if len(placed.users) == 1 else 's'}"
    return (f"With {users} chance alone can exceed the limits, so drift can stay hidden in: {', '.join(hidden)}.",)


def _measures_table(drift: Drift) -> Table:
    table = Table(title=f"{drift.users_now:,} users beside the {drift.users_then:,} of release {drift.release}")
    table.add_column("measure")
    for heading in ("value", "moved from", "drifted from", "chance up to"):
        table.add_column(heading, justify="right")
    table.add_column("verdict")
    for measure in drift.measures:
        numbers = (measure.value, measure.moved_from, measure.drifted_from, measure.chance)
        texts = [f"{number:.1%}" if measure.kind == "share" else f"{number:.3f}" for number in numbers]
        table.add_row(measure.name, *texts, measure.verdict)
    return table


def _figures_table(drift: Drift) -> Table:
    table = Table(title="then and now")
    table.add_column("figure")
    for heading in ("then", "now"):
        table.add_column(heading, justify="right")
    for figure in drift.figures:
        if figure.then is not None and figure.now is not None:
            table.add_row(figure.name, f"{figure.then:.3f}", f"{figure.now:.3f}")
    for segment in sorted(drift.segments, key=lambda segment: -abs(segment.now - segment.then)):
        table.add_row(f"share of {segment.segment_id} {segment.label}", f"{segment.then:.1%}", f"{segment.now:.1%}")
    return table
