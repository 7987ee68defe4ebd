"""The sweep over k for a report: the figures that `k_sweep.json` has, with their titles and formats."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

K_SWEEP = "k_sweep.json"

_ERROR = "_error"


@dataclass(frozen=True, slots=True)
class SweepMeasure:
    """A figure of the sweep: its key in the file, its title, which direction is better, its decimals in a table."""

    key: str
    title: str
    better: str
    decimals: int


MEASURES = (
    SweepMeasure("lift", "Lift over popularity", "larger is better", 2),
    SweepMeasure("stability", "Stability over users", "adjusted Rand, larger is better", 2),
    SweepMeasure("halves", "Halves of histories agree", "adjusted Rand, larger is better", 2),
    SweepMeasure("silhouette", "Silhouette", "larger is better", 3),
    SweepMeasure("davies_bouldin", "Davies–Bouldin", "smaller is better", 2),
    SweepMeasure("calinski_harabasz", "Calinski–Harabasz", "larger is better", 0),
    SweepMeasure("mean_distance", "Mean distance inside", "look for a bend", 3),
    SweepMeasure("inertia", "Inertia", "look for a bend", 0),
)


@dataclass(frozen=True, slots=True)
class Sweep:
    """Figures by k, ascending, without unknown figures; the chosen k and the reason for it.

    `of` is the time when the encoder of the clustered embeddings was exported.
    """

    of: str
    rows: tuple[tuple[int, Mapping[str, float]], ...]
    chosen: int
    reason: str

    def measures(self) -> tuple[SweepMeasure, ...]:
        """The measures that at least one k has."""
        return tuple(measure for measure in MEASURES if any(measure.key in figures for _, figures in self.rows))

    def error(self, row: Mapping[str, float], measure: SweepMeasure) -> float:
        """Half the width of a sampled figure's interval; 0 where it is exact."""
        return row.get(measure.key + _ERROR, 0.0)

    def cell(self, row: Mapping[str, float], measure: SweepMeasure) -> str:
        """The text of the figure in a table."""
        if measure.key not in row:
            return "–"
        error = self.error(row, measure)
        return f"{row[measure.key]:,.{measure.decimals}f}" + (f" ± {error:.{measure.decimals}f}" if error else "")


def read_sweep_chart(path: Path) -> Sweep:
    """Read `k_sweep.json`."""
    raw = json.loads(path.read_text(encoding="utf-8"))
    rows = sorted(((int(row["k"]), _figures(row)) for row in raw["rows"]), key=lambda row: row[0])
    return Sweep(raw["of"], tuple(rows), int(raw["chosen"]), str(raw["reason"]))


def _figures(row: Mapping[str, Any]) -> dict[str, float]:
    return {
        key: float(value)
        for key, value in row.items()
        if key != "k" and isinstance(value, int | float) and math.isfinite(value)
    }
