"""The tables and sentences that `segrec-train` prints when a stage or a run has ended."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table

from server.core.figures import HYBRID, NEXT_VISIT, PERSONAL, POPULAR, SEGMENT, Figure
from server.core.profiles import SegmentProfile
from training.cli.traffic_tables import after_publishing, same_as_before
from training.data.account import Account
from training.evaluation.results import EvaluateResult
from training.runs import Run
from training.segments.migration import migration_sentences, read_migration
from training.segments.result import Segmentation
from training.segments.sweep import read_sweep

_STRATEGIES = {
    POPULAR: "popular items",
    SEGMENT: "items of the segment",
    PERSONAL: "personal items",
    HYBRID: "both, as served",
}
_LABEL_WIDTH = 40
_SHOWN_FIGURES = 6


def summary(run: Run, repository: Path) -> RenderableType:
    """A complete run: cleaning, quality, the sweep over k if any, segments, and how to serve the release."""
    account = Account.model_validate_json((run.require("prepare") / "account.json").read_bytes())
    segmentation = Segmentation.read(run.require("segment"))
    parts: list[RenderableType] = [account.table(), "", *why_stopped(run), ""]
    if run.record()["stages"]["evaluate"]["state"] == "done":
        evaluated = EvaluateResult.read(run.require("evaluate"))
        verdict = evaluated.verdict(segmentation.figures)
        parts = [*([verdict, ""] if verdict else []), *parts, *evaluated.tables(), *evaluated.notes, ""]
    else:
        parts += ["Quality was not measured: no user has enough events to hold some back for a test.", ""]
    if segmentation.figures:
        parts += [quality_table(segmentation.figures), ""]
    if run.config().segment.k == "auto" and (k_sweep := read_sweep(run)):
        parts += [k_sweep.table(), ""]
    parts += [segments_summary(run), ""]
    published = run.figures("publish")
    release = published["release"]
    parts += list(filter(None, [published["beside_rules"], same_as_before(repository, release)]))
    parts += [serving_hint(run, repository, release), after_publishing(repository, release)]
    return Group(*parts)


def why_stopped(run: Run) -> list[str]:
    """Why training stopped, as a sentence; none for a run made of other runs."""
    figures = run.figures("train")
    reason = {
        "time": "Training stopped because its time was up (`[train] max_minutes`): more time may give better figures.",
        "early_stopping": "Training stopped because the figures of validation did not improve any more.",
        "epochs": "Training ran all its epochs (`[train] epochs`).",
        "callback": "Training was stopped by a program that watched it.",
    }.get(figures.get("stopped", ""))
    return [f"{reason} Epochs begun: {figures['epochs']}."] if reason else []


def quality_table(figures: Sequence[Figure]) -> Table:
    """NDCG@10 and HR@10 of each strategy on each user's last visit or event, all items ranked."""
    what = "visit" if figures[0].protocol == NEXT_VISIT else "event"
    table = Table(title=f"Recommendations of the release on each user's last {what} (larger is better)")
    table.add_column("strategy")
    for heading in ("NDCG@10", "HR@10", "× popular"):
        table.add_column(heading, justify="right")
    values = {(figure.method, figure.measure): figure.value for figure in figures}
    popular = values[POPULAR, "ndcg@10"]
    for strategy, name in _STRATEGIES.items():
        ndcg, hit_rate = values[strategy, "ndcg@10"], values[strategy, "hr@10"]
        table.add_row(name, f"{ndcg:.4f}", f"{hit_rate:.4f}", f"{ndcg / popular:.2f}" if popular else "–")
    return table


def segments_summary(run: Run) -> RenderableType:
    """Segments, the confidence of assignments, and how the segments differ from those of the release before."""
    directory = run.require("segment")
    segmentation, migration = Segmentation.read(directory), read_migration(directory)
    changes = migration_sentences(migration) if migration else []
    confidence = confidence_lines(segmentation)
    overlap = overlap_lines(segmentation)
    return Group(segments_table(segmentation.profiles), *confidence, *overlap, *changes, *segmentation.notes)


def confidence_lines(segmentation: Segmentation) -> list[str]:
    """Shares of users without a confident segment, and the error of confidence; empty without a calibration."""
    if segmentation.doubtful_share is None or segmentation.confidence_error is None:
        return []
    return [
        f"{segmentation.doubtful_share:.1%} of users have no confident segment, {segmentation.short_share:.1%} have a "
        f"short history. The mean error of confidence is {segmentation.confidence_error:.3f}, measured on users that "
        "its calibration did not use."
    ]


def overlap_lines(segmentation: Segmentation) -> list[str]:
    """How much the lists of items of two segments overlap; empty with fewer than two lists."""
    overlaps = (
        ("the items that most of their users chose", segmentation.top_items_overlap),
        ("the items that they are particular about (by lift)", segmentation.particular_items_overlap),
    )
    texts = [f"{overlap.mean:.0%} of {items}, at most {overlap.largest:.0%}" for items, overlap in overlaps if overlap]
    return [f"On average, two segments have in common {'; and '.join(texts)}."] if texts else []


def segments_table(profiles: Sequence[SegmentProfile]) -> Table:
    """Segments by size, the largest first, with their descriptions."""
    table = Table(title=f"{len(profiles)} segments", show_lines=True)
    table.add_column("id", justify="right")
    table.add_column("label", max_width=_LABEL_WIDTH)
    table.add_column("users", justify="right")
    table.add_column("share", justify="right")
    table.add_column("description")
    for profile in sorted(profiles, key=lambda profile: -profile.user_count):
        users = f"{profile.user_count:,}" if profile.user_count else "few"
        table.add_row(str(profile.segment_id), profile.label, users, f"{profile.share:.1%}", profile.description)
    return table


def serving_hint(run: Run, repository: Path, release: int) -> str:
    """The path of the release, and the command that serves it."""
    events = run.path / "prepare" / "events.parquet"
    return (
        f"Release {release} is in {repository}. To serve it:\n"
        f"  segrec-serve --repository {repository} --bootstrap-events {events}"
    )


def stage_line(name: str, record: Mapping[str, Any]) -> str:
    """The line of a stage that has ended: its duration, its device and its first figures."""
    numbers = {key: value for key, value in record["figures"].items() if type(value) in (int, float)}
    texts = [f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value:,}" for key, value in numbers.items()]
    failed = "" if record["state"] == "done" else ", failed"
    figures = f" ({', '.join(texts[:_SHOWN_FIGURES])})" if texts else ""
    device = f" on {record['figures']['device']}" if "device" in record["figures"] else ""
    return f"{name}: {record['seconds']:.1f} s{device}{failed}{figures}"
