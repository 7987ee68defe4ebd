"""What is in demand just now: how much likelier each item is lately than over all, added to personal scores.

An encoder learns from years what follows what; on news, or in a sale, what matters as much is what everybody reads
this week. The trend of an item at a moment is log p(item lately) - log p(item ever), in nats: 0 for an item that
does as it always did. Lately is an exponential fading with a half-life, drawn to all times by `PRIOR` events, so that
it goes back to 0 where nothing happens. Half-life and weight are chosen on validation targets, each at its own time,
and no weight at all is chosen unless it clearly helps. A release has the trend at the end of its log; what it is worth
here is what it is worth to those who make a release each night.
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
"""Half-lives to choose from, days."""

WEIGHTS = (0.25, 0.5, 1.0, 1.5, 2.0)
"""Weights to choose from, beside none."""

PRIOR = 100.0
"""How many events of all times stand beside the recent ones."""

CLEARLY = 2.5
"""By so many standard errors validation NDCG@10 has to rise, or there is no trend: the best of 20 tries is asked.

So none to 3 % of planted logs without any fashion get one (`docs/EXPERIMENTS.md`).
"""

_DAY_MS = 86_400_000
_CELLS_MAX = 25_000_000
_SCORES_MAX = 20_000_000
_SCORES_AT_ONCE = 2_000_000


@dataclass(frozen=True, slots=True)
class Trend:
    """`half_life` in days, and what the trend's nats are multiplied by before they are added to a personal score."""

    half_life: float
    weight: float

    def in_words(self) -> str:
        """For notes."""
        return f"half-life {self.half_life:g} {'day' if self.half_life == 1 else 'days'}, weight {self.weight:g}"


Lately = Callable[[NDArray[np.int64]], Tensor]
"""Moments (b,) in milliseconds → what is added to all items' scores then, (b, V)."""


class Demand:
    """How often each item is wanted and when, by the events that may be known before `held_out(log, from_end)`.

    For 0 all events are known. It keeps the items and times of positive actions only.
    """

    def __init__(self, log: EventLog, from_end: int, preprocessing: Preprocessing, item_count: int) -> None:
        known = log.before(known_ends(log, from_end)) & positive_actions(preprocessing)[log.features.action_index]
        self._row = log.features.item_index[known] - 1
        self._time = log.timestamp[known]
        self._item_count = item_count
        counts = np.bincount(self._row, minlength=item_count) + 1.0
        self._ever = counts / counts.sum()

    def __len__(self) -> int:
        return len(self._row)

    def ever(self) -> Tensor:
        """The log-probability of each item over all times, (V,)."""
        return torch.from_numpy(np.log(self._ever)).float()

    def now(self, trend: Trend) -> NDArray[np.float32]:
        """What is added to the items' scores at the newest event, (V,)."""
        age = (self._time.max(initial=0) - self._time) / _DAY_MS
        lately = np.bincount(self._row, np.exp2(-age / trend.half_life), self._item_count)
        return self._trend(lately.astype(np.float64)) * trend.weight

    def by_time(self, trend: Trend) -> Lately:
        """What is added at any moment, by the events before the day that it is in, as with a release made each night.

        Days count from the first event, and are longer in large catalogues over long times, so that the table has
        `_CELLS_MAX` cells at most.
        """
        start = int(self._time.min()) if len(self._time) else 0
        span = int(self._time.max(initial=start)) - start
        step = max(_DAY_MS, -(-span * self._item_count // _CELLS_MAX))
        count = span // step + 2
        place = (self._time - start) // step
        order = np.argsort(place, kind="stable")
        bounds = np.searchsorted(place[order], np.arange(count + 1))
        fading = np.exp2(-step / _DAY_MS / trend.half_life)
        # Row r of the table (R, V) is the trend by the events before step r; each step fades the earlier ones.
        table = np.empty((count, self._item_count), np.float32)
        lately = np.zeros(self._item_count)
        for row in range(count):
            table[row] = self._trend(lately)
            lately += np.bincount(self._row[order[bounds[row] : bounds[row + 1]]], minlength=self._item_count)
            lately *= fading
        found = torch.from_numpy(table).mul_(trend.weight)
        return lambda moments: found[torch.from_numpy(np.clip((moments - start) // step, 0, count - 1))]

    def _trend(self, lately: NDArray[np.float64]) -> NDArray[np.float32]:
        recent = (lately + PRIOR * self._ever) / (lately.sum() + PRIOR)
        trend: NDArray[np.float32] = (np.log(recent) - np.log(self._ever)).astype(np.float32)
        return trend


def moments_of(log: EventLog, held: HeldOut, from_end: int) -> NDArray[np.int64]:
    """When each target is asked for, (T,) ms: at its own time; in a split by time when its period begins."""
    if log.split.by_time:
        return np.full(len(held.rows), log.split.test_from if from_end == 1 else log.split.validation_from)
    return log.timestamp[held.ends]


def choose_trend(
    log: EventLog, held: HeldOut, scorer: Scorer, preprocessing: Preprocessing, item_count: int, *, exclude_seen: bool
) -> Trend | None:
    """The half-life and weight with the best NDCG@10 on validation targets; None where none clearly helps.

    `held` (T) are those of `held_out(log, 2)`, or some of them, whom `scorer` rates items for. None too for a log
    without a clock.
    """
    demand = Demand(log, 2, preprocessing, item_count)
    if not (preprocessing.has_clock and len(held.rows) and len(demand)):
        return None
    asked = np.arange(0, len(held.rows), -(-len(held.rows) * item_count // _SCORES_MAX))
    step = max(1, min(256, _SCORES_AT_ONCE // item_count))
    parts = [asked[start : start + step] for start in range(0, len(asked), step)]
    moments = moments_of(log, held, 2)

    def gains(lately: Lately | None, weights: Sequence[float]) -> NDArray[np.float64]:
        """NDCG@10 of those asked by weight, (W, A)."""
        found = []
        for places in parts:
            personal, targets = scorer(places), torch.from_numpy(held.targets[places].astype(np.int64) - 1)
            if exclude_seen:
                leave_out_seen(personal, log, select_targets(held, places))
            more = lately(moments[places]) if lately else torch.zeros(())
            ranks = [target_ranks(personal + weight * more, targets).numpy() for weight in weights]
            found.append(np.stack([ndcg_each(one, 10) for one in ranks]))
        return np.concatenate(found, 1)

    [without] = gains(None, (0.0,))
    best, most = None, 0.0
    for half_life in HALF_LIVES:
        for weight, one in zip(WEIGHTS, gains(demand.by_time(Trend(half_life, 1.0)), WEIGHTS), strict=True):
            gain = one - without
            if gain.mean() > max(most, CLEARLY * gain.std() / math.sqrt(len(gain))):
                best, most = Trend(half_life, weight), float(gain.mean())
    return best
