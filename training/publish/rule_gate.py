"""The gate that compares a release, as it is served, with popularity and the best of the other rules.

The evaluate stage measures rules and the segment stage the strategies of the release, both user by user on the targets
of one protocol. A release that a rule beats beyond chance stands by: it is published and gets no traffic by itself. A
release that is not shown to be ahead of every rule may answer, and a sentence says so: on a small log a test of a few
users can show neither.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from server.core.figures import HYBRID
from training.evaluation.compare import PairedDifference, paired_difference
from training.evaluation.results import PRODUCT
from training.evaluation.visit_rules import POPULARITY
from training.publish.gates import Gate
from training.ranking.served import SERVED_NDCG
from training.runs import Run


@dataclass(frozen=True, slots=True)
class RuleComparison:
    """NDCG@10 of the release as served, with its difference to that of a rule for the same users."""

    rule: str
    users: int
    ndcg: PairedDifference

    @property
    def is_worse(self) -> bool:
        """Whether the rule is better beyond chance: the whole interval of the difference is below 0."""
        return self.ndcg.interval[1] < 0

    @property
    def is_ahead(self) -> bool:
        """Whether the release is better beyond chance."""
        return self.ndcg.interval[0] > 0

    @property
    def figures(self) -> str:
        """Both figures and the interval of their difference, as a phrase."""
        low, high = self.ndcg.interval
        own, other = self.ndcg.value, self.ndcg.value - self.ndcg.difference
        return f"NDCG@10 {own:.4f}, the rule {other:.4f}; difference {low:+.4f} to {high:+.4f}, {self.users:,} users"


def compare_with_rules(run: Run) -> list[RuleComparison]:
    """The release beside popularity and beside the best other rule; empty if a stage has no users to measure."""
    rules, strategies = (_ndcg_of(run, stage) for stage in ("evaluate", "segment"))
    if rules is None or strategies is None:
        return []
    joined = rules.join(strategies.select("user_id", HYBRID), on="user_id", maintain_order="left")
    names = [name for name in rules.columns if name not in PRODUCT | {"user_id"}]
    if joined.is_empty() or not names:
        return []
    means = {name: float(joined[name].mean() or 0.0) for name in names}  # type: ignore[arg-type]
    compared = [name for name in (POPULARITY, max(means, key=lambda name: means[name])) if name in means]
    own = joined[HYBRID].cast(pl.Float64).to_numpy()
    return [
        RuleComparison(rule, len(joined), paired_difference(own, joined[rule].cast(pl.Float64).to_numpy()))
        for rule in dict.fromkeys(compared)
    ]


def rule_gates(comparisons: Sequence[RuleComparison]) -> list[Gate]:
    """A gate for each rule; a failed one makes the release stand by."""
    if not comparisons:
        return [Gate("beside rules", "not measured: no user has enough events for a test", "no rule is better")]
    return [
        Gate(
            f"beside `{one.rule}`",
            one.figures,
            "not worse beyond chance",
            _problem(one) if one.is_worse else "",
            can_be_forced=True,
            figures={"served_ndcg@10": one.ndcg.value, "rule_ndcg@10": one.ndcg.value - one.ndcg.difference},
            stands_by=True,
        )
        for one in comparisons
    ]


def stand_by_reason(comparisons: Sequence[RuleComparison]) -> str:
    """Why the release stands by, as a sentence; empty for a release that may answer."""
    return next((_problem(one) for one in reversed(comparisons) if one.is_worse), "")


def beside_rules(comparisons: Sequence[RuleComparison]) -> str:
    """How the release compares with the best rule, as a sentence; empty if nothing was measured."""
    if not comparisons:
        return ""
    best = comparisons[-1]
    if best.is_worse:
        return _problem(best)
    if best.is_ahead:
        return f"As served, the release predicts better than the best rule, `{best.rule}`: {best.figures}."
    return (
        f"As served, the release is not shown to predict better than a rule of one line, `{best.rule}`: "
        f"{best.figures}. More users or longer training would show which is better."
    )


def _problem(one: RuleComparison) -> str:
    return f"A rule of one line, `{one.rule}`, predicts better than the release as served: {one.figures}."


def _ndcg_of(run: Run, stage: str) -> pl.DataFrame | None:
    path: Path = run.path / stage / SERVED_NDCG
    return pl.read_parquet(path) if path.is_file() else None
