"""Segment stage: embeds every user with the exported encoder, clusters them, and describes what came out.

Writes `user_embeddings.npy` (U, D), `assignments.parquet` (in the same order: user_id, segment_id, distance,
confidence, runner_up_segment_id, confident, short_history; as the server answers), `exemplars.parquet` (the users
nearest to and farthest from each centroid), and what a release takes over: `centroids.npy`, `items.parquet`,
`segment_items.parquet`, `golden.json`, `segmentation.json`, `confidence.json` where there is enough history to tell,
`migration.json` where there was a release before, and `drift_reference.json` where users are many enough.
"""

from collections.abc import Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from server.core.features import Features, batches
from server.core.preprocessing import Preprocessing
from server.core.profiles import Migration
from server.core.release import GOLDEN_TOLERANCE, TREND, Golden, with_item_hashes
from server.core.segments import normalised, segment_part
from training.data.sequences import EventLog, read_log, read_sequences
from training.kmeans.engines import choose_engine, on_one_machine
from training.kmeans.settings import KMeansSettings
from training.model.onnx_inference import embed
from training.profiles.llm_names import require_client, with_llm_names
from training.profiles.profiles import Privacy, exemplars_of, profiles_of
from training.ranking.hybrid import HybridChoice, HybridTuner
from training.ranking.segment_items import behaviour_of, popularity, segment_items
from training.ranking.trend import Demand
from training.repository import newest_release, read_ledger
from training.runs import Progress, Run, no_progress
from training.segments.clusters import Segments, bounded, cluster
from training.segments.confidence import UserConfidence, doubts_of, write_confidence
from training.segments.drift_reference import write_reference
from training.segments.matching import Matching, fresh_ids, match_segments
from training.segments.measures import Fitter, steadiness
from training.segments.migration import Overlap, migration_of, write_migration
from training.segments.placement import assignment_table
from training.segments.previous_release import PreviousSegments, means_of, place_before
from training.segments.result import Segmentation
from training.segments.sweep import asked_k
from training.segments.views import UserViews, ViewBuilder

