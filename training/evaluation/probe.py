"""Probe stage: what user embeddings are worth apart from the next item, beside vectors that need no training.

Labels and segments are judged on whole histories, as a release embeds them (labels are never trained on); hits on the
events before each test target. Vectors that need no training see the same events as the encoder's, and are not cut to
`max_length`.
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

from server.core.preprocessing import Preprocessing
from server.core.repository.layout import read_preprocessing
from training.data.sequences import (
    EventLog,
    held_out,
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
    ByHand,
    ItemSvd,
    Vectors,
    by_encoder,
)
from training.model.user_encoder import UserEncoder
from training.model.weights import load_encoder
from training.runs import Progress, Run, no_progress, write_atomically
from training.segments.quality import (
    NEIGHBOURS,
    SEEDS,
    SegmentQuality,
    Targets,
    VectorViews,
    hr_of,
    neighbour_overlap,
    segment_quality,
    segments_agree,
    targets_of,
)

KS = (8, 32)
USERS_MAX = 20_000
"""Of larger logs so many users are drawn."""

METRICS = "metrics.json"

_USERS_MIN = 20
_NEIGHBOUR_SAMPLE = 2_000
_SEED = 0
_TRAINED = (LAST, MEAN, BOTH, SEGMENT)
_KINDS = (*_TRAINED, SVD, BY_HAND)


@dataclass(frozen=True)
class LabelProbe:
    """A label and how well each kind of vector tells it."""

    label: str
    users: int
    classes: int
    majority: float
    by_kind: Mapping[str, Probe]


@dataclass(frozen=True)
class Stability:
    """How far two trainings agree on one kind of vector.

    `neighbours` is the share of the `NEIGHBOURS` nearest users in common; `segments`, by k, adjusted Rand indexes.
    """

    kind: str
    neighbours: float
    segments: Mapping[int, float]


@dataclass(frozen=True)
class ProbeResult:
    """What `probe_run` found. `global_hr` is HR@10 of global popularity on `asked` users, NaN without any."""

    users: int
    asked: int
    global_hr: float
    labels: tuple[LabelProbe, ...]
    segments: Mapping[str, tuple[SegmentQuality, ...]]
    stability: tuple[Stability, ...]
    notes: tuple[str, ...]

    def table(self) -> RenderableType:
        """Everything for rich to print."""
        parts: list[RenderableType] = [self._labels()] if self.labels else []
        parts.append(self._segments())
        parts += [self._stability()] if self.stability else []
        return Group(*parts, *self.notes)

    def figures(self) -> dict[str, float]:
        """Figures by name such as `probe/last/gender/auroc` and `segments/mean/8/halves`."""
        found = {"segments/popularity/hr@10": self.global_hr}
        for entry in self.labels:
            for kind, result in entry.by_kind.items():
                found |= {f"probe/{kind}/{entry.label}/{name}": value for name, value in asdict(result).items()}
        for kind, entries in self.segments.items():
            for quality in entries:
                figures = {"halves": quality.halves, "seeds": quality.seeds, "hr@10": quality.hr}
                found |= {f"segments/{kind}/{quality.k}/{name}": value for name, value in figures.items()}
        found |= {f"stability/{entry.kind}/neighbours": entry.neighbours for entry in self.stability}
        return {name: round(value, 6) for name, value in found.items() if math.isfinite(value)}

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
            "vectors", title=f"Segments, means over {SEEDS} seeds; popularity of all: HR@10 {self.global_hr:.4f}"
        )
        for name in ("k", "halves agree", "halves placed", "seeds agree", "smallest", "largest", "HR@10"):
            table.add_column(name, justify="right")
        for place in range(len(KS)):
            for kind in _KINDS:
                it = self.segments[kind][place]
                agreements = [f"{value:.3f}" for value in (it.halves, it.halves_placed, it.seeds)]
                table.add_row(kind, str(it.k), *agreements, f"{it.smallest:.1%}", f"{it.largest:.1%}", f"{it.hr:.4f}")
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
    """Judge the user embeddings of `run`, and how far those of `other`, trained on the same log, agree with them.

    Raises RunError where a stage is missing or the logs differ, LogError where users are too few.
    """
    trained, prepared = run.require("train"), run.require("prepare")
    if other:
        _check_same_log(run, other)
    with run.stage("probe") as stage:
        scene = _Scene.read(prepared)
        views = _views(scene, UserEncoder.load(load_encoder(trained), trained), progress)
        labels, remarks = scene.labels(prepared)
        probes = []
        for done, label in enumerate(labels):
            progress("labels", done, len(labels))
            by_kind = {kind: probe(views[kind].whole, label, _SEED) for kind in _KINDS}
            size = len(label.rows), int(label.classes.max()) + 1
            probes.append(LabelProbe(label.name, *size, label.majority, by_kind))
        segments: dict[str, tuple[SegmentQuality, ...]] = {}
        for kind in _KINDS:
            progress("segments", len(segments), len(_KINDS))
            segments[kind] = tuple(segment_quality(views[kind], scene.asked, k) for k in KS)
        asked = len(scene.asked.held.rows)
        result = ProbeResult(
            users=len(scene.rows),
            asked=asked,
            global_hr=scene.global_hr,
            labels=tuple(probes),
            segments=segments,
            stability=_stability(scene, views, other, progress) if other else (),
            notes=(*scene.notes, *remarks),
        )
        text = json.dumps(_without_nan(asdict(result)), ensure_ascii=False, indent=1)
        write_atomically(stage.directory / METRICS, text + "\n")
        stage.figures |= result.figures()
    return result


def segment_figures(run: Run, *, progress: Progress = no_progress) -> tuple[int, float, tuple[SegmentQuality, ...]]:
    """Of the vectors that a release makes segments of: users, HR@10 of global popularity, quality for each of `KS`.

    As `probe_run` does it, without other vectors, labels or a stage of the run.
    """
    trained = run.require("train")
    scene = _Scene.read(run.require("prepare"))
    encoder = UserEncoder.load(load_encoder(trained), trained)
    whole, halves, past = scene.whole(), scene.halves(), scene.past()
    one = [by_encoder(encoder, part, progress)[SEGMENT] for part in (whole, *halves, past)]
    views = VectorViews(one[0], (one[1], one[2]), _in_both(halves), one[3])
    return len(scene.rows), scene.global_hr, tuple(segment_quality(views, scene.asked, k) for k in KS)


@dataclass(frozen=True)
class _Scene:
    """The log of a run, in its two readings, and the users that are judged: `rows` (U,), ascending."""

    log: EventLog
    first: EventLog
    asked: Targets
    rows: NDArray[np.intp]
    preprocessing: Preprocessing
    categories: pl.Series

    @classmethod
    def read(cls, prepared: Path) -> "_Scene":
        preprocessing = read_preprocessing(prepared)
        items = pl.read_parquet(prepared / "items.parquet")
        log, first = read_log(prepared, preprocessing), read_first_events(prepared, preprocessing)
        everyone = np.flatnonzero(log.features.lengths > 1)
        if len(everyone) < _USERS_MIN:
            raise LogError(f"Probes need {_USERS_MIN} users with two events; this log has {len(everyone)}.")
        rows = np.sort(np.random.default_rng(_SEED).permutation(everyone)[:USERS_MAX])
        asked = _asked(first, rows, positive_actions(preprocessing), len(items))
        return cls(log, first, asked, rows, preprocessing, items["category"])

    @property
    def notes(self) -> list[str]:
        left = int((self.log.features.lengths > 1).sum()) - len(self.rows)
        return [f"{left:,} users left out: {USERS_MAX:,} are drawn"] if left else []

    @property
    def global_hr(self) -> float:
        asked = len(self.asked.held.rows)
        return hr_of(self.asked, np.zeros(asked, np.intp)) if asked else math.nan

    def labels(self, prepared: Path) -> tuple[list[Label], list[str]]:
        """Labels of `users.parquet`, and remarks on them."""
        path = prepared / "users.parquet"
        if not path.is_file():
            return [], ["no labels: the run was prepared without a user table"]
        return user_labels(pl.read_parquet(path), self.log.users.gather(self.rows))

    def whole(self) -> EventLog:
        """All events."""
        return self.log.subset(np.ones(len(self.log.timestamp), np.bool_), self.rows, self.preprocessing)

    def halves(self) -> tuple[EventLog, EventLog]:
        """Two halves of each user's events, drawn at random; of an odd number the second has one more."""
        one = random_half(self.log, _SEED)
        first, second = (self.log.subset(half, self.rows, self.preprocessing) for half in (one, ~one))
        return first, second

    def past(self) -> EventLog:
        """The events before each test target, of the users who have one."""
        ends = np.zeros(len(self.first.users), np.int64)
        ends[self.asked.held.rows] = self.asked.held.ends
        return self.first.subset(self.first.before(ends), self.asked.held.rows, self.preprocessing)


