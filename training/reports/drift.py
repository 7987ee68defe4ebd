"""How far users have moved from what a release was made of.

What is compared is counted in the population stability index: over shares p then and q now, the sum of
(p - q) ln(p / q), which is the divergence of Jeffreys (1946). From 0.1 on a population is said to have moved, from
0.25 on to have drifted (Siddiqi, "Credit Risk Scorecards", 2006). Two samples of n and m users from one population have
an index of their own, distributed about as (1/n + 1/m) times chi-square with a degree of freedom less than there are
shares (Yurdakul & Naranjo, "Statistical properties of the population stability index", 2020). Its mean is taken off, so
that few users do not look like drift, and a measure only counts where it also exceeds what chance gives in one of a
thousand comparisons.

Embeddings are compared by the same divergence: between normal distributions of equal covariance it is the squared
distance of their means in standard deviations (Mahalanobis), and chance gives Hotelling's T-squared.
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
from training.errors import LogError
from training.repository import find_release
from training.runs import Progress, no_progress
from training.segments.drift_reference import DriftReference, read_reference
from training.segments.placement import PlacedUsers, histories_of, place_users, read_events

Verdict = Literal["stable", "moved", "drifted"]
VERDICTS: tuple[Verdict, ...] = ("stable", "moved", "drifted")
EXIT_CODES: dict[Verdict, int] = {"stable": 0, "drifted": 3, "moved": 4}
"""What `segrec-train drift` ends with, for a scheduler."""

PSI_LIMITS = (0.1, 0.25)
SHARE_LIMITS = (0.05, 0.2)
"""Shares of users, and of events, that the release knows nothing of: where they count as moved and as drifted."""

FALSE_ALARMS = 0.001
"""How often chance exceeds the limit of one measure."""


class DriftMeasure(FrozenModel):
    """One thing that was compared; larger is further. It counts from a limit on, if it exceeds `chance` as well."""

    name: str
    kind: Literal["psi", "share"] = Field(description="A stability index less its mean by chance; or a share of 1.")
    value: float = Field(ge=0)
    moved_from: float = Field(ge=0)
    drifted_from: float = Field(ge=0)
    chance: float = Field(ge=0, description="What users who have not moved exceed in one of a thousand comparisons.")
    verdict: Verdict = Field(description="What this measure says alone.")

    @classmethod
    def of(cls, name: str, kind: Literal["psi", "share"], value: float, chance: float) -> Self:
        """The measure with the limits of its kind, and its verdict."""
        moved, drifted = PSI_LIMITS if kind == "psi" else SHARE_LIMITS
        verdict: Verdict = "stable" if value <= chance or value < moved else "moved" if value < drifted else "drifted"
        limits = {"moved_from": moved, "drifted_from": drifted}
        return cls(name=name, kind=kind, value=value, chance=chance, verdict=verdict, **limits)


class SegmentDrift(FrozenModel):
    """Share of users who are in a segment, when the release was made and now."""

    segment_id: int
    label: str
    then: float = Field(ge=0, le=1)
    now: float = Field(ge=0, le=1)


class Figure(FrozenModel):
    """A figure of users then and now; None where the release does not tell."""

    name: str
    then: float | None
    now: float | None


class Drift(FrozenModel):
    """What became of the users of a release: `verdict` is the worst one of `measures`."""

    release: int
    verdict: Verdict
    users_then: int
    users_now: int
    measures: tuple[DriftMeasure, ...]
    figures: tuple[Figure, ...]
    segments: tuple[SegmentDrift, ...]
    notes: tuple[str, ...] = ()

    def measure(self, name: str) -> DriftMeasure:
        """The measure of this name. Raises KeyError."""
        return {measure.name: measure for measure in self.measures}[name]

    def tables(self) -> RenderableType:
        """For people."""
        parts: list[RenderableType] = [_measures_table(self), "", _figures_table(self), "", *self.notes]
        return Group(*parts, self.sentence())

    def sentence(self) -> str:
        """The verdict and what it rests on."""
        found = [measure.name for measure in self.measures if measure.verdict == self.verdict]
        reason = "nothing went beyond its limit" if self.verdict == "stable" else ", ".join(found)
        return f"Release {self.release}: {self.verdict} ({reason})."


def drift(
    repository: Path,
    number: int,
    events: Path,
    config: Config,
    users: Path | None = None,
    progress: Progress = no_progress,
) -> Drift:
    """Compare the users of a log with those that release `number` was made of.

    Histories should be as whole as those of training: users cut short are other users. `users` is a table of the only
    users who count. Raises PublishError for a release that is not there, RunError for one that has no reference,
    LogError for a log that cannot be read or in which the release knows nobody.
    """
    release = find_release(repository, number)
    reference = read_reference(repository / MODEL_NAME / str(number), release)
    histories = histories_of(read_events(events, config, release, users).lazy(), release)
    placed = place_users(histories, release, repository, progress)
    if not len(placed.users):
        raise LogError(
            f"Release {number} knows no item and action of the {len(histories.users):,} users in {events}; "
            "is it a log of the same catalogue?"
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
        segments=_segments(release, placed),
        notes=_notes(measures, placed),
    )


def measure_drift(release: Release, reference: DriftReference, placed: PlacedUsers) -> tuple[DriftMeasure, ...]:
    """Segments, distances, embeddings, and doubt where the release tells of it."""
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

    Half a user is added to each count, since the index is infinite for an empty one. With it chance gives what
    chi-square says or, where counts are small, less.
    """
    p, q = ((counts + 0.5) / (counts.sum() + len(counts) / 2) for counts in (then, now))
    degrees, scale = len(then) - 1, 1 / float(then.sum()) + 1 / float(now.sum())
    chance = float(stats.chi2.isf(FALSE_ALARMS, degrees)) * scale if degrees else 0.0
    return _psi_measure(name, float(((p - q) * np.log(p / q)).sum()), degrees * scale, chance)


