"""What a search found: a table, a sentence, and the best settings as a TOML file."""

import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from rich.console import Group, RenderableType
from rich.table import Table

from server.core.settings_reference import settings_toml
from training.config import Config
from training.runs import write_atomically

BEST = "best.toml"
_SPREADS = 2.0
"""Differences of fewer standard errors than this are put down to chance."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """Settings of `[train]` and their validation NDCG@10, from 0 to 1, with one seed after the other."""

    values: Mapping[str, Any]
    figures: tuple[float, ...]

    @property
    def mean(self) -> float:
        """The mean over the seeds; NaN without one."""
        return statistics.fmean(self.figures) if self.figures else math.nan

    @property
    def spread(self) -> float:
        """The standard deviation between seeds; NaN for fewer than two."""
        return statistics.stdev(self.figures) if len(self.figures) > 1 else math.nan


@dataclass(frozen=True, slots=True)
class TuneResult:
    """The run's own settings, the best ones tried, and one-line rules, by NDCG@10 on the same validation targets."""

    config: Config
    """The run's configuration with the best settings."""
    default: Candidate
    best: Candidate | None
    trials: int
    pruned: int
    rules: Mapping[str, float]

    @classmethod
    def of(
        cls,
        config: Config,
        default: Candidate,
        best: Candidate | None,
        trials: int,
        pruned: int,
        rules: Mapping[str, float],
    ) -> Self:
        """The result, with the best settings put into the configuration."""
        train = config.train.model_copy(update=dict(best.values) if best else {})
        return cls(config.model_copy(update={"train": train}), default, best, trials, pruned, rules)

    @property
    def is_better(self) -> bool:
        """Whether the best settings beat the run's own by more than chance between seeds explains."""
        if self.best is None or not self.best.figures or math.isnan(self.default.spread):
            return False
        error = self.default.spread * math.sqrt(1 / len(self.best.figures) + 1 / len(self.default.figures))
        return self.best.mean - self.default.mean > _SPREADS * error

    @property
    def verdict(self) -> str:
        """The result in a sentence or two."""
        rule = max(self.rules, key=lambda name: self.rules[name])
        beside = f"The best one-line rule, `{rule}`, has {self.rules[rule]:.4f}."
        if self.best is None:
            return f"No trial came to its end within the budget. {beside}"
        if not self.best.figures:
            return f"No time was left to train the best settings with other seeds: nothing is proven. {beside}"
        difference = self.best.mean - self.default.mean
        means = f"The best settings differ from the run's own by {difference:+.4f} in NDCG@10"
        if math.isnan(self.default.spread):
            return f"{means}; with one seed of the run's own nobody can say whether that is chance. {beside}"
        noise = f"one seed differs from another by {self.default.spread:.4f} (standard deviation)"
        if self.is_better:
            return f"{means}, more than chance: {noise}. {beside}"
        return f"{means}, which may be chance: {noise}. Keep the run's own settings. {beside}"

    def table(self) -> RenderableType:
        """The candidates and rules as a table, and the verdict."""
        table = Table("settings", title="NDCG@10 on the validation targets")
        for heading in ("mean", "between seeds", "seeds"):
            table.add_column(heading, justify="right")
        table.add_row("the run's own", *_cells(self.default))
        if self.best is not None:
            changed = ", ".join(f"{key} {_short(value)}" for key, value in self.best.values.items())
            table.add_row(f"best of {self.trials}: {changed}", *_cells(self.best))
        for name, figure in self.rules.items():
            table.add_row(f"rule: {name}", f"{figure:.4f}", "", "")
        stopped = f"{self.trials} trials, of which {self.pruned} were stopped early."
        return Group(table, stopped, self.verdict)

    def write(self, directory: Path) -> None:
        """Write the best settings as `best.toml`, which `--config` reads."""
        text = f"# {self.verdict}\n" + settings_toml(self.config)
        write_atomically(directory / BEST, text)


def _cells(candidate: Candidate) -> tuple[str, str, str]:
    spread = "" if math.isnan(candidate.spread) else f"{candidate.spread:.4f}"
    return "–" if math.isnan(candidate.mean) else f"{candidate.mean:.4f}", spread, str(len(candidate.figures))


def _short(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
