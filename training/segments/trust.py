"""How far each segment can be relied on, in figures and in one word.

`reproduced` is the cluster-wise stability of Hennig, "Cluster-wise assessment of cluster stability" (Computational
Statistics & Data Analysis 2007): over fits on resampled users, the mean largest Jaccard similarity of the segment and a
cluster of the fit. Its author calls clusters valid from 0.75 on and dissolved below 0.5.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from server.core.frozen_model import FrozenModel

Verdict = Literal["steady", "loose", "noise"]

STEADY_REPRODUCED, LEAST_REPRODUCED = 0.75, 0.5
STEADY_HALVES, LEAST_HALVES = 0.4, 0.15
"""From the first value on a segment is steady, below the second it is noise; a halved history is a hard test."""


class SegmentTrust(FrozenModel):
    """How far a segment can be relied on; larger is better, None is unknown.

    `halves` is the agreement of the segments of two random halves of each user's events, 0 as by chance, 1 always.
    """

    segment_id: int = Field(ge=1)
    reproduced: float | None = Field(ge=0, le=1)
    halves: float | None = Field(ge=-1, le=1)

    @property
    def verdict(self) -> Verdict | None:
        """The word for both figures, of which the worse counts; None if both are unknown."""
        found = (
            _level(self.reproduced, STEADY_REPRODUCED, LEAST_REPRODUCED),
            _level(self.halves, STEADY_HALVES, LEAST_HALVES),
        )
        levels = [level for level in found if level is not None]
        words: tuple[Verdict, ...] = ("noise", "loose", "steady")
        return words[min(levels)] if levels else None


def _level(figure: float | None, steady: float, least: float) -> int | None:
    return None if figure is None else int(figure >= least) + int(figure >= steady)


def trust_of(
    segment_ids: Sequence[int], reproduced: NDArray[np.float64], halves: NDArray[np.float64]
) -> tuple[SegmentTrust, ...]:
    """The trust of each segment; the figures (K,) are NaN where they are unknown."""
    return tuple(
        SegmentTrust(segment_id=segment_id, reproduced=_known(first), halves=_known(second))
        for segment_id, first, second in zip(segment_ids, reproduced.tolist(), halves.tolist(), strict=True)
    )


def _known(figure: float) -> float | None:
    return None if np.isnan(figure) else figure


def largest_jaccard(clusters: NDArray[np.intp], fits: Sequence[NDArray[np.intp]], count: int) -> NDArray[np.float64]:
    """Mean over fits of each cluster's largest Jaccard similarity to a cluster of the fit, (K,); NaN without users.

    `clusters` (N,) are from 0 to `count` - 1; each fit (N,) is of the same users, -1 for users outside its resample.
    """
    means = []
    for fit in fits:
        inside = fit >= 0
        table = np.zeros((count, int(fit.max(initial=0)) + 1))  # users in both, (K, clusters of the fit)
        np.add.at(table, (clusters[inside], fit[inside]), 1.0)
        either = table.sum(1, keepdims=True) + table.sum(0, keepdims=True) - table
        best = np.divide(table, either, out=np.zeros_like(table), where=either > 0).max(1)
        means.append(np.where(table.sum(1) > 0, best, np.nan))
    found = np.array(means)
    known = (~np.isnan(found)).sum(0)
    mean: NDArray[np.float64] = np.divide(np.nansum(found, 0), known, out=np.full(count, np.nan), where=known > 0)
    return mean


def halves_kept(first: NDArray[np.intp], second: NDArray[np.intp], count: int) -> NDArray[np.float64]:
    """Agreement of two assignments of the same users on each cluster, (K,): 0 as by chance, 1 always.

    This is Cohen's kappa for membership in the cluster; NaN without users.
    """
    shares = np.array([[(half == cluster).mean() for cluster in range(count)] for half in (first, second)])
    both = np.array([((first == cluster) & (second == cluster)).mean() for cluster in range(count)])
    observed = 1 - shares.sum(0) + 2 * both
    expected = shares.prod(0) + (1 - shares).prod(0)
    kappa = np.divide(observed - expected, 1 - expected, out=np.full(count, np.nan), where=expected < 1)
    return np.where(shares.sum(0) > 0, np.clip(kappa, -1, 1), np.nan)