def _asked(first: EventLog, rows: NDArray[np.intp], positive: NDArray[np.bool_], item_count: int) -> Targets:
    held = held_out(first, 1, positive)
    return targets_of(first, select_targets(held, np.flatnonzero(np.isin(held.rows, rows))), positive, item_count)


def _views(scene: _Scene, encoder: UserEncoder, progress: Progress) -> dict[str, VectorViews]:
    """Each kind of vector of the whole histories, of their halves and of the pasts."""
    whole, halves, past = scene.whole(), scene.halves(), scene.past()
    parts = (whole, *halves, past)
    embedded = [by_encoder(encoder, part, progress) for part in parts]
    progress("items and figures by hand", 0, 0)
    by_kind: dict[str, list[NDArray[np.float64]]] = {kind: [one[kind] for one in embedded] for kind in _TRAINED}
    untrained: dict[str, Callable[[EventLog], NDArray[np.float64]]] = {
        SVD: ItemSvd(whole, len(scene.categories), _SEED),
        BY_HAND: ByHand(whole, scene.categories, scene.preprocessing),
    }
    by_kind |= {kind: [vectors(part) for part in parts] for kind, vectors in untrained.items()}
    both = _in_both(halves)
    return {kind: VectorViews(made[0], (made[1], made[2]), both, made[3]) for kind, made in by_kind.items()}


