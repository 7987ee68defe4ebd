"""Quality figures: one form for each measured value, wherever a run, a release or the API keeps it.

A `Figure` names its parts: the protocol (what was asked), the method (who answered), the metric and its cut-off `k`.
`run.json` (`quality` of a stage), `segmentation.json` and `manifest.json` (`figures`) hold lists of figures as objects.
Its text, `next visit/hybrid/ndcg@10`, is for people, for command lines and for maps: `Figure.name` writes the text and
`Figure.parse` reads it back; no other module puts such names together or takes them apart.
"""

from collections.abc import Iterable, Mapping
from typing import Self

from pydantic import Field, model_validator

from server.core.frozen_model import FrozenModel

LEAVE_ONE_OUT = "leave-one-out"
AS_SERVED = "as served"
TIME_SPLIT = "time split"
NEXT_VISIT = "next visit"
"""Protocols of a test: the target of a user, and which items are ranked. See `training.evaluation.evaluate`."""

VALIDATION = "validation"
"""The protocol of figures on the targets that settings were chosen on; no test has these targets."""

ENCODER = "encoder"
HYBRID, PERSONAL, SEGMENT, POPULAR = "hybrid", "personal", "segment", "popular"
STRATEGIES = (POPULAR, SEGMENT, PERSONAL, HYBRID)
"""Methods: the strategies of a release as it serves them, each over the whole catalogue."""


class Figure(FrozenModel, allow_inf_nan=False):
    """One measured value. `low` and `high` are its 95 % confidence bounds, both or neither.

    The metrics `hr`, `ndcg`, `recall` and `mrr` are from 0 to 1, `coverage` is a share of the catalogue, `novelty` is
    in bits; bigger is better in all. `k` is the length of the lists; None for a metric without lists.
    """

    protocol: str = Field(pattern="^[^/]+$")
    method: str = Field(pattern="^[^/]+$")
    metric: str = Field(pattern="^[^/@]+$")
    k: int | None = Field(default=None, ge=1)
    value: float
    low: float | None = None
    high: float | None = None

    @model_validator(mode="after")
    def _bounds_go_together(self) -> Self:
        if (self.low is None) != (self.high is None):
            raise ValueError("low and high go together")
        return self

    @property
    def name(self) -> str:
        """Such as `next visit/hybrid/ndcg@10`, or `probe of gender/mean/auroc` without a `k`."""
        return f"{self.protocol}/{self.method}/{self.measure}"

    @property
    def measure(self) -> str:
        """The last part of the name: `ndcg@10`, or the metric alone without a `k`."""
        return self.metric if self.k is None else f"{self.metric}@{self.k}"

    @classmethod
    def parse(cls, name: str, value: float, interval: tuple[float, float] | None = None) -> Self:
        """The figure of a `name` as the property writes it. Raises ValueError for any other text."""
        protocol, method, metric = name.split("/")
        metric, _, k = metric.partition("@")
        low, high = interval or (None, None)
        return cls(
            protocol=protocol, method=method, metric=metric, k=int(k) if k else None, value=value, low=low, high=high
        )


def figures_of(
    protocol: str,
    method: str,
    values: Mapping[str, float],
    intervals: Mapping[str, tuple[float, float]] | None = None,
) -> tuple[Figure, ...]:
    """A figure of each value by its measure, such as `ndcg@10`; `intervals` are bounds by the same names."""
    bounds = intervals or {}
    return tuple(Figure.parse(f"{protocol}/{method}/{name}", value, bounds.get(name)) for name, value in values.items())


def find(
    figures: Iterable[Figure], method: str, metric: str, k: int | None = 10, protocol: str | None = None
) -> Figure | None:
    """The first figure of the method and metric, by any protocol if none is given; None if there is none."""
    wanted = (method, metric, k)
    return next(
        (
            figure
            for figure in figures
            if (figure.method, figure.metric, figure.k) == wanted and protocol in (None, figure.protocol)
        ),
        None,
    )


def values_by_name(figures: Iterable[Figure]) -> dict[str, float]:
    """The value of each figure by its name."""
    return {figure.name: figure.value for figure in figures}
