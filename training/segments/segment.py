"""Segment stage: embeds every user with the exported encoder, clusters the users, and describes the segments.

Writes `user_embeddings.npy` (U, D), `assignments.parquet` (in the same order: user_id, segment_id, distance,
confidence, runner_up_segment_id, confident, short_history; as the server answers), `exemplars.parquet` (the users
nearest to and farthest from each centroid), and what a release takes over: `centroids.npy`, `items.parquet`,
`segment_items.parquet`, `golden.json`, `segmentation.json`, `confidence.json` where there is enough history to tell,
`migration.json` where there was a release before, and `drift_reference.json` where users are many enough.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from server.core.profiles import Migration, SegmentProfile
from server.core.segments import normalised
from training.data.sequences import read_sequences
from training.kmeans.engines import on_one_machine
from training.kmeans.settings import KMeansSettings
from training.profiles.llm_names import with_llm_names
from training.profiles.profiles import Privacy, profiles_of
from training.ranking.hybrid import HybridChoice, HybridTuner
from training.repository import newest_release, read_ledger
from training.runs import Progress, Run, no_progress
from training.segments.clusters import Segments, bounded, cluster, merging_notes
from training.segments.confidence import UserConfidence, doubts_of, write_confidence
from training.segments.files import write_golden, write_items, write_users
from training.segments.inputs import EmbeddedUsers, SegmentInputs, embed_users
from training.segments.matching import Matching, fresh_ids, match_segments
from training.segments.measures import Fitter, Steadiness, steadiness
from training.segments.migration import Overlap, migration_of, write_migration
from training.segments.previous_release import PreviousSegments, means_of, place_before
from training.segments.result import Segmentation
from training.segments.sweep import asked_k
from training.segments.views import UserViews, ViewBuilder

_STEPS = (
    "embedding users",
    "placing users among the segments before",
    "choosing k",
    "clustering",
    "weighing items",
    "matching segments",
    "calibrating confidence",
    "describing segments",
    "writing",
)


def segment(
    run: Run, repository: Path, k: int | Literal["auto"] | None = None, progress: Progress = no_progress
) -> Segmentation:
    """Fit segments and write them under `segment/` of the run; ids go on from the repository's newest release.

    `k` overrides the run's configuration; auto chooses it by a sweep, which is written too. Raises ConfigError for a
    K-means engine that cannot run here and for a naming model without its client, LogError for a log without users,
    RunError when a stage is missing.
    """
    inputs = SegmentInputs.read(run, repository)
    step = _Steps(progress)
    with run.stage("segment") as stage:
        step("embedding users")
        users = embed_users(inputs, progress)
        step("placing users among the segments before")
        previous = _place_among_previous(inputs, users, progress)
        step("choosing k")
        chosen = _choose_k(inputs, users, k or inputs.settings.k, progress)
        step("clustering")
        clustering = _cluster(inputs, users, chosen, previous)
        step("weighing items")
        choice = _weigh_items(inputs, users, len(clustering.segments.fit.centroids))
        step("matching segments")
        matching, migration = _match_ids(inputs, clustering.segments, previous)
        step("calibrating confidence")
        doubts = _calibrate(inputs, users, clustering.segments)
        found = FoundSegments(chosen, clustering, choice, previous, matching, migration, doubts)
        step("describing segments")
        segmentation = _describe(inputs, users, found)
        step("writing")
        _write(stage.directory, inputs, users, found)
        segmentation.write(stage.directory)
        stage.figures |= found.figures
    return segmentation


@dataclass(frozen=True, slots=True)
class ChosenK:
    """The number of segments to make, `notes` on why, and the users as they were looked at for it."""

    k: int
    notes: list[str]
    views: UserViews
    fitter: Fitter


@dataclass(frozen=True, slots=True)
class Clustering:
    """The segments, how steady they are, and `notes` on how they were made."""

    segments: Segments
    steadiness: Steadiness
    notes: list[str]


@dataclass(frozen=True, slots=True)
class FoundSegments:
    """What each step of the stage found; `previous` and `migration` are None without a release before."""

    chosen: ChosenK
    clustering: Clustering
    choice: HybridChoice
    previous: PreviousSegments | None
    matching: Matching
    migration: Migration | None
    doubts: UserConfidence

    @property
    def notes(self) -> list[str]:
        """What people should know, in sentences."""
        earlier = self.previous.notes if self.previous else []
        return [*self.chosen.notes, *self.clustering.notes, *self.choice.notes, *earlier, *self.doubts.notes]

    @property
    def figures(self) -> dict[str, object]:
        """What `run.json` says of the stage."""
        fit, choice = self.clustering.segments.fit, self.choice
        figures: dict[str, object] = {**choice.figures, "k": len(fit.centroids), "hybrid_weight": choice.weight}
        if choice.trend:
            figures |= {"trend_half_life": choice.trend.half_life, "trend_weight": choice.trend.weight}
        ids = {"born": self.matching.born, "retired": self.matching.retired}
        return figures | self.clustering.steadiness.figures() | {"inertia": fit.inertia} | ids | self.doubts.figures


def _place_among_previous(inputs: SegmentInputs, users: EmbeddedUsers, progress: Progress) -> PreviousSegments | None:
    """The users known to the repository's newest release, in its segments; None without a release."""
    parent = newest_release(inputs.repository)
    if parent is None:
        return None
    return place_before(parent, inputs.repository, inputs.prepared, users.log.users, progress)


