"""The trend of items: how much more likely each item is now than over all time. It is added to personal scores.

An encoder learns from years of behaviour which item follows which; for news or during a sale, the demand of this week
matters as much. The trend of an item at a time is log p(item, recently) - log p(item, ever), in nats: 0 for an item
with its usual demand. Recent events are weighted by an exponential half-life, and `PRIOR` events of all time are added
to them, so that the trend returns to 0 in times without events. Half-life and weight are chosen on validation targets,
each at its own time; there is no trend unless it clearly helps. A release holds the trend at the end of its log; the
figures here are those of a service that publishes a release each night.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from server.core.preprocessing import Preprocessing
from training.data.sequences import EventLog, HeldOut, known_ends, positive_actions, select_targets
from training.metrics import ndcg_each, target_ranks
from training.model.torch_inference import Scorer, leave_out_seen

HALF_LIVES = (1.0, 3.0, 7.0, 30.0)
"""The candidate half-lives, days."""

WEIGHTS = (0.25, 0.5, 1.0, 1.5, 2.0)
"""The candidate weights; a log may also get no trend."""

PRIOR = 100.0
"""The number of events, distributed as over all time, that are added to the recent events."""

MIN_STANDARD_ERRORS = 2.5
"""The trend must raise validation NDCG@10 by this many standard errors; the bound is high for the best of 20 tries.

With it 0 to 3 % of planted logs without any trend get one (`docs/EXPERIMENTS.md`).
"""

_DAY_MS = 86_400_000
_CELLS_MAX = 25_000_000
_SCORES_MAX = 20_000_000
_SCORES_AT_ONCE = 2_000_000


@dataclass(frozen=True, slots=True)
class Trend:
    """`half_life` in days, and the `weight` that multiplies the trend before it is added to scores."""

    half_life: float
    weight: float

    def describe(self) -> str:
        return f"half-life {self.half_life:g} {'day' if self.half_life == 1 else 'days'}, weight {self.weight:g}"


TrendScores = Callable[[NDArray[np.int64]], Tensor]
"""Returns the weighted trend (b, V) of all items at times (b,), in milliseconds."""


class Demand:
    """The items and times of the positive events before the targets `held_out(log, from_end)`; all events for 0."""

    def __init__(self, log: EventLog, from_end: int, preprocessing: Preprocessing, item_count: int) -> None:
        known = log.before(known_ends(log, from_end)) & positive_actions(preprocessing)[log.features.action_index]
        self._row = log.features.item_index[known] - 1
        self._time = log.timestamp[known]
        self._item_count = item_count
        counts = np.bincount(self._row, minlength=item_count) + 1.0
        self._ever = counts / counts.sum()

    def __len__(self) -> int:
        return len(self._row)

    def log_probability(self) -> Tensor:
        """The log-probability of each item over all time, (V,)."""
        return torch.from_numpy(np.log(self._ever)).float()

    def newest_scores(self, trend: Trend) -> NDArray[np.float32]:
        """The weighted trend of each item at the time of the newest event, (V,)."""
        age = (self._time.max(initial=0) - self._time) / _DAY_MS
        recent_counts = np.bincount(self._row, np.exp2(-age / trend.half_life), self._item_count)
        return self._trend(recent_counts.astype(np.float64)) * trend.weight

    def scores_by_time(self, trend: Trend) -> TrendScores:
        """The weighted trend at any time, from the events before that day, as with a release published each night.

        Days count from the first event. For a large catalogue and a long log a step is longer than a day, so that the
        table has at most `_CELLS_MAX` cells.
        """
        start = int(self._time.min()) if len(self._time) else 0
        span = int(self._time.max(initial=start)) - start
        step = max(_DAY_MS, -(-span * self._item_count // _CELLS_MAX))
        count = span // step + 2
        steps = (self._time - start) // step
        order = np.argsort(steps, kind="stable")
        bounds = np.searchsorted(steps[order], np.arange(count + 1))
        decay = np.exp2(-step / _DAY_MS / trend.half_life)
        # Row r of the table (R, V) is the trend from the events before step r; each step decays the earlier counts.
        table = np.empty((count, self._item_count), np.float32)
        recent_counts = np.zeros(self._item_count)
        for row in range(count):
            table[row] = self._trend(recent_counts)
            recent_counts += np.bincount(self._row[order[bounds[row] : bounds[row + 1]]], minlength=self._item_count)
            recent_counts *= decay
        scores = torch.from_numpy(table).mul_(trend.weight)
        return lambda times: scores[torch.from_numpy(np.clip((times - start) // step, 0, count - 1))]

    def _trend(self, recent_counts: NDArray[np.float64]) -> NDArray[np.float32]:
        """The trend in nats from weighted counts of recent events, (V,)."""
        recent = (recent_counts + PRIOR * self._ever) / (recent_counts.sum() + PRIOR)
        trend: NDArray[np.float32] = (np.log(recent) - np.log(self._ever)).astype(np.float32)
        return trend


def target_times(log: EventLog, held: HeldOut, from_end: int) -> NDArray[np.int64]:
    """When each target is predicted, (T,) ms: at its own time; for a split by time, at the start of its period."""
    if log.split.by_time:
        return np.full(len(held.rows), log.split.test_from if from_end == 1 else log.split.validation_from)
    return log.timestamp[held.ends]


def choose_trend(
    log: EventLog, held: HeldOut, scorer: Scorer, preprocessing: Preprocessing, item_count: int, *, exclude_seen: bool
) -> Trend | None:
    """The half-life and weight with the best NDCG@10 on validation targets.

    None if no trend clearly helps, and for a log without a clock. `held` (T) are targets of `held_out(log, 2)`, all or
    a sample; `scorer` gives personal scores for their users.
    """
    demand = Demand(log, 2, preprocessing, item_count)
    if not (preprocessing.has_clock and len(held.rows) and len(demand)):
        return None
    # Every n-th target, so that at most `_SCORES_MAX` scores are computed, in batches.
    sample = np.arange(0, len(held.rows), -(-len(held.rows) * item_count // _SCORES_MAX))
    step = max(1, min(256, _SCORES_AT_ONCE // item_count))
    batches = [sample[start : start + step] for start in range(0, len(sample), step)]
    times = target_times(log, held, 2)

    def ndcg_by_weight(trend_scores: TrendScores | None, weights: Sequence[float]) -> NDArray[np.float64]:
        """NDCG@10 of each weight and sampled target, (W, S)."""
        ndcg = []
        for places in batches:
            personal, targets = scorer(places), torch.from_numpy(held.targets[places].astype(np.int64) - 1)
            if exclude_seen:
                leave_out_seen(personal, log, select_targets(held, places))
            trend = trend_scores(times[places]) if trend_scores else torch.zeros(())
            ranks = [target_ranks(personal + weight * trend, targets).numpy() for weight in weights]
            ndcg.append(np.stack([ndcg_each(weight_ranks, 10) for weight_ranks in ranks]))
        return np.concatenate(ndcg, 1)

    [without_trend] = ndcg_by_weight(None, (0.0,))
    best, best_gain = None, 0.0
    for half_life in HALF_LIVES:
        unweighted = demand.scores_by_time(Trend(half_life, 1.0))
        for weight, ndcg in zip(WEIGHTS, ndcg_by_weight(unweighted, WEIGHTS), strict=True):
            gain = ndcg - without_trend
            if gain.mean() > max(best_gain, MIN_STANDARD_ERRORS * gain.std() / math.sqrt(len(gain))):
                best, best_gain = Trend(half_life, weight), float(gain.mean())
    return best
