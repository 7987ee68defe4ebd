"""Finds the visits of a log: which events of a user belong together, and whether the log has such visits at all."""

from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from server.core.preprocessing import Visits
from server.core.visits import visit_starts
from training.config import VisitSettings
from training.data.sequences import VISITS_FROM
from training.errors import ConfigError

BASKETS_FROM = 0.1
"""Share of events that tie with the user's next one from which visits are baskets: equal time stamps only."""

SESSION_GAP_SECONDS = 1800.0
"""The gap of other logs: 30 minutes, the convention of web analytics for the end of a session.

Google Analytics ends a session after 30 minutes without an event; Catledge and Pitkow (1995) took 25.5 minutes.
"""


SORTED_FROM = 0.9
"""Share of neighbours inside ties whose item ids ascend, or descend, from which the rows are sorted by item id."""

SORTED_PAIRS_MIN = 100
"""With fewer neighbours inside ties, their order can be chance."""

_SORTED_PAIRS_MAX = 200_000
"""Number of neighbours that are compared, evenly spread over the log."""


@dataclass(frozen=True, slots=True)
class FoundVisits:
    """The visits of a log.

    `ties`: share of events with the same time as the user's next event. `joined`: share of events that continue a
    visit. `repeats`: share of the items of visits that the user had in an earlier visit. `visits_a_user`: median.
    `events_a_visit`: mean. `ascending`: share of neighbours inside ties whose item ids ascend, in the order of the
    file; None if there are too few of them to tell.
    """

    visits: Visits
    ties: float
    joined: float
    visits_a_user: float
    events_a_visit: float
    repeats: float
    ascending: float | None

    @property
    def has_visits(self) -> bool:
        """Whether visits, not single events, are what this log's users do."""
        return self.joined >= VISITS_FROM

    def describe(self, chosen: bool) -> str:
        """The visits in words; `chosen` says that the gap was chosen from the log."""
        gap = self.visits.gap_seconds
        what = f"a user's events within {gap:g} s of the one before" if gap else "a user's events of one time stamp"
        why = " (chosen from the log; [visits] gap sets another gap)" if chosen else ""
        return (
            f"visits: a visit is {what}{why}; {self.ties:.0%} of events tie with the user's next event, "
            f"{self.repeats:.0%} of items repeat an item of an earlier visit of the user, "
            f"{self.visits_a_user:g} visits a user (median), {self.events_a_visit:.1f} events a visit (mean)"
        )

    def warning(self) -> str | None:
        """What the order inside ties may do to this log's figures, if the rows are sorted by item id there."""
        if self.ascending is None or 1 - SORTED_FROM < self.ascending < SORTED_FROM:
            return None
        direction = "ascend" if self.ascending >= SORTED_FROM else "descend"
        share = max(self.ascending, 1 - self.ascending)
        rows = f"rows of a user with one time stamp are sorted by item id ({share:.1%} of neighbours {direction})"
        if self.visits.ordered:
            return f"{rows}: training learns this order as [visits] ordered = true asks, and figures may measure it"
        return f"{rows}: this order carries nothing and is not learned; if it does, set [visits] ordered = true"


def find_visits(events: pl.DataFrame, has_clock: bool, settings: VisitSettings) -> FoundVisits:
    """The visits of events that are sorted by user_id, then time; tied events are in the order of the file.

    Raises ConfigError for a gap in seconds of a log without a clock.
    """
    if settings.gap and not has_clock:
        raise ConfigError(f"[visits] gap is {settings.gap:g} seconds, but this log has no clock; leave gap out, or 0.")
    user = events["user_id"].to_physical().to_numpy() if len(events) else np.zeros(0, np.int64)
    times = events["timestamp"].to_numpy()
    same_user = np.diff(user) == 0
    count = max(len(events), 1)
    tied = same_user & (np.diff(times) == 0)
    ties = float(tied.sum() / count)
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
        float(1.0 - starts.sum() / count),
        float(np.median(per_user)),
        len(events) / visit_count,
        _repeats(events, starts),
        _ascending(events["item_id"], np.flatnonzero(tied)),
    )


def _repeats(events: pl.DataFrame, starts: NDArray[np.bool_]) -> float:
    """Share of the pairs of visit and item that repeat an item of an earlier visit of the user."""
    user, item = (events[name].to_physical().to_numpy().astype(np.int64) for name in ("user_id", "item_id"))
    item_count = int(item.max(initial=0)) + 1
    # One integer is faster to count than two columns; a visit has one user.
    of_users, of_visits = (pl.Series(who * item_count + item).n_unique() for who in (user, np.cumsum(starts)))
    return 1.0 - of_users / max(of_visits, 1)


def _ascending(item_ids: pl.Series, places: NDArray[np.intp]) -> float | None:
    """Share of ascending ids among neighbours with different ids; `places` are the first ones of neighbours.

    Ids that are all whole numbers are compared as numbers, others as texts. None for fewer than `SORTED_PAIRS_MIN`.
    """
    places = places[:: len(places) // _SORTED_PAIRS_MAX + 1]
    first, second = (
        item_ids.gather(places).to_physical().to_numpy(),
        item_ids.gather(places + 1).to_physical().to_numpy(),
    )
    assert isinstance(item_ids.dtype, pl.Enum)  # its codes ascend like the texts
    ranks = item_ids.dtype.categories.cast(pl.Int64, strict=False)
    if not ranks.has_nulls():
        first, second = ranks.to_numpy()[first], ranks.to_numpy()[second]
    differ = first != second
    return float((first < second)[differ].mean()) if differ.sum() >= SORTED_PAIRS_MIN else None
