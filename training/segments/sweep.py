"""Chooses the number of segments k: fits and measures a range of k, and applies one rule.

The rule: the largest (lift - 1) times stability, that is the gain of segment popularity over global popularity times
the agreement of repeated fits. More segments predict better and are less stable; the product balances both. The
silhouette replaces the gain if no user has a validation target, or if no k predicts better than global popularity.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Literal, Self

import numpy as np
from pydantic import BeforeValidator, Field, ValidationError
from rich.table import Table

from server.core.frozen_model import FrozenModel
from server.core.repository.layout import read_preprocessing
from training.config import SegmentSettings
from training.data.sequences import read_log
from training.errors import ConfigError
from training.kmeans.engines import choose_engine
from training.model.onnx_inference import embed
from training.runs import Progress, Run, no_progress, write_atomically
from training.segments.measures import (
    FITTED_USERS,
    ClusterEvaluator,
    Fitter,
    Lift,
    SegmentStability,
    assign_clusters,
    halves_agree,
    lift,
    stability,
)
from training.segments.vector_sets import VectorSets, VectorSetsBuilder

K_SWEEP = "k_sweep.json"

USERS_PER_SEGMENT = 10
"""A sweep tries only numbers of segments with at least this many users per segment on average."""

_EACH_UP_TO = 8
_STEP = 1.25
"""A sweep tries every k up to `_EACH_UP_TO`; each larger k is about `_STEP` times the k before."""


def _to_nan(value: object) -> object:
    return math.nan if value is None else value


Figure = Annotated[float, BeforeValidator(_to_nan)]
"""A float; NaN, null in JSON, if the log cannot give the figure."""


class KRow(FrozenModel):
    """The figures of one k, defined in `training.segments.measures`."""

    k: int
    smallest: int = Field(description="Users of the smallest segment.")
    inertia: Figure
    mean_distance: Figure
    silhouette: Figure
    silhouette_error: Figure
    davies_bouldin: Figure
    calinski_harabasz: Figure
    stability: Figure
    halves: Figure = Field(description="Adjusted Rand index between segments of two half histories.")
    hr: Figure = Field(description="HR@10 of segment popularity on validation targets.")
    lift: Figure = Field(description="HR@10 of segment popularity / HR@10 of global popularity.")
    lift_error: Figure


class KSweep(FrozenModel):
    """A sweep over k: the figures of each k, the chosen k and the reason.

    `of` is the time when the encoder of the embeddings was exported.
    """

    of: str
    users: int
    asked: int = Field(description="Users whose validation targets measure the lift; 0 without any.")
    rows: tuple[KRow, ...]
    chosen: int
    reason: str

    def stability_notes(self) -> list[str]:
        """Sentences that warn if the segments of the chosen k are not stable."""
        chosen = (row for row in self.rows if row.k == self.chosen)
        return [note for row in chosen for note in SegmentStability(row.stability, row.halves).notes()]

    def write(self, directory: Path) -> None:
        write_atomically(directory / K_SWEEP, self.model_dump_json(indent=1) + "\n")

    def table(self) -> Table:
        """All rows, with a mark at the chosen row."""
        title = f"How many segments: {self.users:,} users, {self.asked:,} with a validation target"
        table = Table(title=title, caption=_CAPTION)
        for name in _COLUMNS:
            table.add_column(name, justify="right")
        for row in self.rows:
            chosen = row.k == self.chosen
            table.add_row(*_cells(row, chosen), style="bold" if chosen else "")
        return table


_COLUMNS = (
    *("k", "inertia", "distance", "silhouette", "Davies–B.", "Calinski–H.", "stability", "halves", "HR@10", "lift"),
    "smallest",
)
_CAPTION = (
    "stability, halves: adjusted Rand index of fits on resampled users, and of two halves of users' events. "
    "HR@10: of segments' popular items. lift: that HR@10 / HR@10 of globally popular items. ±: standard error."
)


def _cells(row: KRow, chosen: bool) -> list[str]:
    return [
        f"{row.k} ←" if chosen else f"{row.k}  ",
        f"{row.inertia:,.4g}",
        f"{row.mean_distance:.3f}",
        f"{row.silhouette:.3f} ± {row.silhouette_error:.3f}",
        f"{row.davies_bouldin:.3f}",
        f"{row.calinski_harabasz:,.1f}",
        f"{row.stability:.3f}",
        f"{row.halves:.3f}",
        f"{row.hr:.4f}",
        f"{row.lift:.2f} ± {row.lift_error:.2f}",
        f"{row.smallest:,}",
    ]


def candidates(k_range: tuple[int, int], user_count: int, min_segment_size: int) -> list[int]:
    """The ks to try: inside `k_range`, with at least `min_segment_size` and `USERS_PER_SEGMENT` users on average."""
    k, k_max = k_range[0], min(k_range[1], user_count // max(min_segment_size, USERS_PER_SEGMENT))
    ks = []
    while k <= k_max:
        ks.append(k)
        k = k + 1 if k < _EACH_UP_TO else math.ceil(k * _STEP)
    return ks


def choose_k(rows: Sequence[KRow]) -> tuple[int, str]:
    """The k with the largest product of gain and stability, and a sentence that explains it; the smaller k of equals.

    `rows` are ordered by k.
    """
    gains = [row.stability * (row.lift - 1.0) for row in rows]
    if any(gain > 0 for gain in gains):
        best = rows[int(np.nanargmax(gains))]
        return best.k, (
            f"{_segments(best.k)}, since their popular items predict a user's next item {best.lift:.2f} "
            f"(± {best.lift_error:.2f}) times as often as globally popular items, and fits on resampled users agree by "
            f"{best.stability:.2f} (adjusted Rand index): the gain times the agreement, {np.nanmax(gains):.2f}, is the "
            f"largest {_among(rows)}."
        )
    scores = [np.nan_to_num(row.stability * row.silhouette, nan=-np.inf) for row in rows]
    best = rows[int(np.argmax(scores))]
    if math.isnan(best.lift):
        reason = "no user has a validation target"
    else:
        reason = "no k predicts better than globally popular items"
    return best.k, (
        f"{_segments(best.k)}, by silhouette, since {reason}: silhouette {best.silhouette:.2f} times the agreement of "
        f"fits on resampled users, {best.stability:.2f} (adjusted Rand index), is the largest {_among(rows)}."
    )


def _segments(k: int) -> str:
    return "1 segment" if k == 1 else f"{k} segments"


def _among(rows: Sequence[KRow]) -> str:
    return f"of the {len(rows)} k tried from {rows[0].k} to {rows[-1].k}" if len(rows) > 1 else "of the only k tried"


@dataclass(frozen=True, slots=True)
class KLimits:
    """The limits on k: `k_range`, and the least number of users per segment."""

    k_range: tuple[int, int]
    min_segment_size: int

    @classmethod
    def of(cls, settings: SegmentSettings) -> Self:
        return cls(settings.k_range, settings.min_segment_size)


def sweep(
    vectors: VectorSets, limits: KLimits, fitter: Fitter, *, exported_at: str = "", progress: Progress = no_progress
) -> KSweep:
    """Measure each k and choose one.

    Centroids are fitted on at most `FITTED_USERS` users and all users are assigned. The memory used beside the vectors
    is bounded.
    """
    users = len(vectors.points)
    ks = candidates(limits.k_range, users, limits.min_segment_size)
    evaluator = ClusterEvaluator(vectors.points, fitter)
    rows = []
    for done, k in enumerate(ks):
        progress(f"trying {k} segments", done, len(ks))
        rows.append(_row(vectors, k, fitter, evaluator))
    if rows:
        chosen, reason = choose_k(rows)
    else:
        chosen, reason = _too_few(users, limits)
    target_count = len(vectors.validation.points) if vectors.validation else 0
    return KSweep(of=exported_at, users=users, asked=target_count, rows=tuple(rows), chosen=chosen, reason=reason)


def _row(vectors: VectorSets, k: int, fitter: Fitter, evaluator: ClusterEvaluator) -> KRow:
    centroids = fitter.fit(vectors.points[fitter.sample_rows(len(vectors.points), FITTED_USERS)], k).centroids
    assignment = assign_clusters(vectors.points, centroids)
    k_lift = lift(vectors.validation, k, fitter) if vectors.validation else Lift(math.nan, math.nan, math.nan)
    return KRow(
        k=k,
        smallest=int(np.bincount(assignment.clusters, minlength=k).min()),
        **asdict(evaluator.evaluate(assignment)),
        stability=stability(vectors.points, k, fitter),
        halves=halves_agree(vectors.halves, centroids) if vectors.halves else math.nan,
        hr=k_lift.hr,
        lift=k_lift.lift,
        lift_error=k_lift.error,
    )


def _too_few(users: int, limits: KLimits) -> tuple[int, str]:
    size = max(limits.min_segment_size, USERS_PER_SEGMENT)
    k_max = max(1, users // size)
    return k_max, (
        f"{_segments(k_max)}, since {users:,} users are too few for {limits.k_range[0]} segments (the start of "
        f"k_range) with {size} users each."
    )


def checked_range(k_range: tuple[int, int] | None) -> tuple[int, int] | None:
    """The range of `--k-range`, unchanged. Raises ConfigError for a range that the configuration refuses too."""
    if k_range is None:
        return None
    try:
        return SegmentSettings(k_range=k_range).k_range
    except ValidationError as error:
        first, last = k_range
        raise ConfigError(f"--k-range takes two numbers from 2 on, the smaller first, not {first} {last}.") from error


def sweep_run(run: Run, k_range: tuple[int, int] | None = None, *, progress: Progress = no_progress) -> KSweep:
    """Sweep over an exported run's users, and write the sweep to its `segment/`; `k_range` overrides the configuration.

    Raises RunError if the run is not exported.
    """
    prepared, exported = run.require("prepare"), run.require("export")
    settings = run.config().segment
    fitter = Fitter(choose_engine(settings.backend), settings.seed)
    preprocessing = read_preprocessing(exported)
    log = read_log(prepared, preprocessing)
    item_embeddings = np.load(exported / "item_embeddings.npy", allow_pickle=False, mmap_mode="r")
    embed_histories = partial(embed, exported / "model.onnx", max_length=preprocessing.max_length)
    with run.stage("sweep", within="segment") as stage:
        progress("embedding users", 0, 0)
        builder = VectorSetsBuilder(prepared, preprocessing, embed_histories, item_embeddings.shape[1], settings.seed)
        vectors = builder.build(log, embed_histories(log.features, progress=progress), len(item_embeddings))
        limits = KLimits(k_range or settings.k_range, settings.min_segment_size)
        result = sweep(vectors, limits, fitter, exported_at=_export_time(run), progress=progress)
        result.write(stage.directory)
        stage.figures |= {"k": result.chosen, "users": result.users, "asked": result.asked}
    return result


def resolve_k(
    run: Run, k: int | Literal["auto"], vectors: VectorSets, fitter: Fitter, progress: Progress = no_progress
) -> tuple[int, list[str]]:
    """`k` itself; for "auto" the k of a sweep, which is written to the run's `segment/`, and the reason."""
    if k != "auto":
        return k, []
    limits = KLimits.of(run.config().segment)
    result = sweep(vectors, limits, fitter, exported_at=_export_time(run), progress=progress)
    result.write(run.path / "segment")
    return result.chosen, [result.reason]


def _export_time(run: Run) -> str:
    """The time when the run's encoder was exported, as text."""
    return str(run.record()["stages"]["export"]["ended"])


def read_sweep(run: Run) -> KSweep | None:
    """The sweep of the run's current encoder; None without one."""
    path = run.path / "segment" / K_SWEEP
    if not path.is_file():
        return None
    result = KSweep.model_validate_json(path.read_bytes())
    return result if result.of == _export_time(run) else None