def _choose_k(inputs: SegmentInputs, users: EmbeddedUsers, asked: int | Literal["auto"], progress: Progress) -> ChosenK:
    """The k that is asked for, or that of a sweep; fewer where users are too few for it."""
    settings = inputs.settings
    builder = ViewBuilder(inputs.prepared, inputs.preprocessing, users.encode, users.item_dim, settings.seed)
    item_count = len(users.item_embeddings) if asked == "auto" else None  # only a sweep reads the past
    views = builder.views(users.log, users.embeddings, item_count)
    fitter = Fitter(on_one_machine(inputs.engine), settings.seed)
    k, reasons = asked_k(inputs.run, asked, views, fitter, progress)
    k, limits = bounded(k, len(users.log.users), settings.min_segment_size)
    return ChosenK(k, [*reasons, *limits], views, fitter)


def _cluster(
    inputs: SegmentInputs, users: EmbeddedUsers, chosen: ChosenK, previous: PreviousSegments | None
) -> Clustering:
    """K-means over all users; segments that are too small are merged into their nearest."""
    settings, parts = inputs.settings, users.parts
    start, notes = _previous_centroids(parts, previous) if settings.start == "previous" else (None, [])
    kmeans = KMeansSettings.of(settings)
    segments = cluster(parts, chosen.k, inputs.engine, kmeans, settings.min_segment_size, start)
    steady = steadiness(chosen.views.points, chosen.views.halves, segments.fit.centroids, chosen.fitter)
    merged = merging_notes(segments, chosen.k, settings.min_segment_size)
    return Clustering(segments, steady, [*notes, *merged, *steady.notes()])


def _previous_centroids(
    parts: NDArray[np.float32], previous: PreviousSegments | None
) -> tuple[NDArray[np.float32] | None, list[str]]:
    """Where today's users (U, E) of each segment before are, (P, E); None, and a note, without any."""
    if previous is None or not len(previous.rows):
        return None, ["There are no previous segments to start from; first centroids were drawn by k-means++."]
    return means_of(normalised(parts), previous), []


def _weigh_items(inputs: SegmentInputs, users: EmbeddedUsers, segment_count: int) -> HybridChoice:
    """How personal scores, segment items and the trend are mixed, by what foretells the validation targets best."""
    log = read_sequences(inputs.prepared, inputs.preprocessing)
    tuner = HybridTuner(
        log,
        inputs.preprocessing,
        users.item_embeddings,
        users.encode,
        segment_count,
        inputs.engine,
        KMeansSettings.of(inputs.settings),
        inputs.settings.min_item_users,
    )
    return tuner.choose()


