"""The probe stage: measures user embeddings by labels and segments, beside vectors that need no training.

Labels, which training never reads, and segments are measured on whole histories, as a release embeds them; hits are
measured on the events before each test target. Vectors that need no training read all of these events, the encoder's
only the newest `max_length`.
"""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray
from rich.console import Group, RenderableType
from rich.table import Table

from server.core.figures import Figure
from server.core.preprocessing import Preprocessing
from server.core.repository.layout import read_preprocessing
from training.data.sequences import (
    EventLog,
    held_out,
    one_a_user,
    positive_actions,
    random_half,
    read_first_events,
    read_log,
    select_targets,
)
from training.errors import LogError, RunError
from training.evaluation.linear_probe import Label, Probe, probe, user_labels
from training.evaluation.user_vectors import (
    BOTH,
    BY_HAND,
    LAST,
    MEAN,
    SEGMENT,
    SVD,
    HandMadeVectors,
    ItemSvd,
    Vectors,
    encoder_vectors,
)
from training.model.user_encoder import UserEncoder
from training.model.weights import load_encoder
from training.runs import Progress, Run, no_progress, write_atomically
from training.segments.quality import (
    NEIGHBOURS,
    SEEDS,
    ProbeVectors,
    SegmentQuality,
    Targets,
    neighbour_overlap,
    popularity_targets,
    segment_hit_rate,
    segment_quality,
    segments_agree,
)

KS = (8, 32)
USERS_MAX = 20_000
"""The number of users that are sampled from a larger log."""

METRICS = "metrics.json"

_USERS_MIN = 20
_NEIGHBOUR_SAMPLE = 2_000
_SEED = 0
_TRAINED = (LAST, MEAN, BOTH, SEGMENT)
_KINDS = (*_TRAINED, SVD, BY_HAND)


@dataclass(frozen=True)
class LabelProbe:
    """A label, and how well each kind of vector predicts it."""

    label: str
    users: int
    classes: int
    majority: float
    by_kind: Mapping[str, Probe]


@dataclass(frozen=True)
class TrainingAgreement:
    """The agreement of two trained encoders on one kind of vector.

    `neighbours` is the share of the `NEIGHBOURS` nearest users in common; `segments` are adjusted Rand indexes by k.
    """

    kind: str
    neighbours: float
    segments: Mapping[int, float]


@dataclass(frozen=True)
class ProbeResult:
    """The result of `probe_run`. `global_hr` is HR@10 of global popularity on `asked` users, NaN without such users."""

    users: int
    asked: int
    global_hr: float
    labels: tuple[LabelProbe, ...]
    segments: Mapping[str, tuple[SegmentQuality, ...]]
    stability: tuple[TrainingAgreement, ...]
    notes: tuple[str, ...]

    def table(self) -> RenderableType:
        """All tables and notes, for rich to print."""
        parts: list[RenderableType] = [self._labels()] if self.labels else []
        parts.append(self._segments())
        parts += [self._stability()] if self.stability else []
        return Group(*parts, *self.notes)

    def figures(self) -> tuple[Figure, ...]:
        """Figures with names such as `probe of gender/last/auroc` and `8 segments/mean/halves`."""
        result = {"segments/popularity/hr@10": self.global_hr}
        for entry in self.labels:
            label = entry.label.replace("/", " ")
            for kind, figures in entry.by_kind.items():
                result |= {f"probe of {label}/{kind}/{name}": value for name, value in asdict(figures).items()}
        for kind, entries in self.segments.items():
            for quality in entries:
                by_name = {"halves": quality.halves, "seeds": quality.seeds, "hr@10": quality.hr}
                result |= {f"{quality.k} segments/{kind}/{name}": value for name, value in by_name.items()}
        result |= {f"two trainings/{entry.kind}/neighbours": entry.neighbours for entry in self.stability}
        return tuple(Figure.parse(name, round(value, 6)) for name, value in result.items() if math.isfinite(value))

    def _labels(self) -> Table:
        table = Table("label", title="Linear probes: AUROC (mean of each class against the rest), accuracy")
        for name in ("users", "classes", "majority", *_KINDS):
            table.add_column(name, justify="right")
        for entry in self.labels:
            cells = [f"{entry.by_kind[kind].auroc:.3f}  {entry.by_kind[kind].accuracy:.3f}" for kind in _KINDS]
            table.add_row(entry.label, f"{entry.users:,}", str(entry.classes), f"{entry.majority:.3f}", *cells)
        return table

    def _segments(self) -> Table:
        table = Table(
            "vectors", title=f"Segments, means over {SEEDS} seeds; global popularity: HR@10 {self.global_hr:.4f}"
        )
        for name in ("k", "halves agree", "halves placed", "seeds agree", "smallest", "largest", "HR@10"):
            table.add_column(name, justify="right")
        for k_index in range(len(KS)):
            for kind in _KINDS:
                quality = self.segments[kind][k_index]
                cells = [f"{value:.3f}" for value in (quality.halves, quality.halves_placed, quality.seeds)]
                cells += [f"{quality.smallest:.1%}", f"{quality.largest:.1%}", f"{quality.hr:.4f}"]
                table.add_row(kind, str(quality.k), *cells)
            table.add_section()
        return table

    def _stability(self) -> Table:
        chance = NEIGHBOURS / (self.users - 1)
        table = Table("vectors", title=f"Two trainings: nearest {NEIGHBOURS} users in common (by chance {chance:.3f})")
        table.add_column("in common", justify="right")
        for k in self.stability[0].segments:
            table.add_column(f"segments agree, k {k}", justify="right")
        for entry in self.stability:
            table.add_row(entry.kind, f"{entry.neighbours:.3f}", *(f"{value:.3f}" for value in entry.segments.values()))
        return table


