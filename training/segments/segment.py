"""Segment stage: embeds every user with the exported encoder, clusters the users, and describes the segments.

The stage writes these files:
- `user_embeddings.npy` (U, D);
- `assignments.parquet`, in the same order, with the values that the server answers: user_id, segment_id, distance,
  confidence, runner_up_segment_id, confident, short_history;
- `exemplars.parquet`: the users nearest to and farthest from each centroid;
- the files that a release copies: `centroids.npy`, `items.parquet`, `segment_items.parquet`, `golden.json` and
  `segmentation.json`; `confidence.json` if enough users have enough history; `migration.json` if the repository has a
  release; `drift_reference.json` if the log has at least `min_segment_size` users.
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
from training.ranking.item_lists import item_lists, list_overlap
from training.ranking.segment_items import behaviour_of
from training.ranking.served import SERVED_NDCG
from training.ranking.variants import groups_of
from training.repository import newest_release, read_ledger
from training.runs import Progress, Run, no_progress
from training.segments.clusters import Segments, cluster, limit_k, merging_notes
from training.segments.confidence import UserConfidence, user_confidence, write_confidence
from training.segments.files import write_golden, write_items, write_users
from training.segments.inputs import EmbeddedUsers, SegmentInputs, embed_all_users
from training.segments.matching import Matching, fresh_ids, match_segments
from training.segments.measures import Fitter, SegmentStability, segment_stability
from training.segments.migration import Overlap, migration_of, write_migration
from training.segments.previous_release import PreviousSegments, place_previous_users, segment_means
from training.segments.result import Segmentation
from training.segments.sweep import resolve_k
from training.segments.trust import SegmentTrust, trust_of
from training.segments.vector_sets import VectorSets, VectorSetsBuilder

_STEPS = (
    "embedding users",
    "placing users in the previous segments",
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
    """Fit segments and write them to `segment/` of the run; ids continue those of the repository's newest release.

    `k` overrides the run's configuration; with "auto" a sweep chooses k and writes its figures too. Raises ConfigError
    for a K-means engine that cannot run here and for a naming model without its client, LogError for a log without
    users, RunError when a stage is missing.
    """
    inputs = SegmentInputs.read(run, repository)
    step = _Steps(progress)
    with run.stage("segment") as stage:
        step("embedding users")
        users = embed_all_users(inputs, progress)
        step("placing users in the previous segments")
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
        confidence = _calibrate_confidence(inputs, users, clustering.segments)
        results = StageResults(chosen, clustering, choice, previous, matching, migration, confidence)
        step("describing segments")
        segmentation = _describe(inputs, users, results)
        step("writing")
        search_figures = _write(stage.directory, inputs, users, results)
        segmentation.write(stage.directory)
        stage.figures |= results.figures | segmentation.overlap_figures | search_figures
        stage.quality += choice.figures
    return segmentation


@dataclass(frozen=True, slots=True)
class ChosenK:
    """The number of segments `k`, `notes` that explain it, and the vectors and K-means that measured it."""

    k: int
    notes: list[str]
    vectors: VectorSets
    fitter: Fitter


@dataclass(frozen=True, slots=True)
class Clustering:
    """The segments, their stability, and `notes` on the fit."""

    segments: Segments
    stability: SegmentStability
    notes: list[str]


@dataclass(frozen=True, slots=True)
class StageResults:
    """The result of each step of the stage; `previous` and `migration` are None if the repository has no release."""

    chosen: ChosenK
    clustering: Clustering
    choice: HybridChoice
    previous: PreviousSegments | None
    matching: Matching
    migration: Migration | None
    confidence: UserConfidence

    @property
    def notes(self) -> list[str]:
        """Warnings and explanations, as sentences."""
        previous = self.previous.notes if self.previous else []
        return [*self.chosen.notes, *self.clustering.notes, *self.choice.notes, *previous, *self.confidence.notes]

    @property
    def trust(self) -> tuple[SegmentTrust, ...]:
        """How far each segment can be relied on; empty for a single segment."""
        ids, stability = self.matching.segment_ids, self.clustering.stability
        return trust_of(ids, stability.reproduced, stability.kept) if len(ids) > 1 else ()

    @property
    def figures(self) -> dict[str, object]:
        """The figures of the stage in `run.json`, by name."""
        fit, choice = self.clustering.segments.fit, self.choice
        figures: dict[str, object] = {"k": len(fit.centroids), "hybrid_weight": choice.weight}
        if choice.trend:
            figures |= {"trend_half_life": choice.trend.half_life, "trend_weight": choice.trend.weight}
        ids = {"born": self.matching.born, "retired": self.matching.retired}
        return figures | self.clustering.stability.figures() | {"inertia": fit.inertia} | ids | self.confidence.figures


def _place_among_previous(inputs: SegmentInputs, users: EmbeddedUsers, progress: Progress) -> PreviousSegments | None:
    """The segments of the users whom the repository's newest release knows; None if the repository has no release."""
    parent = newest_release(inputs.repository)
    if parent is None:
        return None
    return place_previous_users(parent, inputs.repository, inputs.prepared, users.log.users, progress)