def _match_ids(
    inputs: SegmentInputs, segments: Segments, previous: PreviousSegments | None
) -> tuple[Matching, Migration | None]:
    """Ids that go on from the segments before, and what became of these; fresh ids where there are none."""
    count, next_id = len(segments.fit.centroids), read_ledger(inputs.repository).next_segment_id
    if previous is None:
        return fresh_ids(count, next_id), None
    clusters = segments.members.clusters
    matching = match_segments(previous.segment_ids, clusters[previous.rows], count, previous.known_ids, next_id)
    overlap = Overlap.of(previous.segment_ids, previous.rows, clusters, previous.known_ids, matching.segment_ids)
    migration = migration_of(previous.release.number, overlap, matching, inputs.settings.min_segment_size)
    return matching, migration


def _calibrate(inputs: SegmentInputs, users: EmbeddedUsers, segments: Segments) -> UserConfidence:
    """How sure the segment of each user is."""
    max_length = inputs.preprocessing.max_length
    return doubts_of(users.log, segments, users.encode, users.item_dim, max_length, inputs.settings)


def _describe(inputs: SegmentInputs, users: EmbeddedUsers, found: FoundSegments) -> Segmentation:
    """Profiles and names of the segments, and everything that publishing has to know of them."""
    profiles, naming_notes = _profiles(inputs, found)
    fit, choice, doubts = found.clustering.segments.fit, found.choice, found.doubts
    newest = int(users.log.timestamp.max())
    return Segmentation(
        profiles=tuple(profiles),
        parent_release=found.previous.release.number if found.previous else 0,
        born=found.matching.born,
        retired=found.matching.retired,
        engine=found.clustering.segments.engine,
        inertia=fit.inertia,
        iterations=fit.iterations,
        half_life=choice.smoothing.half_life,
        prior=choice.smoothing.prior,
        hybrid_weight=choice.weight,
        data_cutoff_time=datetime.fromtimestamp(newest / 1000, UTC) if inputs.preprocessing.has_clock else None,
        figures=choice.figures,
        min_segment_size=inputs.settings.min_segment_size,
        confidence_error=doubts.error,
        doubtful_share=doubts.doubtful_share,
        short_share=doubts.short_share,
        notes=(*found.notes, *naming_notes),
    )


def _profiles(inputs: SegmentInputs, found: FoundSegments) -> tuple[Sequence[SegmentProfile], list[str]]:
    """The profile of each segment, and notes of the language model that named them, if one did."""
    settings, members = inputs.settings, found.clustering.segments.members
    events = pl.scan_parquet(inputs.prepared / "events.parquet")
    events = events.with_columns(pl.col("user_id").rle_id().alias("row"))
    items = pl.read_parquet(inputs.prepared / "items.parquet", columns=["item_id", "title", "category"])
    privacy = Privacy(settings.min_segment_size, settings.min_item_users)
    has_clock = inputs.preprocessing.has_clock
    made = profiles_of(events, items, members, found.matching.segment_ids, has_clock, privacy)
    return with_llm_names(made, settings.naming)


def _write(directory: Path, inputs: SegmentInputs, users: EmbeddedUsers, found: FoundSegments) -> None:
    """All files of the stage but `segmentation.json`."""
    segments, segment_ids = found.clustering.segments, found.matching.segment_ids
    write_users(directory, inputs, users, segments, segment_ids, found.doubts)
    write_items(directory, inputs, users, segments.members.clusters, segment_ids, found.choice)
    write_golden(directory, inputs, users.log.features)
    write_migration(directory, found.migration)
    write_confidence(directory, found.doubts.calibration)


class _Steps:
    """Says which of the stage's steps has begun."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    def __call__(self, name: str) -> None:
        self._progress(name, _STEPS.index(name), len(_STEPS))
