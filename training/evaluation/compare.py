"""Compares runs by their encoders' ranks of the same targets, user by user, with a significance test."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from rich.table import Table
from rich.text import Text
from scipy.stats import permutation_test

from training.data.split import read_split
from training.errors import RunError
from training.evaluation.results import RANKS, figures_by_user
from training.metrics import bootstrap_interval
from training.runs import Run, training_seconds

_TARGET_COLUMNS = ("protocol", "user_id", "item_id")
_RESAMPLES = 9_999
SIGNIFICANT = 0.05
"""A difference with a p below this is significant."""


@dataclass(frozen=True)
class PairedDifference:
    """A figure of a run, its mean `difference` over users to the first run, and the 95 % `interval` of the difference.

    `p` is the probability that random signs give a difference at least as large.
    """

    value: float
    difference: float
    interval: tuple[float, float]
    p: float


@dataclass(frozen=True)
class RunComparison:
    """One run under one protocol; the differences of the first run are 0."""

    protocol: str
    run: str
    users: int
    training_seconds: float
    ndcg: PairedDifference
    hr: PairedDifference


def compare_runs(runs: Sequence[Run]) -> list[RunComparison]:
    """Compare each run with the first run under each protocol.

    Raises RunError if a run is not evaluated, or if the runs have different events, splits or targets.
    """
    if len({run.path.resolve() for run in runs}) < max(2, len(runs)):
        raise RunError("compare needs at least two runs, all different.")
    first = runs[0]
    ranks = {run.path.name: _ranks(run) for run in runs}
    for run in runs[1:]:
        for name, value in _data_of(run).items():
            if value != _data_of(first)[name]:
                raise RunError(
                    f"{first.path} and {run.path} differ in {name}, so their figures cannot be compared: "
                    f"{_described(first)}; {_described(run)}. Prepare and train both from the same files and [split]."
                )
        if not ranks[first.path.name].select(_TARGET_COLUMNS).equals(ranks[run.path.name].select(_TARGET_COLUMNS)):
            raise RunError(f"{first.path} and {run.path} have different test targets; evaluate both again.")
    comparisons = []
    for protocol in ranks[first.path.name]["protocol"].unique(maintain_order=True):
        by_run = {name: figures_by_user(run_ranks.filter(protocol=protocol)) for name, run_ranks in ranks.items()}
        base = by_run[first.path.name]
        for run in runs:
            own = by_run[run.path.name]
            ndcg, hr = (paired_difference(own[name].to_numpy(), base[name].to_numpy()) for name in ("ndcg", "hr"))
            users = len(own)
            comparisons.append(RunComparison(protocol, run.path.name, users, training_seconds(run), ndcg, hr))
    return comparisons


def comparison_table(comparisons: Sequence[RunComparison]) -> Table:
    """One row per comparison, for rich to print; significant differences are bold."""
    table = Table("protocol", "run", title="Differences to the first run, over the same users")
    for heading in ("train s", "NDCG@10", "difference (95 %)", "p", "HR@10", "difference (95 %)", "p"):
        table.add_column(heading, justify="right")
    first = comparisons[0].run
    for comparison in comparisons:
        cells: list[str | Text] = [f"{comparison.training_seconds:,.0f}"]
        for figure in (comparison.ndcg, comparison.hr):
            cells.append(f"{figure.value:.4f}")
            cells += ["–", "–"] if comparison.run == first else _cells(figure)
        table.add_row(comparison.protocol, comparison.run, *cells)
    return table


def _cells(figure: PairedDifference) -> list[str | Text]:
    low, high = figure.interval
    text = f"{figure.difference:+.4f} ({low:+.4f} – {high:+.4f})"
    return [Text(text, "bold") if figure.p < SIGNIFICANT else text, f"{figure.p:.4f}"]


def _ranks(run: Run) -> pl.DataFrame:
    return pl.read_parquet(run.require("evaluate") / RANKS)


def _described(run: Run) -> str:
    """The events and the split of a run, as a phrase."""
    log, count = run.record()["data"].get("events", {}), run.figures("prepare").get("events")
    events = f"{count:,} events" if isinstance(count, int) else "events"
    hashed = f" (sha256 {log['sha256'][:12]})" if "sha256" in log else ""
    return f"{run.path.name} has {events}{hashed}, {read_split(run.require('prepare')).describe()}"


def _data_of(run: Run) -> dict[str, Any]:
    return {"their log": run.log_identity(), "their split": read_split(run.require("prepare"))}


def paired_difference(values: NDArray[np.float64], base: NDArray[np.float64]) -> PairedDifference:
    """Compare a figure of the same users (T,) by two models; `base` is that of the first model."""
    differences = values - base
    interval = bootstrap_interval(differences, seed=0)
    return PairedDifference(float(values.mean()), float(differences.mean()), interval, _p_value(differences))


def _p_value(differences: NDArray[np.float64]) -> float:
    """p of a sign-flip permutation test of the mean of the differences (T,); differences of 0 do not change it."""
    nonzero = differences[differences != 0]
    if not len(nonzero):
        return 1.0
    sampling = {"n_resamples": _RESAMPLES, "batch": 64, "rng": 0}
    return float(permutation_test((nonzero,), np.sum, permutation_type="samples", vectorized=True, **sampling).pvalue)