GOLDEN_LENGTHS = (0.1, 0.4, 0.7, 1.0)
"""Golden histories: those at these places among all, from the shortest to the longest."""

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
    K-means engine that cannot run here and for a naming model without its client, LogError for a log of too few users,
    RunError when a stage is missing.
    """
    prepared, exported = run.require("prepare"), run.require("export")
    settings = run.config().segment
    engine = choose_engine(settings.backend)
    require_client(settings.naming)
    preprocessing = Preprocessing.model_validate_json((exported / "preprocessing.json").read_bytes())
    step = _Steps(progress)
    with run.stage("segment") as stage:
        step("embedding users")
        log = read_log(prepared, preprocessing)
        bounded(1, len(log.users), settings.min_segment_size)
        item_embeddings = np.load(exported / "item_embeddings.npy", allow_pickle=False)
        encode = partial(embed, exported / "model.onnx", max_length=preprocessing.max_length)
        embeddings = encode(log.features, progress=progress)
        step("placing users among the segments before")
        parent = newest_release(repository)
        previous = place_before(parent, repository, prepared, log.users, progress) if parent else None
        views = ViewBuilder(prepared, preprocessing, encode, item_embeddings.shape[1], settings.seed)
        step("choosing k")
        asked = k or settings.k
        past = views.past(len(item_embeddings)) if asked == "auto" else None  # only a sweep asks what is foretold
        scene = UserViews(views.points(embeddings), past, views.halves(log))
        fitter = Fitter(on_one_machine(engine), settings.seed)
        asked, notes = asked_k(run, asked, scene, fitter, progress)
        wanted, more = bounded(asked, len(log.users), settings.min_segment_size)
        notes += more
        step("clustering")
        parts = segment_part(embeddings, item_embeddings.shape[1])
        kmeans = KMeansSettings.of(settings)
        start = _start(parts, previous, notes) if settings.start == "previous" else None
        segments = cluster(parts, wanted, engine, kmeans, settings.min_segment_size, start)
        notes += _merging_notes(segments, wanted, settings.min_segment_size)
        count = len(segments.fit.centroids)
        steady = steadiness(scene.points, scene.halves, segments.fit.centroids, fitter)
        notes += steady.notes()
        step("weighing items")
        sequences = read_sequences(prepared, preprocessing)
        users = settings.min_item_users
        choice = HybridTuner(sequences, preprocessing, item_embeddings, encode, count, engine, kmeans, users).choose()
        if not choice.figures:
            notes.append("Histories are too short to hold events back: the hybrid's weight is a default, not chosen.")
        if choice.trend:
            notes.append(f"Items count for more while they are in demand: {choice.trend.in_words()}.")
        step("matching segments")
        matching = _matched(previous, segments, read_ledger(repository).next_segment_id)
        migration = _migration(previous, segments, matching, settings.min_segment_size)
        notes += previous.notes if previous else []
        step("calibrating confidence")
        doubts = doubts_of(log, segments, encode, item_embeddings.shape[1], preprocessing.max_length, settings)
        notes += doubts.notes
        step("describing segments")
        segmentation = _described(run, preprocessing, log, segments, matching, choice)
        notes += segmentation.notes
        segmentation = segmentation.model_copy(
            update={
                "parent_release": parent.number if parent else 0,
                "min_segment_size": settings.min_segment_size,
                "notes": tuple(notes),
            }
            | doubts.figures
        )
        step("writing")
        read = np.minimum(log.features.lengths, preprocessing.max_length)
        _write_users(stage.directory, log, embeddings, segments, matching, doubts, read)
        write_reference(stage.directory, item_embeddings.shape[1], read, settings.min_segment_size)
        _write_items(stage.directory, run, preprocessing, log, segments, matching, choice)
        tolerance = run.figures("export").get("golden_tolerance", GOLDEN_TOLERANCE)
        golden = golden_of(log.features, preprocessing, exported / "model.onnx", tolerance)
        (stage.directory / "golden.json").write_text(golden.model_dump_json())
        write_migration(stage.directory, migration)
        write_confidence(stage.directory, doubts.calibration)
        segmentation.write(stage.directory)
        stage.figures |= choice.figures | {"k": count, "hybrid_weight": choice.weight}
        if choice.trend:
            stage.figures |= {"trend_half_life": choice.trend.half_life, "trend_weight": choice.trend.weight}
        stage.figures |= steady.figures()
        stage.figures |= {"inertia": segments.fit.inertia, "born": matching.born, "retired": matching.retired}
        stage.figures |= {name: value for name, value in doubts.figures.items() if value is not None}
    return segmentation


def _start(
    parts: NDArray[np.float32], previous: PreviousSegments | None, notes: list[str]
) -> NDArray[np.float32] | None:
    """The centroids (P, E) of the segments before; None, and a note, where there are none."""
    if previous is None or not len(previous.rows):
        notes.append("There are no previous segments to start from; first centroids were drawn by k-means++.")
        return None
    return means_of(normalised(parts), previous)


def _merging_notes(segments: Segments, wanted: int, min_segment_size: int) -> list[str]:
    count, merged = len(segments.fit.centroids), segments.merged_count
    distinct = count + merged
    notes = [f"Users fall into {distinct} distinct groups only; no more segments made."] if distinct < wanted else []
    if merged:
        had = "1 segment had" if merged == 1 else f"{merged} segments had"
        left = "1 segment is" if count == 1 else f"{count} segments are"
        notes.append(f"{had} fewer than {min_segment_size} users and went into the nearest; {left} left.")
    return notes


def golden_of(
    features: Features, preprocessing: Preprocessing, model: Path, tolerance: float = GOLDEN_TOLERANCE
) -> Golden:
    """Real histories of different lengths, in one batch, with their embeddings."""
    order = np.argsort(features.lengths, kind="stable")
    rows = [int(order[round(place * (len(order) - 1))]) for place in GOLDEN_LENGTHS]
    chosen = _taken(features, rows, preprocessing.max_length)
    [(_, inputs)] = batches(chosen, preprocessing.max_length)
    # `batches` sorts by length; `chosen` is sorted already, so its rows are those of the embeddings.
    embeddings = embed(model, chosen, max_length=preprocessing.max_length)
    columns = {name: array.tolist() for name, array in inputs.items()}
    return Golden(**columns, user_embedding=embeddings.tolist(), tolerance=tolerance)


def _taken(features: Features, rows: Sequence[int], max_length: int) -> Features:
    ends = features.offsets[1:]
    spans = [np.arange(max(features.offsets[row], ends[row] - max_length), ends[row]) for row in rows]
    places = np.concatenate(spans)
    return Features(
        features.item_index[places],
        features.action_index[places],
        features.value[places],
        features.gap_index[places],
        np.cumsum([0, *map(len, spans)]),
        np.zeros(len(rows), np.int32),
    )


def _matched(previous: PreviousSegments | None, segments: Segments, next_id: int) -> Matching:
    """Ids that go on from the segments before; fresh ones where there are none."""
    count = len(segments.fit.centroids)
    if previous is None:
        return fresh_ids(count, next_id)
    clusters = segments.members.clusters[previous.rows]
    return match_segments(previous.segment_ids, clusters, count, previous.known_ids, next_id)


def _migration(
    previous: PreviousSegments | None, segments: Segments, matching: Matching, min_segment_size: int
) -> Migration | None:
    if previous is None:
        return None
    overlap = Overlap.of(
        previous.segment_ids, previous.rows, segments.members.clusters, previous.known_ids, matching.segment_ids
    )
    return migration_of(previous.release.number, overlap, matching, min_segment_size)


def _described(
    run: Run,
    preprocessing: Preprocessing,
    log: EventLog,
    segments: Segments,
    matching: Matching,
    choice: HybridChoice,
) -> Segmentation:
    prepared, settings = run.path / "prepare", run.config().segment
    events = pl.scan_parquet(prepared / "events.parquet").with_columns(pl.col("user_id").rle_id().alias("row"))
    items = pl.read_parquet(prepared / "items.parquet", columns=["item_id", "title", "category"])
    privacy = Privacy(settings.min_segment_size, settings.min_item_users)
    made = profiles_of(events, items, segments.members, matching.segment_ids, preprocessing.has_clock, privacy)
    profiles, notes = with_llm_names(made, settings.naming)
    newest = datetime.fromtimestamp(int(log.timestamp.max()) / 1000, UTC) if preprocessing.has_clock else None
    return Segmentation(
        profiles=tuple(profiles),
        parent_release=0,
        born=matching.born,
        retired=matching.retired,
        engine=segments.engine,
        inertia=segments.fit.inertia,
        iterations=segments.fit.iterations,
        half_life=choice.smoothing.half_life,
        prior=choice.smoothing.prior,
        hybrid_weight=choice.weight,
        data_cutoff_time=newest,
        figures=choice.figures,
        notes=tuple(notes),
    )


def _write_users(
    directory: Path,
    log: EventLog,
    embeddings: NDArray[np.float32],
    segments: Segments,
    matching: Matching,
    doubts: UserConfidence,
    read: NDArray[np.int64],
) -> None:
    np.save(directory / "user_embeddings.npy", embeddings)
    np.save(directory / "centroids.npy", segments.fit.centroids)
    calibration = doubts.calibration.confidence if doubts.calibration else None
    placed = assignment_table(log.users, matching.segment_ids, segments.placed, read, calibration)
    placed.write_parquet(directory / "assignments.parquet")
    exemplars_of(segments.members, matching.segment_ids, log.users).write_parquet(directory / "exemplars.parquet")


def _write_items(
    directory: Path,
    run: Run,
    preprocessing: Preprocessing,
    log: EventLog,
    segments: Segments,
    matching: Matching,
    choice: HybridChoice,
) -> None:
    """The catalogue with the popularity of each item, and the items of each segment."""
    settings = run.config().segment
    items = pl.read_parquet(run.path / "prepare" / "items.parquet")
    behaviour = behaviour_of(log, log.features.offsets[1:], preprocessing, len(items))
    everyone = np.log(popularity(behaviour, choice.smoothing.half_life)).astype(np.float32)
    catalogue = items.select("item_id", "title", "category", "event_count", pl.Series("popularity", everyone))
    if choice.trend:
        lately = Demand(log, 0, preprocessing, len(items)).now(choice.trend)
        catalogue = catalogue.with_columns(pl.Series(TREND, lately))
    with_item_hashes(catalogue).write_parquet(directory / "items.parquet")
    least = settings.min_item_users, settings.min_segment_size
    listed = segment_items(behaviour, segments.members.clusters, matching.segment_ids, choice.smoothing, *least)
    listed.write_parquet(directory / "segment_items.parquet")


class _Steps:
    """Says which of the stage's steps has begun."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    def __call__(self, name: str) -> None:
        self._progress(name, _STEPS.index(name), len(_STEPS))
