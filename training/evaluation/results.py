"""What evaluation measured, as its files hold it; read without loading torch."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from rich.table import Table

from training.metrics import CUTOFFS

LEAVE_ONE_OUT = "leave-one-out"
AS_SERVED = "as served"
TIME_SPLIT = "time split"
ENCODER = "encoder"
TREND = "encoder, trend"
"""The encoder, and what is in demand when the target is asked for, as a release made then; where that helps."""
RANKS = "ranks.parquet"
"""The encoder's rank of each target: protocol, user_id, item_id, rank (from 0); comparisons of runs read it."""

METRICS = "metrics.json"


@dataclass(frozen=True)
class UserSlice:
    """Some of a protocol's users: those of few, some or many events before the target, or with a new item as target."""

    name: str
    users: int
    ndcg: float
    hr: float


@dataclass(frozen=True)
class Result:
    """One method under one protocol, over `users` users.

    `figures` are named as by `ranking_metrics`, with `coverage@10` and `novelty@10`; `interval` holds the true NDCG@10
    and `hr_interval` the true HR@10 at 95 %.
    """

    protocol: str
    method: str
    users: int
    figures: Mapping[str, float]
    interval: tuple[float, float]
    hr_interval: tuple[float, float]
    slices: tuple[UserSlice, ...]

    @classmethod
    def read(cls, raw: Mapping[str, Any]) -> Self:
        """From JSON."""
        slices = tuple(UserSlice(**part) for part in raw["slices"])
        intervals = {name: tuple(raw[name]) for name in ("interval", "hr_interval")}
        return cls(**{**raw, **intervals, "slices": slices})


@dataclass(frozen=True)
class EvaluateResult:
    """What `evaluate` found and wrote to `metrics.json` in `directory`; `notes` are sentences for people."""

    directory: Path
    results: tuple[Result, ...]
    notes: tuple[str, ...] = ()

    @classmethod
    def read(cls, directory: Path) -> Self:
        """What an evaluation of a run wrote."""
        raw = json.loads((directory / METRICS).read_text(encoding="utf-8"))
        return cls(directory, tuple(map(Result.read, raw["results"])), tuple(raw["notes"]))

    def tables(self) -> list[Table]:
        """The results for rich to print: for each protocol its figures, and its slices."""
        tables = []
        for protocol in dict.fromkeys(result.protocol for result in self.results):
            results = [result for result in self.results if result.protocol == protocol]
            tables += [_figures_table(results), _slices_table(results)]
        return tables


def _figures_table(results: list[Result]) -> Table:
    first = results[0]
    title = f"Next item, {first.protocol}: {first.users:,} users, all items ranked, at 5 | 10 | 20"
    table = Table("method", title=title)
    intervals = "NDCG@10\nat 95 %", "HR@10\nat 95 %"
    for heading in ("HR", "NDCG", "MRR", "coverage\n@10", "novelty\n@10, bit", *intervals):
        table.add_column(heading, justify="right", no_wrap=True)
    for result in results:
        cells = [_at_cutoffs(result.figures, name) for name in ("hr", "ndcg", "mrr")]
        cells += [f"{result.figures['coverage@10']:.3f}", f"{result.figures['novelty@10']:.2f}"]
        cells += [f"{_short(low)} – {_short(high)}" for low, high in (result.interval, result.hr_interval)]
        table.add_row(result.method, *cells, style="bold" if result.method == ENCODER else None)
    return table


def _at_cutoffs(figures: Mapping[str, float], name: str) -> str:
    return " ".join(_short(figures[f"{name}@{k}"]) for k in CUTOFFS)


def _short(share: float) -> str:
    return f"{share:.4f}".removeprefix("0")


def _slices_table(results: list[Result]) -> Table:
    table = Table("method", title=f"NDCG@10 | HR@10 by events before the target, {results[0].protocol}")
    for part in results[0].slices:
        table.add_column(f"{part.name}\n{part.users:,} users", justify="right")
    for result in results:
        cells = [f"{part.ndcg:.4f}  {part.hr:.4f}" if part.users else "–" for part in result.slices]
        table.add_row(result.method, *cells, style="bold" if result.method == ENCODER else None)
    return table
