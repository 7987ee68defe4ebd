"""The results of the evaluate stage, as its files hold them. This module does not load torch."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import polars as pl
from rich.table import Table

from server.core.figures import ENCODER, HYBRID, NEXT_VISIT, STRATEGIES, Figure, figures_of, find
from training.metrics import CUTOFFS, LIST_LENGTH, metrics_by_user

TREND = "encoder, trend"
"""The method that adds the trend at the target's time to the encoder's scores; present if a trend helps."""
PRODUCT = frozenset({ENCODER, TREND, *STRATEGIES})
"""The methods that are the product's own: the encoder, and the strategies as they are served."""
RANKS = "ranks.parquet"
"""The encoder's rank of each target (protocol, user_id, item_id, rank from 0), which comparisons of runs read.

The targets of a user are consecutive."""

METRICS = "metrics.json"


@dataclass(frozen=True)
class UserSlice:
    """Figures of some users: by events before the target, or only those with a kind of target, such as a new item."""

    name: str
    users: int
    ndcg: float
    hr: float


@dataclass(frozen=True)
class Result:
    """The figures of one method under one protocol, over `users` users.

    `figures` have the names of `ranking_metrics`, or of `set_metrics` under the protocol `NEXT_VISIT`, and
    `coverage@10` and `novelty@10`. `interval` is the 95 % confidence
    interval of NDCG@10, `hr_interval` that of HR@10.
    """

    protocol: str
    method: str
    users: int
    figures: Mapping[str, float]
    interval: tuple[float, float]
    hr_interval: tuple[float, float]
    slices: tuple[UserSlice, ...]

    @property
    def quality(self) -> tuple[Figure, ...]:
        """The figures, rounded, with the intervals of NDCG@10 and HR@10."""
        intervals = {"ndcg@10": self.interval, "hr@10": self.hr_interval}
        rounded = {name: (round(low, 6), round(high, 6)) for name, (low, high) in intervals.items()}
        values = {name: round(value, 6) for name, value in self.figures.items()}
        return figures_of(self.protocol, self.method, values, rounded)

    @classmethod
    def read(cls, raw: Mapping[str, Any]) -> Self:
        """Build a result from the parsed JSON."""
        slices = tuple(UserSlice(**user_slice) for user_slice in raw["slices"])
        intervals = {name: tuple(raw[name]) for name in ("interval", "hr_interval")}
        return cls(**{**raw, **intervals, "slices": slices})


@dataclass(frozen=True)
class EvaluateResult:
    """The content of `metrics.json` in `directory`; `notes` are sentences for people."""

    directory: Path
    results: tuple[Result, ...]
    notes: tuple[str, ...] = ()

    @classmethod
    def read(cls, directory: Path) -> Self:
        """Read `metrics.json` of the evaluate stage's directory."""
        raw = json.loads((directory / METRICS).read_text(encoding="utf-8"))
        return cls(directory, tuple(map(Result.read, raw["results"])), tuple(raw["notes"]))

    def verdict(self, strategies: Sequence[Figure]) -> str | None:
        """Whether the product or a rule predicts the next visit better; None if it was not evaluated by visit.

        The product is the hybrid: its lists in this evaluation, or `strategies`, the figures of the segment stage if
        they are of visits. Without either, it is the encoder.
        """
        ndcg = {one.method: one.figures["ndcg@10"] for one in self.results if one.protocol == NEXT_VISIT}
        rules = {method: value for method, value in ndcg.items() if method not in PRODUCT}
        if not rules:
            return None
        served = find(strategies, HYBRID, "ndcg", protocol=NEXT_VISIT)
        if HYBRID not in ndcg and served:
            ndcg[HYBRID] = served.value
        product, rule = HYBRID if HYBRID in ndcg else ENCODER, max(rules, key=lambda method: rules[method])
        own, other = ndcg[product], rules[rule]
        if other > own:
            return (
                f"A simple rule, `{rule}`, predicts the next visit better than the {product} of this run: NDCG@10 "
                f"{other:.4f} against {own:.4f}."
            )
        ahead = f", {own / other - 1:.1%} more than" if other else ";"
        figure = f"The {product} predicts the next visit with NDCG@10 {own:.4f}"
        return f"{figure}{ahead} the best rule, `{rule}` ({other:.4f})."

    def tables(self) -> list[Table]:
        """For each protocol a table of figures and a table of slices, for rich to print."""
        tables = []
        for protocol in dict.fromkeys(result.protocol for result in self.results):
            results = [result for result in self.results if result.protocol == protocol]
            tables += [_figures_table(results), _slices_table(results)]
        return tables


def figures_by_user(ranks: pl.DataFrame) -> pl.DataFrame:
    """HR@10 and NDCG@10 of each user (user_id, hr, ndcg), from rows of `RANKS` of one protocol."""
    users = ranks["user_id"]
    figures = metrics_by_user(ranks["rank"].to_numpy(), users.rle_id().to_numpy(), LIST_LENGTH)
    return pl.DataFrame({"user_id": users.unique(maintain_order=True), **figures})


def _figures_table(results: list[Result]) -> Table:
    first = results[0]
    what = "Next visit, all its items" if first.protocol == NEXT_VISIT else f"Next item, {first.protocol}"
    third = "recall" if first.protocol == NEXT_VISIT else "MRR"
    title = f"{what}: {first.users:,} users, all items ranked, at 5 | 10 | 20"
    table = Table("method", title=title)
    intervals = "NDCG@10\nat 95 %", "HR@10\nat 95 %"
    for heading in ("HR", "NDCG", third, "coverage\n@10", "novelty\n@10, bit", *intervals):
        table.add_column(heading, justify="right", no_wrap=True)
    for result in results:
        cells = [_at_cutoffs(result.figures, name) for name in ("hr", "ndcg", third.lower())]
        cells += [f"{result.figures['coverage@10']:.3f}", f"{result.figures['novelty@10']:.2f}"]
        cells += [f"{_short(low)} – {_short(high)}" for low, high in (result.interval, result.hr_interval)]
        table.add_row(result.method, *cells, style="bold" if result.method in PRODUCT else None)
    return table


def _at_cutoffs(figures: Mapping[str, float], name: str) -> str:
    return " ".join(_short(figures[f"{name}@{k}"]) for k in CUTOFFS)


def _short(share: float) -> str:
    return f"{share:.4f}".removeprefix("0")


def _slices_table(results: list[Result]) -> Table:
    table = Table("method", title=f"NDCG@10 | HR@10 of slices of users, {results[0].protocol}")
    for user_slice in results[0].slices:
        table.add_column(f"{user_slice.name}\n{user_slice.users:,} users", justify="right")
    for result in results:
        cells = [f"{one.ndcg:.4f}  {one.hr:.4f}" if one.users else "–" for one in result.slices]
        table.add_row(result.method, *cells, style="bold" if result.method in PRODUCT else None)
    return table
