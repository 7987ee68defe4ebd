"""Segment stage: embeds every user with the exported encoder, clusters them, and describes what came out.

Writes `user_embeddings.npy` (U, D), `assignments.parquet` (user_id, segment_id, distance; in the same order), and what
a release takes over: `centroids.npy`, `items.parquet`, `segment_items.parquet`, `golden.json`, `segmentation.json`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from server.core.features import Features, batches, features_of
from server.core.history import Event, history_of
from server.core.preprocessing import Preprocessing
from server.core.release import GOLDEN_TOLERANCE, Golden, Release
from server.core.repository import MODEL_NAME
from server.core.segments import normalised, segment_part
from training.drift_reference import write_reference
from training.embed import embed
from training.errors import LogError
from training.hybrid import Choice, Mixer
from training.kmeans import Engine, KMeansResult, assign, choose_engine, fit_kmeans
from training.matching import Matching, fresh_ids, match_segments
from training.profiles import Members, facts_of, profiles_of, traits_by_cluster
from training.repository import newest_release, read_ledger
from training.runs import Progress, Run, no_progress
from training.segment_items import behaviour_of, popularity, segment_items
from training.segmentation import Segmentation
from training.sequences import Log, read_log, read_sequences

USERS_PER_SEGMENT = 10
"""A log with fewer users a segment than this gets fewer segments."""

MATCHED_USERS = 20_000
GOLDEN_LENGTHS = (0.1, 0.4, 0.7, 1.0)
"""Golden histories: those at these places among all, from the shortest to the longest."""

_STEPS = ("embedding users", "clustering", "weighing items", "matching segments", "describing segments", "writing")


@dataclass(frozen=True, slots=True)
class Segments:
    """Clusters of all users: the fit, and their `members` by row (U)."""

    engine: Engine
    fit: KMeansResult
    members: Members


def segment(run: Run, repository: Path, k: int | None = None, progress: Progress = no_progress) -> Segmentation:
    """Fit segments and write them under `segment/` of the run; ids go on from the repository's newest release.

    `k` overrides the run's configuration. Raises ConfigError for a K-means engine that cannot run here, LogError for
    a log of too few users, RunError when a stage is missing.
    """
    prepared, exported = run.require("prepare"), run.require("export")
    settings = run.config().segment
    engine = choose_engine(settings.backend)
    preprocessing = Preprocessing.model_validate_json((exported / "preprocessing.json").read_bytes())
    step = _Steps(progress)
    with run.stage("segment") as stage:
        step("embedding users")
        log = read_log(prepared, preprocessing)
        wanted, notes = bounded(k or settings.k, len(log.users))
        item_embeddings = np.load(exported / "item_embeddings.npy", allow_pickle=False)
        encode = partial(embed, exported / "model.onnx", max_length=preprocessing.max_length)
        embeddings = encode(log.features, progress=progress)
        step("clustering")
        segments = cluster(segment_part(embeddings, item_embeddings.shape[1]), wanted, engine, settings.seed)
        if len(segments.fit.centroids) < wanted:
            notes.append(f"Users fall into {len(segments.fit.centroids)} distinct groups only; no more segments made.")
        step("weighing items")
        sequences = read_sequences(prepared, preprocessing)
        choice = Mixer(sequences, preprocessing, item_embeddings, encode, wanted, engine, settings.seed).choose()
        if not choice.figures:
            notes.append("Histories are too short to hold events back: the hybrid's weight is a default, not chosen.")
        step("matching segments")
        parent, matching = _matched(repository, prepared, log, segments, settings.seed)
        step("describing segments")
        segmentation = _described(prepared, preprocessing, log, segments, matching, choice)
        tiny = [p.label for p in segmentation.profiles if p.user_count < settings.min_segment_size]
        notes += [f"Segment {label} has fewer than {settings.min_segment_size} users." for label in tiny]
        segmentation = segmentation.model_copy(
            update={"parent_release": parent.number if parent else 0, "notes": tuple(notes)}
        )
        step("writing")
        _write_users(stage.directory, log, embeddings, segments, matching)
        read = np.minimum(log.features.lengths, preprocessing.max_length)
        write_reference(stage.directory, item_embeddings.shape[1], read, settings.min_segment_size)
        _write_items(stage.directory, prepared, preprocessing, log, segments, matching, choice)
        tolerance = run.figures("export").get("golden_tolerance", GOLDEN_TOLERANCE)
        golden = golden_of(log.features, preprocessing, exported / "model.onnx", tolerance)
        (stage.directory / "golden.json").write_text(golden.model_dump_json())
        segmentation.write(stage.directory)
        stage.figures |= choice.figures | {"k": len(matching.segment_ids), "hybrid_weight": choice.weight}
        stage.figures |= {"inertia": segments.fit.inertia, "born": matching.born, "retired": matching.retired}
    return segmentation


def bounded(k: int, user_count: int) -> tuple[int, list[str]]:
    """How many segments so many users can have, and why it is fewer than `k`."""
    if not user_count:
        raise LogError("No user of the log has an event; there is nobody to make segments of.")
    most = max(1, user_count // USERS_PER_SEGMENT)
    if k <= most:
        return k, []
    made = "1 segment" if most == 1 else f"{most} segments"
    return most, [f"{made} instead of {k}: there are {user_count} users, and a segment needs {USERS_PER_SEGMENT}."]


def cluster(embeddings: NDArray[np.float32], k: int, engine: Engine, seed: int) -> Segments:
    """K-means on the segment parts of user embeddings, (U, E), of length 1; users are placed as the server does it."""
    points = normalised(embeddings)
    fit = fit_kmeans(points, k, engine=engine, seed=seed)
    placed = assign(embeddings, fit.centroids)
    return Segments(engine, fit, Members(placed.first, placed.first_distance, points))


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


def _matched(
    repository: Path, prepared: Path, log: Log, segments: Segments, seed: int
) -> tuple[Release | None, Matching]:
    """Match clusters to the newest release by where it puts the same users today; fresh ids where there is none."""
    parent = newest_release(repository)
    next_id = read_ledger(repository).next_segment_id
    clusters = segments.members.clusters
    count = len(segments.fit.centroids)
    if parent is None:
        return None, fresh_ids(count, next_id)
    rows = np.sort(np.random.default_rng(seed).permutation(len(clusters))[:MATCHED_USERS])
    ids = [profile.segment_id for profile in parent.segments]
    known, previous = _placed_by(parent, repository, prepared, log.users.gather(rows))
    return parent, match_segments(np.array(ids)[previous], clusters[rows[known]], count, ids, next_id)


def _placed_by(
    release: Release, repository: Path, prepared: Path, user_ids: pl.Series
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Which of the users an earlier release knows anything of (places in `user_ids`), and its cluster of each."""
    length = release.preprocessing.max_length
    actions = [action.name for action in release.preprocessing.actions]
    events = (
        pl.scan_parquet(prepared / "events.parquet")
        .filter(pl.col("user_id").is_in(user_ids.implode()))
        .filter(pl.col("item_id").is_in(release.item_ids), pl.col("action").is_in(actions))
        .with_columns(pl.col("value").cast(pl.Float64).fill_null(float("nan")))
        .group_by("user_id", maintain_order=True)
        .agg(pl.col("item_id", "action", "value", "timestamp").tail(length))
    ).collect()
    histories = [
        history_of(map(Event, row["item_id"], row["action"], row["value"], row["timestamp"]))
        for row in events.iter_rows(named=True)
    ]
    place = {user_id: index for index, user_id in enumerate(user_ids)}
    known = np.array([place[user_id] for user_id in events["user_id"]], np.intp)
    if not len(known):
        return known, known
    features = features_of(histories, release.item_index, release.action_index, release.preprocessing)
    embeddings = embed(repository / MODEL_NAME / str(release.number) / "model.onnx", features, max_length=length)
    return known, assign(segment_part(embeddings, release.item_embeddings.shape[1]), release.centroids).first