def _in_both(halves: tuple[EventLog, EventLog]) -> NDArray[np.bool_]:
    return (halves[0].features.lengths > 0) & (halves[1].features.lengths > 0)


def _stability(
    scene: _Scene, views: Mapping[str, VectorViews], other: Run, progress: Progress
) -> tuple[Stability, ...]:
    """How the other run's embeddings of the same users agree with `views`."""
    theirs = _Scene.read(other.require("prepare"))
    if not theirs.log.users.equals(scene.log.users):
        raise RunError(f"The runs keep different users; prepare {other.path} as the other one was.")
    trained = other.require("train")
    encoder = UserEncoder.load(load_encoder(trained), trained)
    embedded: Vectors = by_encoder(encoder, theirs.whole(), progress)
    found: list[Stability] = []
    for kind in _TRAINED:
        progress("two trainings", len(found), len(_TRAINED))
        pair = views[kind].whole, embedded[kind]
        agreement = {k: segments_agree(*pair, min(k, len(scene.rows))) for k in KS}
        found.append(Stability(kind, neighbour_overlap(*pair, _NEIGHBOUR_SAMPLE, _SEED), agreement))
    return tuple(found)


def _check_same_log(run: Run, other: Run) -> None:
    other.require("train")
    logs = [one.record()["data"]["events"] for one in (run, other)]
    if logs[0]["sha256"] != logs[1]["sha256"]:
        raise RunError(f"{run.path} and {other.path} were trained on different logs; probe two runs of one log.")


def _without_nan(value: object) -> object:
    """NaN is no JSON: null in its place."""
    if isinstance(value, dict):
        return {name: _without_nan(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(one) for one in value]
    return None if isinstance(value, float) and math.isnan(value) else value
