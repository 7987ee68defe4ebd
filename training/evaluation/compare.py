"""Runs side by side: the encoders' ranks of the same targets, user by user, and whether a difference is chance."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from rich.table import Table
from scipy.stats import permutation_test

from training.data.split import read_split
from training.errors import RunError
from training.evaluation.results import RANKS
from training.metrics import bootstrap_interval, ndcg_each
from training.runs import Run, training_seconds

_ASKED = ("protocol", "user_id", "item_id")
_RESAMPLES = 9_999
SIGNIFICANT = 0.05
"""A p below it is no chance."""


@dataclass(frozen=True)
class PairedDifference:
    """A figure of a run beside that of the first one: the mean difference over users, its 95 % interval, and how often
    signs drawn at random would give one as large (`p`).
    """

    value: float
    difference: float
    interval: tuple[float, float]
    p: float


@dataclass(frozen=True)
class RunComparison:
    """One run under one protocol; the first run's differences are None."""

    protocol: str
    run: str
    users: int
    training_seconds: float
    ndcg: PairedDifference
    hr: PairedDifference


def compare_runs(runs: Sequence[Run]) -> list[RunComparison]:
    """Compare each run with the first one, protocol by protocol.

    Raises RunError where runs are not evaluated, or not on the same events, split and users.
    """
    if len({run.path.resolve() for run in runs}) < max(2, len(runs)):
        raise RunError("compare takes two or more different runs.")
    first = runs[0]
    ranks = {run.path.name: _ranks(run) for run in runs}
    for run in runs[1:]:
        for what, there in _of_data(run).items():
            if there != _of_data(first)[what]:
                raise RunError(f"{first.path} and {run.path} differ in {what}; their figures cannot be compared.")
        mine, theirs = (ranks[one.path.name].select(_ASKED) for one in (first, run))
        if not mine.equals(theirs):
            raise RunError(f"{first.path} and {run.path} were tested on other users or targets; evaluate both again.")
    found = []
    for protocol in ranks[first.path.name]["protocol"].unique(maintain_order=True):
        by_run: dict[str, NDArray[np.int64]] = {
            name: table.filter(protocol=protocol)["rank"].to_numpy() for name, table in ranks.items()
        }
        base = by_run[first.path.name]
        for run in runs:
            own = by_run[run.path.name]
            ndcg = difference_of(ndcg_each(own, 10), ndcg_each(base, 10))
            hr = difference_of((own < 10).astype(np.float64), (base < 10).astype(np.float64))
            found.append(RunComparison(protocol, run.path.name, len(own), training_seconds(run), ndcg, hr))
    return found


def table(comparisons: Sequence[RunComparison]) -> Table:
    """For rich to print; a difference that is no chance (p < .05) in bold."""
    made = Table("protocol", "run", title="Differences to the first run, over the same users")
    for heading in ("train s", "NDCG@10", "difference (95 %)", "p", "HR@10", "difference (95 %)", "p"):
        made.add_column(heading, justify="right")
    first = comparisons[0].run
    for one in comparisons:
        cells = [f"{one.training_seconds:,.0f}"]
        for figure in (one.ndcg, one.hr):
            cells.append(f"{figure.value:.4f}")
            cells += ["–", "–"] if one.run == first else _cells(figure)
        made.add_row(one.protocol, one.run, *cells)
    return made


def _cells(figure: PairedDifference) -> list[str]:
    low, high = figure.interval
    text = f"{figure.difference:+.4f} ({low:+.4f} – {high:+.4f})"
    return [f"[bold]{text}[/bold]" if figure.p < SIGNIFICANT else text, f"{figure.p:.4f}"]


def _ranks(run: Run) -> pl.DataFrame:
    return pl.read_parquet(run.require("evaluate") / RANKS)


def _of_data(run: Run) -> dict[str, Any]:
    log = run.record()["data"]["events"]
    return {"their log": log["sha256"], "their split": read_split(run.require("prepare"))}


def difference_of(mine: NDArray[np.float64], base: NDArray[np.float64]) -> PairedDifference:
    """A figure of the same users (T,) beside that of another model."""
    each = mine - base
    return PairedDifference(float(mine.mean()), float(each.mean()), bootstrap_interval(each, seed=0), _chance(each))


def _chance(each: NDArray[np.float64]) -> float:
    """p of a sign-flip permutation test of the mean of `each` (T,); users without a difference have no say in it."""
    told = each[each != 0]
    if not len(told):
        return 1.0
    drawn = {"n_resamples": _RESAMPLES, "batch": 64, "rng": 0}
    return float(permutation_test((told,), np.sum, permutation_type="samples", vectorized=True, **drawn).pvalue)
