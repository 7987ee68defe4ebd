"""Choosing the number of segments: a range of k is fitted and measured, and a plain rule says which one and why.

The rule: the largest lasting gain, which is the gain of segment popularity over global popularity (lift - 1) times
stability. More segments foretell more, and hold together less; the product has its top where both still do. Where
nobody can be asked, or no k foretells better than global popularity, silhouette takes the place of the gain.
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
    Fitter,
    Lift,
    Shapes,
    Steadiness,
    assign_clusters,
    halves_agree,
    lift,
    stability,
)
from training.segments.views import UserViews, ViewBuilder

K_SWEEP = "k_sweep.json"

USERS_PER_SEGMENT = 10
"""A log with fewer users a segment than this gets fewer segments."""

_EACH_UP_TO = 8
_STEP = 1.25
"""Every k up to `_EACH_UP_TO` is tried, from there each about so many times the one before: three in a doubling."""


def _to_nan(value: object) -> object:
    return math.nan if value is None else value


Figure = Annotated[float, BeforeValidator(_to_nan)]
"""A float that may be NaN, for what cannot be told; null in JSON."""


class KRow(FrozenModel):
    """Figures of one k, as in `training.segments.measures`; NaN (null in the file) where the log cannot tell."""

    k: int
    smallest: int = Field(description="Users of the smallest segment.")
    inertia: Figure
    mean_distance: Figure
    silhouette: Figure
    silhouette_error: Figure
    davies_bouldin: Figure
    calinski_harabasz: Figure
    stability: Figure
    halves: Figure = Field(description="Adjusted Rand between segments of two random halves of users' events.")
    hr: Figure = Field(description="HR@10 of segment popularity on validation targets.")
    lift: Figure = Field(description="The same over that of global popularity.")
    lift_error: Figure


class KSweep(FrozenModel):
    """A sweep over k, what it chose and why. `of` is when the encoder that made the embeddings was exported."""

    of: str
    users: int
    asked: int = Field(description="Users whose validation targets lift is measured on; 0 without any.")
    rows: tuple[KRow, ...]
    chosen: int
    reason: str

    def doubts(self) -> list[str]:
        """What people should know of the chosen k, in sentences: that its segments are not steady."""
        return [
            note for row in self.rows if row.k == self.chosen for note in Steadiness(row.stability, row.halves).notes()
        ]

    def write(self, directory: Path) -> None:
        """Write it as `K_SWEEP`."""
        write_atomically(directory / K_SWEEP, self.model_dump_json(indent=1) + "\n")

    def table(self) -> Table:
        """All rows, the chosen one marked."""
        table = Table(title=f"How many segments: {self.users:,} users, {self.asked:,} asked", caption=_CAPTION)
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
    "stability, halves: adjusted Rand of fits on resampled users, of two halves of users' events. "
    "HR@10, lift: of segments' popular items, and over everyone's. ±: standard error."
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
    """The ks to try: inside `k_range`, and few enough for segments of `min_segment_size` users, and 10, on average."""
    least, most = k_range[0], min(k_range[1], user_count // max(min_segment_size, USERS_PER_SEGMENT))
    found, k = [], least
    while k <= most:
        found.append(k)
        k = k + 1 if k < _EACH_UP_TO else math.ceil(k * _STEP)
    return found


def choose_k(rows: Sequence[KRow]) -> tuple[int, str]:
    """The k of the largest lasting gain, the smaller of equals, and why, in a sentence. `rows` are by rising k."""
    gains = [row.stability * (row.lift - 1.0) for row in rows]
    if any(gain > 0 for gain in gains):
        best = rows[int(np.nanargmax(gains))]
        return best.k, (
            f"{_segments(best.k)}, since their popular items foretell a user's next item {best.lift:.2f} "
            f"(± {best.lift_error:.2f}) times as often as those of everyone, and fits on resampled users agree by "
            f"{best.stability:.2f} (adjusted Rand): the gain times the agreement, {np.nanmax(gains):.2f}, is the "
            f"largest {_among(rows)}."
        )
    forms = [np.nan_to_num(row.stability * row.silhouette, nan=-np.inf) for row in rows]
    best = rows[int(np.argmax(forms))]
    why = "nobody can be asked for a next item" if math.isnan(best.lift) else "no k foretells more than popular items"
    return best.k, (
        f"{_segments(best.k)}, by form alone, since {why}: silhouette {best.silhouette:.2f} times the agreement of "
        f"fits on resampled users, {best.stability:.2f} (adjusted Rand), is the largest {_among(rows)}."
    )


def _segments(k: int) -> str:
    return "1 segment" if k == 1 else f"{k} segments"


def _among(rows: Sequence[KRow]) -> str:
    return f"of the {len(rows)} tried from {rows[0].k} to {rows[-1].k}" if len(rows) > 1 else "there is"


@dataclass(frozen=True, slots=True)
class KLimits:
    """Between which ks to choose."""

    k_range: tuple[int, int]
    min_segment_size: int

    @classmethod
    def of(cls, settings: SegmentSettings) -> Self:
        """Those of a configuration."""
        return cls(settings.k_range, settings.min_segment_size)


def sweep(
    scene: UserViews, limits: KLimits, fitter: Fitter, *, of: str = "", progress: Progress = no_progress
) -> KSweep:
    """Measure each k and choose one.

    Centroids are fitted on at most `FITTED_USERS`; everybody is placed. Memory beyond `points` is bounded.
    """
    users = len(scene.points)
    ks = candidates(limits.k_range, users, limits.min_segment_size)
    shapes = Shapes(scene.points, fitter)
    rows = []
    for done, k in enumerate(ks):
        progress(f"trying {k} segments", done, len(ks))
        rows.append(_row(scene, k, fitter, shapes))
    if rows:
        chosen, reason = choose_k(rows)
    else:
        chosen, reason = _too_few(users, limits)
    asked = len(scene.past.points) if scene.past else 0
    return KSweep(of=of, users=users, asked=asked, rows=tuple(rows), chosen=chosen, reason=reason)


def _row(scene: UserViews, k: int, fitter: Fitter, shapes: Shapes) -> KRow:
    centroids = fitter.fit(scene.points[fitter.drawn(len(scene.points), FITTED_USERS)], k).centroids
    placed = assign_clusters(scene.points, centroids)
    found = lift(scene.past, k, fitter) if scene.past else Lift(math.nan, math.nan, math.nan)
    return KRow(
        k=k,
        smallest=int(np.bincount(placed.clusters, minlength=k).min()),
        **asdict(shapes.of(placed)),
        stability=stability(scene.points, k, fitter),
        halves=halves_agree(scene.halves, centroids) if scene.halves else math.nan,
        hr=found.hr,
        lift=found.lift,
        lift_error=found.error,
    )


def _too_few(users: int, limits: KLimits) -> tuple[int, str]:
    size = max(limits.min_segment_size, USERS_PER_SEGMENT)
    most = max(1, users // size)
    return most, (
        f"{_segments(most)}, since {users:,} users make no more of {size} each (min_segment_size), and k_range begins "
        f"at {limits.k_range[0]}."
    )


def checked_range(k_range: tuple[int, int] | None) -> tuple[int, int] | None:
    """The range as it is given; raises ConfigError for what the configuration would refuse too."""
    if k_range is None:
        return None
    try:
        return SegmentSettings(k_range=k_range).k_range
    except ValidationError as error:
        least, most = k_range
        raise ConfigError(f"--k-range is two numbers from 2 on, the smaller first, not {least} {most}.") from error


def sweep_run(run: Run, k_range: tuple[int, int] | None = None, *, progress: Progress = no_progress) -> KSweep:
    """Sweep over an exported run's users, and keep what came out in its `segment/`; raises RunError before `export`.

    `k_range` overrides the run's configuration.
    """
    prepared, exported = run.require("prepare"), run.require("export")
    settings = run.config().segment
    fitter = Fitter(choose_engine(settings.backend), settings.seed)
    preprocessing = read_preprocessing(exported)
    log = read_log(prepared, preprocessing)
    item_embeddings = np.load(exported / "item_embeddings.npy", allow_pickle=False, mmap_mode="r")
    encode = partial(embed, exported / "model.onnx", max_length=preprocessing.max_length)
    with run.stage("sweep", within="segment") as stage:
        progress("embedding users", 0, 0)
        builder = ViewBuilder(prepared, preprocessing, encode, item_embeddings.shape[1], settings.seed)
        scene = builder.views(log, encode(log.features, progress=progress), len(item_embeddings))
        limits = KLimits(k_range or settings.k_range, settings.min_segment_size)
        found = sweep(scene, limits, fitter, of=exported_at(run), progress=progress)
        found.write(stage.directory)
        stage.figures |= {"k": found.chosen, "users": found.users, "asked": found.asked}
    return found


def asked_k(
    run: Run, asked: int | Literal["auto"], scene: UserViews, fitter: Fitter, progress: Progress = no_progress
) -> tuple[int, list[str]]:
    """The k that is asked for; for auto that of a sweep, which is written into the run's `segment/`, and why."""
    if asked != "auto":
        return asked, []
    found = sweep(scene, KLimits.of(run.config().segment), fitter, of=exported_at(run), progress=progress)
    found.write(run.path / "segment")
    return found.chosen, [found.reason]


def exported_at(run: Run) -> str:
    """When the encoder was exported: what a sweep belongs to."""
    return str(run.record()["stages"]["export"]["ended"])


def read_sweep(run: Run) -> KSweep | None:
    """The sweep of the run's encoder as it is now; None without one."""
    path = run.path / "segment" / K_SWEEP
    if not path.is_file():
        return None
    found = KSweep.model_validate_json(path.read_bytes())
    return found if found.of == exported_at(run) else None