def _choose_k(
    inputs: SegmentInputs, users: EmbeddedUsers, requested_k: int | Literal["auto"], progress: Progress
) -> ChosenK:
    """The requested k, or the k of a sweep; reduced if the log has too few users."""
    settings = inputs.settings
    builder = VectorSetsBuilder(inputs.prepared, inputs.preprocessing, users.embed, users.item_dim, settings.seed)
    # Only a sweep ranks validation targets, and only then are the items counted.
    item_count = len(users.item_embeddings) if requested_k == "auto" else None
    vectors = builder.build(users.log, users.embeddings, item_count)
    fitter = Fitter(on_one_machine(inputs.engine), settings.seed)
    k, reasons = resolve_k(inputs.run, requested_k, vectors, fitter, progress)
    k, limits = limit_k(k, len(users.log.users), settings.min_segment_size)
    return ChosenK(k, [*reasons, *limits], vectors, fitter)


def _cluster(
    inputs: SegmentInputs, users: EmbeddedUsers, chosen: ChosenK, previous: PreviousSegments | None
) -> Clustering:
    """K-means over all users; a segment with too few users is merged into the nearest segment."""
    settings, parts = inputs.settings, users.segment_parts
    start, notes = _previous_centroids(parts, previous) if settings.start == "previous" else (None, [])
    kmeans = KMeansSettings.of(settings)
    segments = cluster(parts, chosen.k, inputs.engine, kmeans, settings.min_segment_size, start)
    stability = segment_stability(chosen.vectors.points, chosen.vectors.halves, segments.fit.centroids, chosen.fitter)
    merged = merging_notes(segments, chosen.k, settings.min_segment_size)
    return Clustering(segments, stability, [*notes, *merged, *stability.notes()])


def _previous_centroids(
    parts: NDArray[np.float32], previous: PreviousSegments | None
) -> tuple[NDArray[np.float32] | None, list[str]]:
    """Mean vectors (P, E) of the previous segments' users among `parts` (U, E); None and a note without such users."""
    if previous is None or not len(previous.rows):
        return None, ["There are no previous segments to start from; k-means++ drew the first centroids."]
    return segment_means(normalised(parts), previous), []


def _weigh_items(inputs: SegmentInputs, users: EmbeddedUsers, segment_count: int) -> HybridChoice:
    """The mix of personal scores, segment items and trend that predicts the validation targets best."""
    log = read_sequences(inputs.prepared, inputs.preprocessing)
    tuner = HybridTuner(
        log,
        inputs.preprocessing,
        users.item_embeddings,
        users.embed,
        segment_count,
        inputs.engine,
        KMeansSettings.of(inputs.settings),
        inputs.settings.min_item_users,
        groups_of(pl.read_parquet(inputs.prepared / "items.parquet")),
    )
    return tuner.choose()


def _match_ids(
    inputs: SegmentInputs, segments: Segments, previous: PreviousSegments | None
) -> tuple[Matching, Migration | None]:
    """The id of each segment, and where the users of the previous segments went; new ids if there is no release."""
    count, next_id = len(segments.fit.centroids), read_ledger(inputs.repository).next_segment_id
    if previous is None:
        return fresh_ids(count, next_id), None
    clusters = segments.members.clusters
    matching = match_segments(previous.segment_ids, clusters[previous.rows], count, previous.known_ids, next_id)
    overlap = Overlap.of(previous.segment_ids, previous.rows, clusters, previous.known_ids, matching.segment_ids)
    migration = migration_of(previous.release.number, overlap, matching, inputs.settings.min_segment_size)
    return matching, migration


