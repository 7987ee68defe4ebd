"""What a training run prints when it is done: tables for people."""

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table

from server.core.profiles import SegmentProfile, Trait
from training.cleaning import Account
from training.evaluation import EvaluateResult
from training.profiles import in_words
from training.runs import Run
from training.segmentation import Segmentation

_WAYS = {
    "popular": "popular items",
    "segment": "items of the segment",
    "personal": "personal items",
    "hybrid": "both, as served",
}
_SHOWN_TRAITS = 4
_LONGEST_NAME = 36
_SHOWN_FIGURES = 6


def summary(run: Run, repository: Path) -> RenderableType:
    """Cleaning account, quality, segments, and how to serve the release, of a run that is done."""
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
    parts += [segments_table(segmentation.profiles), *segmentation.notes, ""]
    parts.append(serving_hint(run, repository, run.figures("publish")["release"]))
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


def segments_table(profiles: Sequence[SegmentProfile]) -> Table:
    """Segments, the largest first."""
    table = Table(title=f"{len(profiles)} segments")
    for heading, justify in (("id", "right"), ("label", "left"), ("users", "right"), ("share", "right")):
        table.add_column(heading, justify="right" if justify == "right" else "left")
    table.add_column("what sets it apart (times more often than everyone)")
    for profile in sorted(profiles, key=lambda one: -one.user_count):
        traits = ", ".join(_shown(profile.traits)) or "nothing in particular"
        table.add_row(str(profile.segment_id), profile.label, f"{profile.user_count:,}", f"{profile.share:.1%}", traits)
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


def _shown(traits: Sequence[Trait]) -> list[str]:
    """The strongest traits in short; items only where nothing wider is known, names once."""
    wide = [trait for trait in traits if trait.kind != "item"] or traits
    lifts = {in_words(trait.name): trait.lift for trait in reversed(wide)}
    names = list(dict.fromkeys(in_words(trait.name) for trait in wide))[:_SHOWN_TRAITS]
    return [f"{textwrap.shorten(name, _LONGEST_NAME, placeholder='…')} {lifts[name]:.1f}×" for name in names]
