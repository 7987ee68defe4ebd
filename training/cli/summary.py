"""What a training run prints when it is done: tables for people."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table

from server.core.profiles import SegmentProfile
from training.cli.traffic_tables import after_publishing
from training.data.cleaning import Account
from training.evaluation.results import EvaluateResult
from training.runs import Run
from training.segments.migration import migration_sentences, read_migration
from training.segments.result import Segmentation
from training.segments.sweep import read_sweep

_WAYS = {
    "popular": "popular items",
    "segment": "items of the segment",
    "personal": "personal items",
    "hybrid": "both, as served",
}
_LABEL_WIDTH = 40
_SHOWN_FIGURES = 6


def summary(run: Run, repository: Path) -> RenderableType:
    """Cleaning account, quality, the sweep over k if any, segments, how to serve the release, of a run that is done."""
    account = Account.model_validate_json((run.require("prepare") / "account.json").read_bytes())
    segmentation = Segmentation.read(run.require("segment"))
    parts: list[RenderableType] = [account.table(), ""]
    if run.record()["stages"]["evaluate"]["state"] == "done":
        evaluated = EvaluateResult.read(run.require("evaluate"))
        parts += [*evaluated.tables(), *evaluated.notes, ""]
    else:
        parts += ["Nothing was measured: no user has enough events to hold some back.", ""]
    if segmentation.figures:
        parts += [quality_table(segmentation.figures), ""]
    if run.config().segment.k == "auto" and (swept := read_sweep(run)):
        parts += [swept.table(), ""]
    parts += [segments_summary(run), ""]
    release = run.figures("publish")["release"]
    parts += [serving_hint(run, repository, release), after_publishing(repository, release)]
    return Group(*parts)


def quality_table(figures: Mapping[str, float]) -> Table:
    """How well each way foretells the last event of users, all items ranked."""
    table = Table(title="What the release recommends, beside popular items: the last event of users, larger is better")
    table.add_column("way")
    for heading in ("NDCG@10", "HR@10", "× popular"):
        table.add_column(heading, justify="right")
    floor = figures["popular_ndcg@10"]
    for way, name in _WAYS.items():
        ndcg, hits = figures[f"{way}_ndcg@10"], figures[f"{way}_hr@10"]
        table.add_row(name, f"{ndcg:.4f}", f"{hits:.4f}", f"{ndcg / floor:.2f}" if floor else "–")
    return table


def segments_summary(run: Run) -> RenderableType:
    """Segments, how sure they are, and what became of those of the release before."""
    directory = run.require("segment")
    segmentation, migration = Segmentation.read(directory), read_migration(directory)
    moved = migration_sentences(migration) if migration else []
    return Group(segments_table(segmentation.profiles), *doubt_lines(segmentation), *moved, *segmentation.notes)


def doubt_lines(segmentation: Segmentation) -> list[str]:
    """How many users are in doubt, and how far confidence is to be trusted; nothing where there is none."""
    if segmentation.doubtful_share is None or segmentation.confidence_error is None:
        return []
    return [
        f"{segmentation.doubtful_share:.1%} of users have no confident segment, {segmentation.short_share:.1%} a short "
        f"history. Confidence is off by {segmentation.confidence_error:.3f} on average, measured on users it was not "
        "fitted on."
    ]


def segments_table(profiles: Sequence[SegmentProfile]) -> Table:
    """Segments, the largest first, each with the sentence that describes it."""
    table = Table(title=f"{len(profiles)} segments", show_lines=True)
    table.add_column("id", justify="right")
    table.add_column("label", max_width=_LABEL_WIDTH)
    table.add_column("users", justify="right")
    table.add_column("share", justify="right")
    table.add_column("what it is, and what sets it apart")
    for profile in sorted(profiles, key=lambda one: -one.user_count):
        users = f"{profile.user_count:,}" if profile.user_count else "few"
        label, sentence = escape(profile.label), escape(profile.description)
        table.add_row(str(profile.segment_id), label, users, f"{profile.share:.1%}", sentence)
    return table


def serving_hint(run: Run, repository: Path, release: int) -> str:
    """Where the release is, and the command that serves it."""
    events = run.path / "prepare" / "events.parquet"
    return (
        f"Release {release} is in {repository}. Serve it:\n"
        f"  segrec-serve --repository {repository} --bootstrap-events {events}"
    )


def stage_line(name: str, record: Mapping[str, Any]) -> str:
    """One line on a stage that has ended: how long it took, and its first plain figures."""
    numbers = {key: value for key, value in record["figures"].items() if type(value) in (int, float)}
    plain = {key: value for key, value in numbers.items() if "@" not in key}
    told = [f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value:,}" for key, value in plain.items()]
    failed = "" if record["state"] == "done" else ", failed"
    figures = f" ({', '.join(told[:_SHOWN_FIGURES])})" if told and "/" not in told[0] else ""
    device = f" on {record['figures']['device']}" if "device" in record["figures"] else ""
    return f"{name}: {record['seconds']:.1f} s{device}{failed}{figures}"