def _described(
    prepared: Path,
    preprocessing: Preprocessing,
    log: Log,
    segments: Segments,
    matching: Matching,
    choice: Choice,
) -> Segmentation:
    events = pl.scan_parquet(prepared / "events.parquet").with_columns(pl.col("user_id").rle_id().alias("row"))
    facts = facts_of(events, pl.read_parquet(prepared / "items.parquet"), preprocessing.has_clock)
    traits = traits_by_cluster(facts, segments.members.clusters, len(matching.segment_ids))
    newest = datetime.fromtimestamp(int(log.timestamp.max()) / 1000, UTC) if preprocessing.has_clock else None
    return Segmentation(
        profiles=tuple(profiles_of(segments.members, matching.segment_ids, traits, seed=0)),
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
    )


def _write_users(
    directory: Path, log: Log, embeddings: NDArray[np.float32], segments: Segments, matching: Matching
) -> None:
    np.save(directory / "user_embeddings.npy", embeddings)
    np.save(directory / "centroids.npy", segments.fit.centroids)
    columns = {
        "user_id": log.users,
        "segment_id": np.array(matching.segment_ids, np.int64)[segments.members.clusters],
        "distance": segments.members.distances.astype(np.float32),
    }
    pl.DataFrame(columns).write_parquet(directory / "assignments.parquet")


def _write_items(
    directory: Path,
    prepared: Path,
    preprocessing: Preprocessing,
    log: Log,
    segments: Segments,
    matching: Matching,
    choice: Choice,
) -> None:
    """The catalogue with the popularity of each item, and the items of each segment."""
    items = pl.read_parquet(prepared / "items.parquet")
    behaviour = behaviour_of(log, log.features.offsets[1:], preprocessing, len(items))
    everyone = np.log(popularity(behaviour, choice.smoothing.half_life)).astype(np.float32)
    catalogue = items.select("item_id", "title", "category", "event_count", pl.Series("popularity", everyone))
    catalogue.write_parquet(directory / "items.parquet")
    listed = segment_items(behaviour, segments.members.clusters, matching.segment_ids, choice.smoothing)
    listed.write_parquet(directory / "segment_items.parquet")


class _Steps:
    """Says which of the stage's steps has begun."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    def __call__(self, name: str) -> None:
        self._progress(name, _STEPS.index(name), len(_STEPS))