def probe_run(run: Run, other: Run | None = None, *, progress: Progress = no_progress) -> ProbeResult:
    """Probe the user embeddings of `run`, and their agreement with those of `other`, a run trained on the same log.

    Raises RunError if a stage is missing or the logs differ, LogError if the log has too few users.
    """
    trained, prepared = run.require("train"), run.require("prepare")
    if other:
        _check_same_log(run, other)
    with run.stage("probe") as stage:
        probe_users = _ProbeUsers.read(prepared)
        vectors = _views(probe_users, UserEncoder.load(load_encoder(trained), trained), progress)
        labels, label_notes = probe_users.labels(prepared)
        probes = []
        for done, label in enumerate(labels):
            progress("labels", done, len(labels))
            by_kind = {kind: probe(vectors[kind].whole, label, _SEED) for kind in _KINDS}
            size = len(label.rows), int(label.classes.max()) + 1
            probes.append(LabelProbe(label.name, *size, label.majority, by_kind))
        segments: dict[str, tuple[SegmentQuality, ...]] = {}
        for kind in _KINDS:
            progress("segments", len(segments), len(_KINDS))
            segments[kind] = tuple(segment_quality(vectors[kind], probe_users.targets, k) for k in KS)
        result = ProbeResult(
            users=len(probe_users.rows),
            asked=len(probe_users.targets.held.rows),
            global_hr=probe_users.global_hr,
            labels=tuple(probes),
            segments=segments,
            stability=_stability(probe_users, vectors, other, progress) if other else (),
            notes=(*probe_users.notes, *label_notes),
        )
        text = json.dumps(_without_nan(asdict(result)), ensure_ascii=False, indent=1)
        write_atomically(stage.directory / METRICS, text + "\n")
        stage.quality += result.figures()
    return result


def segment_figures(run: Run, *, progress: Progress = no_progress) -> tuple[int, float, tuple[SegmentQuality, ...]]:
    """The number of users, HR@10 of global popularity, and the quality of the release's segments for each of `KS`.

    The figures are those of `probe_run` for `SEGMENT` vectors; nothing is written to the run.
    """
    trained = run.require("train")
    probe_users = _ProbeUsers.read(run.require("prepare"))
    encoder = UserEncoder.load(load_encoder(trained), trained)
    halves = probe_users.halves()
    whole, first, second, before_target = (
        encoder_vectors(encoder, log, progress)[SEGMENT]
        for log in (probe_users.whole(), *halves, probe_users.before_target())
    )
    vectors = ProbeVectors(whole, (first, second), _in_both(halves), before_target)
    quality = tuple(segment_quality(vectors, probe_users.targets, k) for k in KS)
    return len(probe_users.rows), probe_users.global_hr, quality


