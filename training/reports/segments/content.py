"""The content of a run's report, read from the files of the run's stages.

The content names no user and leaves out segments, flows and slices of fewer users than the run's `min_segment_size`. A
missing part is None, and `Content.absent` holds a sentence with the reason.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from server.core.errors import DamagedRelease
from server.core.figures import ENCODER, HYBRID, POPULAR, STRATEGIES, Figure, find
from server.core.profiles import Migration, SegmentItem, SegmentProfile
from server.core.release import MIGRATION
from server.core.repository.layout import MODEL_NAME
from server.core.repository.segment_notes import SegmentNote, SegmentNotes, read_segment_notes
from server.core.segments import normalised, segment_part
from training.config import ReportSettings
from training.data.account import Account
from training.data.origin import Origin
from training.errors import RunError
from training.evaluation.results import PRODUCT, RANKS, EvaluateResult, figures_by_user
from training.metrics import bootstrap_interval
from training.ranking.served import SERVED_NDCG
from training.reports.segments.people import People, people_by_segment, read_sources
from training.reports.segments.sweep_charts import K_SWEEP, Sweep, read_sweep_chart
from training.repository import read_trusted
from training.runs import CURVES, Run
from training.segments.result import Segmentation
from training.segments.trust import SegmentTrust

MAP_USERS = 5_000
"""Largest number of users on the map; more users are sampled."""

MOST_SEGMENTS = 56
"""Number of segments that colours and shapes can distinguish; only the largest segments are shown."""

_SHOWN_ITEMS = 6


@dataclass(frozen=True, slots=True)
class Item:
    """An item of a segment: its title, and the figures of the profile's `SegmentItem`."""

    title: str
    user_share: float
    lift: float
    lift_low: float


@dataclass(frozen=True, slots=True)
class Card:
    """A segment: its profile, its items, the facts of its users, what people say about it, and its trust, if known.

    `top_items` are the first ones by share, `particular_items` by the lower bound of the lift.
    """

    profile: SegmentProfile
    top_items: tuple[Item, ...]
    particular_items: tuple[Item, ...]
    people: People = field(default_factory=People)
    note: SegmentNote = field(default_factory=SegmentNote)
    trust: SegmentTrust | None = None

    @property
    def name(self) -> str:
        return display_name(self.profile)


@dataclass(frozen=True, slots=True)
class UserMap:
    """A sample of N users on the first two principal components: `points` (N, 2) and `segment_ids` (N,).

    `explained` is the share of the sample's variance on each axis; `user_count` is the number of all users.
    """

    points: NDArray[np.float64]
    segment_ids: NDArray[np.int64]
    explained: tuple[float, float]
    user_count: int


@dataclass(frozen=True, slots=True)
class SegmentSlice:
    """The test users of a segment: their number, and HR@10 and NDCG@10 with 95 % intervals."""

    name: str
    segment_id: int
    users: int
    hr: float
    hr_interval: tuple[float, float]
    ndcg: float
    ndcg_interval: tuple[float, float]


@dataclass(frozen=True, slots=True)
class Measured:
    """HR@10 and NDCG@10 of one method over `users` test users; `method` is its name in `server.core.figures`."""

    method: str
    users: int
    hr: float
    ndcg: float


@dataclass(frozen=True, slots=True)
class Quality:
    """Quality under one protocol: each method over all users, and `overall` by segment, in the order of the cards.

    The methods are the strategies of the release, or the encoder if strategies were not measured, and the rules.
    """

    protocol: str
    methods: tuple[Measured, ...]
    slices: tuple[SegmentSlice, ...]

    @property
    def overall(self) -> Measured:
        """What the release serves, the hybrid; the encoder if strategies were not measured."""
        return self._named(HYBRID) or next(one for one in self.methods if one.method == ENCODER)

    @property
    def popular(self) -> Measured | None:
        """The list of popular items, by the strategy or else by the rule; None if neither was measured."""
        return self._named(POPULAR) or next((one for one in self.methods if one.method.startswith("popularity")), None)

    def _named(self, method: str) -> Measured | None:
        return next((one for one in self.methods if one.method == method), None)


@dataclass(frozen=True, slots=True)
class Moves:
    """The migration from the release before; `previous` are that release's profiles, empty if it is missing."""

    migration: Migration
    previous: tuple[SegmentProfile, ...]


@dataclass(frozen=True)
class Content:
    """The content of a report. `cards` are sorted by size, the largest first; `user_count` is all users of the run."""

    run_id: str
    segmented: datetime
    figures: Mapping[str, Any]
    segmentation: Segmentation
    min_segment_size: int
    user_count: int
    cards: tuple[Card, ...]
    user_map: UserMap
    account: Account
    origin: Origin
    settings: ReportSettings
    out_of_time: bool = False
    sweep: Sweep | None = None
    moves: Moves | None = None
    quality: Quality | None = None
    curves: tuple[Mapping[str, float], ...] = ()
    absent: Mapping[str, str] = field(default_factory=dict)


def display_name(profile: SegmentProfile) -> str:
    """A segment's number and label."""
    return f"{profile.segment_id} {profile.label}"