def _calibrate_confidence(inputs: SegmentInputs, users: EmbeddedUsers, segments: Segments) -> UserConfidence:
    """The confidence of each user's segment."""
    max_length = inputs.preprocessing.max_length
    return user_confidence(users.log, segments, users.embed, users.item_dim, max_length, inputs.settings)


def _describe(inputs: SegmentInputs, users: EmbeddedUsers, results: StageResults) -> Segmentation:
    """The names and profiles of the segments, and the other values that publishing reads from the stage."""
    profiles, naming_notes = _profiles(inputs, users, results)
    fit, choice, confidence = results.clustering.segments.fit, results.choice, results.confidence
    newest = int(users.log.timestamp.max())
    return Segmentation(
        profiles=tuple(profiles),
        parent_release=results.previous.release.number if results.previous else 0,
        born=results.matching.born,
        retired=results.matching.retired,
        engine=results.clustering.segments.engine,
        inertia=fit.inertia,
        iterations=fit.iterations,
        half_life=choice.smoothing.half_life,
        prior=choice.smoothing.prior,
        hybrid_weight=choice.weight,
        data_cutoff_time=datetime.fromtimestamp(newest / 1000, UTC) if inputs.preprocessing.has_clock else None,
        figures=choice.figures,
        min_segment_size=inputs.settings.min_segment_size,
        confidence_error=confidence.error,
        doubtful_share=confidence.doubtful_share,
        short_share=confidence.short_share,
        top_items_overlap=list_overlap([profile.top_items for profile in profiles]),
        particular_items_overlap=list_overlap([profile.particular_items for profile in profiles]),
        trust=results.trust,
        notes=(*results.notes, *naming_notes),
    )


def _profiles(
    inputs: SegmentInputs, users: EmbeddedUsers, results: StageResults
) -> tuple[Sequence[SegmentProfile], list[str]]:
    """The profile of each segment, and notes on the naming by a language model, if the run uses one."""
    settings, members = inputs.settings, results.clustering.segments.members
    events = pl.scan_parquet(inputs.prepared / "events.parquet")
    events = events.with_columns(pl.col("user_id").rle_id().alias("row"))
    items = pl.read_parquet(inputs.prepared / "items.parquet", columns=["item_id", "title", "category"])
    privacy = Privacy(settings.min_segment_size, settings.min_item_users)
    has_clock = inputs.preprocessing.has_clock
    bare = profiles_of(
        events, items, members, results.matching.segment_ids, has_clock, privacy, inputs.run.config().report.time_zone
    )
    behaviour = behaviour_of(users.log, users.log.features.ends, inputs.preprocessing, len(items))
    minimums = settings.min_item_users, settings.min_segment_size
    lists = item_lists(behaviour, members.clusters, len(bare), items["item_id"], *minimums)
    profiles = [
        profile.model_copy(update={"top_items": listed.top, "particular_items": listed.particular})
        for profile, listed in zip(bare, lists, strict=True)
    ]
    return with_llm_names(profiles, settings.naming)


def _write(directory: Path, inputs: SegmentInputs, users: EmbeddedUsers, results: StageResults) -> dict[str, float]:
    """Write all files of the stage except `segmentation.json`; returns the figures of the search lists."""
    segments, segment_ids = results.clustering.segments, results.matching.segment_ids
    write_users(directory, inputs, users, segments, segment_ids, results.confidence)
    figures = write_items(directory, inputs, users, segments.members.clusters, segment_ids, results.choice)
    write_golden(directory, inputs, len(users.item_embeddings))
    write_migration(directory, results.migration)
    write_confidence(directory, results.confidence.calibration)
    if results.choice.quality:
        results.choice.quality.ndcg(users.log.users).write_parquet(directory / SERVED_NDCG)
    else:
        (directory / SERVED_NDCG).unlink(missing_ok=True)
    return figures


class _Steps:
    """Reports the name and the place of each step that begins."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    def __call__(self, name: str) -> None:
        self._progress(name, _STEPS.index(name), len(_STEPS))
