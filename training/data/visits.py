"""Finds the visits of a log: which events of a user belong together, and whether the log has such visits at all."""

from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from server.core.preprocessing import Visits
from server.core.visits import visit_starts
from training.config import VisitSettings
from training.data.sequences import VISITS_FROM

BASKETS_FROM = 0.1
"""Share of events that tie with the user's next one from which visits are baskets: equal time stamps only."""

SESSION_GAP_SECONDS = 1800.0
"""The gap of other logs: 30 minutes, the convention of web analytics for the end of a session."""


@dataclass(frozen=True, slots=True)
class FoundVisits:
    """The visits of a log.

    `ties`: share of events with the same time as the user's next event. `joined`: share of events that continue a
    visit. `repeats`: share of the items of visits that the user had in an earlier visit. `visits_a_user`: median.
    `events_a_visit`: mean.
    """

    visits: Visits
    ties: float
    joined: float
    visits_a_user: float
    events_a_visit: float
    repeats: float

    @property
    def has_visits(self) -> bool:
        """Whether visits, not single events, are what this log's users do."""
        return self.joined >= VISITS_FROM

    def describe(self, chosen: bool) -> str:
        """One sentence for people; `chosen` says that the gap is the log's."""
        gap = self.visits.gap_seconds
        what = f"events within {gap:g} s of the one before" if gap else "events with equal time stamps"
        why = "; [visits] gap sets another" if chosen else ""
        return (
            f"a visit is all {what}{why}: {self.ties:.0%} of events tie with the next, "
            f"{self.events_a_visit:.1f} events a visit, {self.visits_a_user:g} visits a user (median)"
        )


def find_visits(events: pl.DataFrame, has_clock: bool, settings: VisitSettings) -> FoundVisits:
    """The visits of events that are sorted by user_id, then time; without a clock every event is a visit."""
    user = events["user_id"].to_physical().to_numpy() if len(events) else np.zeros(0, np.int64)
    times = events["timestamp"].to_numpy()
    same_user = np.diff(user) == 0
    count = max(len(events), 1)
    ties = float((same_user & (np.diff(times) == 0)).sum() / count) if has_clock else 0.0
    gap = settings.gap
    if gap is None:
        gap = SESSION_GAP_SECONDS if has_clock and ties < BASKETS_FROM else 0.0
    visits = Visits(gap_seconds=gap, ordered=settings.ordered)
    starts = visit_starts(user, times, gap)
    user_starts = np.flatnonzero(np.append(True, ~same_user))
    per_user = np.add.reduceat(starts.astype(np.int64), user_starts) if len(events) else np.zeros(1)
    visit_count = max(int(starts.sum()), 1)
    return FoundVisits(
        visits,
        ties,
        1.0 - starts.sum() / count,
        float(np.median(per_user)),
        len(events) / visit_count,
        _repeats(events, starts),
    )


def _repeats(events: pl.DataFrame, starts: NDArray[np.bool_]) -> float:
    """Share of the pairs of visit and item that repeat an item of an earlier visit of the user."""
    user, item = (pl.col(name).to_physical().cast(pl.Int64) for name in ("user_id", "item_id"))
    pair = events.select(user * (item.max() + 1) + item).to_series().alias("pair")
    visits = pl.DataFrame({"pair": pair, "visit": np.cumsum(starts)}).unique()
    return 1.0 - visits["pair"].n_unique() / max(len(visits), 1)