def read_content(run: Run, repository: Path, settings: ReportSettings | None = None) -> Content:
    """Read the files of the run's stages, and the release before and the names of segments from `repository`.

    `settings` take the place of those of the run. Raises RunError if the segment stage is not done.
    """
    prepared, segmented = run.require("prepare"), run.require("segment")
    settings = settings or run.config().report
    notes = read_segment_notes(repository)
    segmentation = Segmentation.read(segmented)
    segmentation = segmentation.model_copy(update={"profiles": notes.named(segmentation.profiles)})
    least = run.config().segment.min_segment_size
    shown = _shown(segmentation.profiles, least)
    absent: dict[str, str] = {}
    parts: dict[str, Any] = {}
    readers: Mapping[str, Callable[[], Any]] = {
        "sweep": lambda: _sweep(run, segmented),
        "moves": lambda: _moves(segmented, segmentation, repository, least, notes),
        "quality": lambda: _quality(run, segmented, segmentation, shown, least),
        "curves": lambda: _curves(run.require("train")),
    }
    for name, read in readers.items():
        try:
            parts[name] = read()
        except _AbsentError as missing:
            absent[name] = str(missing)
    return Content(
        run_id=run.path.name,
        segmented=datetime.fromisoformat(run.record()["stages"]["segment"]["ended"]),
        figures=run.figures("prepare"),
        segmentation=segmentation,
        min_segment_size=least,
        user_count=sum(profile.user_count for profile in segmentation.profiles),
        cards=_cards(run, segmentation, shown, notes, settings.time_zone),
        user_map=_user_map(run, segmented, shown),
        account=Account.model_validate_json((prepared / "account.json").read_bytes()),
        origin=Origin.of(run, prepared),
        settings=settings,
        out_of_time=run.figures("train").get("stopped") == "time",
        absent=absent,
        **parts,
    )


class _AbsentError(Exception):
    """A part of the report is missing; the text is the reason, a sentence."""


def _shown(profiles: Sequence[SegmentProfile], least: int) -> tuple[SegmentProfile, ...]:
    """The profiles of at least `least` users, the largest first, at most `MOST_SEGMENTS`."""
    large = [profile for profile in profiles if profile.user_count >= least]
    return tuple(sorted(large, key=lambda profile: (-profile.user_count, profile.segment_id))[:MOST_SEGMENTS])


def _cards(
    run: Run, segmentation: Segmentation, shown: Sequence[SegmentProfile], notes: SegmentNotes, zone: str
) -> tuple[Card, ...]:
    prepared, segmented = run.require("prepare"), run.require("segment")
    title = pl.coalesce(pl.when(pl.col("title") != "").then("title"), "item_id")
    catalogue = pl.read_parquet(segmented / "items.parquet", columns=["item_id", "title"]).select("item_id", title)
    titles = dict(catalogue.iter_rows())
    has_clock, least = bool(run.figures("prepare")["has_clock"]), run.config().segment.min_item_users
    people = people_by_segment(read_sources(prepared, segmented, titles, has_clock, zone, least))
    trust = {one.segment_id: one for one in segmentation.trust}
    return tuple(
        Card(
            _local(profile, people.get(profile.segment_id, People()), zone),
            _items(profile.top_items, titles),
            _items(profile.particular_items, titles),
            people.get(profile.segment_id, People()),
            notes.segments.get(profile.segment_id, SegmentNote()),
            trust.get(profile.segment_id),
        )
        for profile in shown
    )


def _local(profile: SegmentProfile, people: People, zone: str) -> SegmentProfile:
    """The profile with the hours and weekdays of the time zone; those of the release are UTC."""
    if zone == "UTC" or not profile.hours:
        return profile
    return profile.model_copy(update={"hours": people.hours, "weekdays": people.weekdays})


def _items(listed: Sequence[SegmentItem], titles: Mapping[str, str]) -> tuple[Item, ...]:
    """The first items of a list; of items with one title, such as sizes of one product, the first."""
    by_title: dict[str, SegmentItem] = {}
    for item in listed:
        by_title.setdefault(titles[item.item_id], item)
    shown = list(by_title.items())[:_SHOWN_ITEMS]
    return tuple(Item(title, item.user_share, item.lift, item.lift_low) for title, item in shown)


def _user_map(run: Run, segmented: Path, shown: Sequence[SegmentProfile]) -> UserMap:
    """A sample of users of the shown segments, on the principal components of the clustered vectors."""
    from sklearn.decomposition import PCA

    segment_ids = pl.read_parquet(segmented / "assignments.parquet", columns=["segment_id"])["segment_id"].to_numpy()
    shown_rows = np.flatnonzero(np.isin(segment_ids, [profile.segment_id for profile in shown]))
    rows = np.sort(np.random.default_rng(0).permutation(shown_rows)[:MAP_USERS])
    embeddings = np.load(segmented / "user_embeddings.npy", mmap_mode="r", allow_pickle=False)
    items = np.load(run.path / "export" / "item_embeddings.npy", mmap_mode="r", allow_pickle=False)
    points = normalised(segment_part(np.array(embeddings[rows]), items.shape[1]))
    axes = PCA(2, svd_solver="full").fit(points) if min(points.shape) >= 2 else None
    if axes is None or not axes.explained_variance_.any():
        return UserMap(np.zeros((len(rows), 2)), segment_ids[rows], (0.0, 0.0), len(segment_ids))
    first, second = axes.explained_variance_ratio_.tolist()
    return UserMap(axes.transform(points), segment_ids[rows], (first, second), len(segment_ids))


