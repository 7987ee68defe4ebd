"""The k sweep as a report shows it: read from `k_sweep.json`, whatever figures are in it."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

K_SWEEP = "k_sweep.json"

_ERROR = "_error"


@dataclass(frozen=True, slots=True)
class Measure:
    """A figure of a fit by its key, what people call it, and which way is better."""

    key: str
    title: str
    better: str


MEASURES = (
    Measure("lift", "Lift of segment items", "larger is better"),
    Measure("stability", "Stability (adjusted Rand)", "larger is better"),
    Measure("silhouette", "Silhouette", "larger is better"),
    Measure("davies_bouldin", "Davies–Bouldin", "smaller is better"),
    Measure("calinski_harabasz", "Calinski–Harabasz", "larger is better"),
    Measure("inertia", "Inertia", "look for a bend"),
    Measure("mean_distance", "Mean distance inside", "look for a bend"),
)


@dataclass(frozen=True, slots=True)
class Sweep:
    """Figures by k, ascending; the k that was chosen, and why. NaN and missing figures are left out of a row."""

    rows: tuple[tuple[int, Mapping[str, float]], ...]
    chosen: int
    reason: str

    def measures(self) -> tuple[Measure, ...]:
        """Those that at least one k has."""
        return tuple(measure for measure in MEASURES if any(measure.key in figures for _, figures in self.rows))

    def error(self, row: Mapping[str, float], measure: Measure) -> float:
        """Half the width of a sampled figure's interval; 0 where it is exact."""
        return row.get(measure.key + _ERROR, 0.0)


def read_sweep(path: Path) -> Sweep:
    """Read the file of the segment stage."""
    raw = json.loads(path.read_text(encoding="utf-8"))
    rows = sorted(((int(row["k"]), _figures(row)) for row in raw["rows"]), key=lambda row: row[0])
    return Sweep(tuple(rows), int(raw["chosen"]), str(raw["reason"]))


def _figures(row: Mapping[str, Any]) -> dict[str, float]:
    return {
        key: float(value)
        for key, value in row.items()
        if key != "k" and isinstance(value, int | float) and math.isfinite(value)
    }