@dataclass(frozen=True)
class _ProbeUsers:
    """The users that are probed, `rows` (U,) of the log, ascending.

    `log` has all events, `first_events` only the first event of each user and item; `targets` are of the latter.
    """

    log: EventLog
    first_events: EventLog
    targets: Targets
    rows: NDArray[np.intp]
    preprocessing: Preprocessing
    categories: pl.Series

    @classmethod
    def read(cls, prepared: Path) -> "_ProbeUsers":
        preprocessing = read_preprocessing(prepared)
        items = pl.read_parquet(prepared / "items.parquet")
        log, first_events = read_log(prepared, preprocessing), read_first_events(prepared, preprocessing)
        candidates = np.flatnonzero(log.features.lengths > 1)
        if len(candidates) < _USERS_MIN:
            raise LogError(f"Probes need {_USERS_MIN} users with two events; this log has {len(candidates)}.")
        rows = np.sort(np.random.default_rng(_SEED).permutation(candidates)[:USERS_MAX])
        targets = _targets(first_events, rows, positive_actions(preprocessing), len(items))
        return cls(log, first_events, targets, rows, preprocessing, items["category"])

    @property
    def notes(self) -> list[str]:
        left = int((self.log.features.lengths > 1).sum()) - len(self.rows)
        return [f"{left:,} users left out: {USERS_MAX:,} are drawn"] if left else []

    @property
    def global_hr(self) -> float:
        count = len(self.targets.held.rows)
        return segment_hit_rate(self.targets, np.zeros(count, np.intp)) if count else math.nan

    def labels(self, prepared: Path) -> tuple[list[Label], list[str]]:
        """The labels in `users.parquet`, and notes on them."""
        path = prepared / "users.parquet"
        if not path.is_file():
            return [], ["no labels: the run was prepared without a user table"]
        return user_labels(pl.read_parquet(path), self.log.users.gather(self.rows))

    def whole(self) -> EventLog:
        return self.log.subset(np.ones(len(self.log.timestamp), np.bool_), self.rows, self.preprocessing)

    def halves(self) -> tuple[EventLog, EventLog]:
        """Two random halves of each user's events; of an odd number the second half has one more."""
        first_half = random_half(self.log, _SEED)
        first, second = (self.log.subset(half, self.rows, self.preprocessing) for half in (first_half, ~first_half))
        return first, second

    def before_target(self) -> EventLog:
        """The events before each test target, for the users with a target."""
        ends = np.zeros(len(self.first_events.users), np.int64)
        ends[self.targets.held.rows] = self.targets.held.ends
        return self.first_events.subset(self.first_events.before(ends), self.targets.held.rows, self.preprocessing)


def _targets(first_events: EventLog, rows: NDArray[np.intp], positive: NDArray[np.bool_], item_count: int) -> Targets:
    """The test targets of the users at `rows`."""
    held = one_a_user(held_out(first_events, 1, positive), seed=0)
    of_rows = select_targets(held, np.flatnonzero(np.isin(held.rows, rows)))
    return popularity_targets(first_events, of_rows, positive, item_count)


def _views(probe_users: _ProbeUsers, encoder: UserEncoder, progress: Progress) -> dict[str, ProbeVectors]:
    """The vectors of whole histories, halves and histories before the target, by kind."""
    whole, halves = probe_users.whole(), probe_users.halves()
    logs = (whole, *halves, probe_users.before_target())
    embedded = [encoder_vectors(encoder, log, progress) for log in logs]
    progress("SVD and hand-made vectors", 0, 0)
    by_kind: dict[str, list[NDArray[np.float64]]] = {kind: [vectors[kind] for vectors in embedded] for kind in _TRAINED}
    untrained: dict[str, Callable[[EventLog], NDArray[np.float64]]] = {
        SVD: ItemSvd(whole, len(probe_users.categories), _SEED),
        BY_HAND: HandMadeVectors(whole, probe_users.categories, probe_users.preprocessing),
    }
    by_kind |= {kind: [vectors_of(log) for log in logs] for kind, vectors_of in untrained.items()}
    both = _in_both(halves)
    return {
        kind: ProbeVectors(whole_vectors, (first, second), both, before_target)
        for kind, (whole_vectors, first, second, before_target) in by_kind.items()
    }


def _in_both(halves: tuple[EventLog, EventLog]) -> NDArray[np.bool_]:
    return (halves[0].features.lengths > 0) & (halves[1].features.lengths > 0)


def _stability(
    probe_users: _ProbeUsers, vectors: Mapping[str, ProbeVectors], other: Run, progress: Progress
) -> tuple[TrainingAgreement, ...]:
    """The agreement of the other run's embeddings of the same users with `vectors`."""
    other_users = _ProbeUsers.read(other.require("prepare"))
    if not other_users.log.users.equals(probe_users.log.users):
        raise RunError(f"The runs keep different users; prepare {other.path} with the settings of the probed run.")
    trained = other.require("train")
    encoder = UserEncoder.load(load_encoder(trained), trained)
    embedded: Vectors = encoder_vectors(encoder, other_users.whole(), progress)
    agreements: list[TrainingAgreement] = []
    for kind in _TRAINED:
        progress("two trainings", len(agreements), len(_TRAINED))
        pair = vectors[kind].whole, embedded[kind]
        agreement = {k: segments_agree(*pair, min(k, len(probe_users.rows))) for k in KS}
        agreements.append(TrainingAgreement(kind, neighbour_overlap(*pair, _NEIGHBOUR_SAMPLE, _SEED), agreement))
    return tuple(agreements)


def _check_same_log(run: Run, other: Run) -> None:
    other.require("train")
    if run.log_identity() != other.log_identity():
        raise RunError(f"{run.path} and {other.path} were trained on different logs; probe two runs of one log.")


def _without_nan(value: object) -> object:
    """The value with null for NaN, which JSON does not have."""
    if isinstance(value, dict):
        return {name: _without_nan(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value