def embedding_shift(reference: DriftReference, points: NDArray[np.float64]) -> DriftMeasure:
    """Squared distance between the mean embedding then and that of `points` (U, E), in standard deviations then.

    It is measured along the directions of the reference, of which there are P.
    """
    shift = np.array(reference.directions).reshape(-1, len(reference.center)) @ (points.mean(0) - reference.center)
    value = float((shift**2 / np.array(reference.variances)).sum())
    n, m, p = reference.user_count, len(points), len(shift)
    if not p:
        return _psi_measure("embeddings", 0.0, 0.0, 0.0)
    hotelling = stats.f(p, n - p, scale=p * (n - 1) / (n - p) * (1 / n + 1 / m))
    return _psi_measure("embeddings", value, float(hotelling.mean()), float(hotelling.isf(FALSE_ALARMS)))


def unknown_share(name: str, value: float, users: Sequence[Any] | pl.Series) -> DriftMeasure:
    """A share that was 0 when the release was made. Events of one user hang together, so users are what is counted."""
    count = len(users)
    chance = float(stats.binom.isf(FALSE_ALARMS, count, SHARE_LIMITS[0])) / count
    return DriftMeasure.of(name, "share", value, chance)


def _psi_measure(name: str, value: float, mean: float, chance: float) -> DriftMeasure:
    """An index less the mean that chance gives it, and what chance seldom exceeds, less the same."""
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
    return (f"With {users} chance alone can go beyond the limits, so drift can stay hidden in: {', '.join(hidden)}.",)


def _measures_table(found: Drift) -> Table:
    table = Table(title=f"{found.users_now:,} users beside the {found.users_then:,} of release {found.release}")
    table.add_column("measure")
    for heading in ("value", "moved from", "drifted from", "chance up to"):
        table.add_column(heading, justify="right")
    table.add_column("verdict")
    for measure in found.measures:
        numbers = (measure.value, measure.moved_from, measure.drifted_from, measure.chance)
        shown = [f"{number:.1%}" if measure.kind == "share" else f"{number:.3f}" for number in numbers]
        table.add_row(measure.name, *shown, measure.verdict)
    return table


def _figures_table(found: Drift) -> Table:
    table = Table(title="then and now")
    table.add_column("figure")
    for heading in ("then", "now"):
        table.add_column(heading, justify="right")
    for figure in found.figures:
        if figure.then is not None and figure.now is not None:
            table.add_row(figure.name, f"{figure.then:.3f}", f"{figure.now:.3f}")
    for segment in sorted(found.segments, key=lambda one: -abs(one.now - one.then)):
        table.add_row(f"share of {segment.segment_id} {segment.label}", f"{segment.then:.1%}", f"{segment.now:.1%}")
    return table