def _sweep(run: Run, segmented: Path) -> Sweep:
    path = segmented / K_SWEEP
    if not path.is_file():
        raise _AbsentError("The number of segments was given, not chosen; `--k auto` compares several numbers.")
    sweep = read_sweep_chart(path)
    if sweep.of != run.record()["stages"]["export"]["ended"]:
        raise _AbsentError("Numbers of segments were compared for an earlier encoder; `--k auto` compares them again.")
    return sweep


def _curves(trained: Path) -> tuple[Mapping[str, float], ...]:
    """The figures of each epoch."""
    path = trained / CURVES
    if not path.is_file():
        raise _AbsentError("This run was made from other runs, so it has no training curves of its own.")
    return tuple(json.loads(path.read_text(encoding="utf-8")))


def _moves(segmented: Path, segmentation: Segmentation, repository: Path, least: int, notes: SegmentNotes) -> Moves:
    if not segmentation.parent_release:
        raise _AbsentError("There was no earlier release, so no user has moved.")
    path = segmented / MIGRATION
    if not path.is_file():
        raise _AbsentError(
            f"Segment ids continue those of release {segmentation.parent_release}, but this run has no record of who "
            "moved; repeat `segrec-train segment` to create it."
        )
    migration = Migration.model_validate_json(path.read_bytes())
    flows = tuple(flow for flow in migration.flows if flow.user_count >= least)
    try:
        release = read_trusted(repository / MODEL_NAME / str(migration.previous_release))
        previous = _shown(notes.named(release.segments), least)
    except (DamagedRelease, OSError):
        previous = ()
    return Moves(migration.model_copy(update={"flows": flows}), previous)


def _quality(
    run: Run, segmented: Path, segmentation: Segmentation, shown: Sequence[SegmentProfile], least: int
) -> Quality:
    """Quality by segment under the last protocol of the evaluate stage, which is that of the release if measured.

    It is the quality of the hybrid if the segment stage measured strategies, and of the encoder otherwise.
    """
    try:
        evaluated = run.require("evaluate")
    except RunError as error:
        raise _AbsentError(f"Quality is not known. {error}") from error
    results = EvaluateResult.read(evaluated).results
    protocol = results[-1].protocol
    served = segmented / SERVED_NDCG
    strategies = [figure for figure in segmentation.figures if figure.protocol == protocol]
    if strategies and served.is_file():
        ndcg = pl.read_parquet(served).select("user_id", ndcg=pl.col(HYBRID).cast(pl.Float64))
        users = ndcg.with_columns(hr=(pl.col("ndcg") > 0).cast(pl.Float64))  # a hit is what NDCG counts
        methods = _strategies(strategies, len(users))
    else:
        users = figures_by_user(pl.read_parquet(evaluated / RANKS).filter(pl.col("protocol") == protocol))
        methods = []
    own = PRODUCT if methods else frozenset()  # the strategies hold the encoder
    methods += [
        Measured(result.method, result.users, result.figures["hr@10"], result.figures["ndcg@10"])
        for result in results
        if result.protocol == protocol and result.method not in own
    ]
    assignments = pl.read_parquet(segmented / "assignments.parquet", columns=["user_id", "segment_id"])
    placed = users.join(assignments, on="user_id")
    slices = [_slice(profile, placed.filter(segment_id=profile.segment_id)) for profile in shown]
    return Quality(protocol, tuple(methods), tuple(one for one in slices if one.users >= max(1, least)))


def _strategies(figures: Sequence[Figure], users: int) -> list[Measured]:
    """The strategies over all users, the one that is served first."""
    found = ((method, find(figures, method, "hr"), find(figures, method, "ndcg")) for method in reversed(STRATEGIES))
    return [Measured(method, users, hr.value, ndcg.value) for method, hr, ndcg in found if hr and ndcg]


def _slice(profile: SegmentProfile, users: pl.DataFrame) -> SegmentSlice:
    if not len(users):
        return SegmentSlice(display_name(profile), profile.segment_id, 0, 0.0, (0.0, 0.0), 0.0, (0.0, 0.0))
    hits, ndcg = users["hr"].to_numpy(), users["ndcg"].to_numpy()
    return SegmentSlice(
        name=display_name(profile),
        segment_id=profile.segment_id,
        users=len(users),
        hr=float(hits.mean()),
        hr_interval=bootstrap_interval(hits, seed=0),
        ndcg=float(ndcg.mean()),
        ndcg_interval=bootstrap_interval(ndcg, seed=0),
    )
