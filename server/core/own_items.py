"""What each user had before: how often, how lately and how regularly, from the events of their histories.

Ages are counted from the user's newest event, not from the time of the request, so that an answer depends on the
history alone. The statistics are those of next-basket recommendation: personal frequency and recency (Hu et al.,
"Modeling Personalized Item Frequency Information", SIGIR 2020), and the rhythm of an item (Ariannezhad et al.,
"ReCANet", SIGIR 2022).
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from server.core.ragged import rows_of

DAY_MS = 86_400_000

HALF_LIVES_DAYS = (7.0, 30.0, 120.0)
VISIT_DECAYS = (0.5, 0.8, 0.95)
"""What a visit counts, relative to the visit after it."""

DUE_MAX, SHORTEST_GAP = 10.0, 0.5
"""Limits of the time since an item in its usual gaps, and of such a gap in days or visits."""

OWN_FEATURES = (
    "own",
    "visits_with_item",
    "share_of_visits",
    "days_since_last",
    "visits_since_last",
    "days_since_first",
    *(f"fading_{half_life:g}_days" for half_life in HALF_LIVES_DAYS),
    *(f"fading_{decay:g}_a_visit" for decay in VISIT_DECAYS),
    "gap_days",
    "gap_visits",
    "due_days",
    "due_visits",
    "summed_weight",
    "last_weight",
)
"""Features of an item that the user had before. Counts and times are log(1 + x)."""

_NEVER = {"days_since_last": 8.0, "visits_since_last": 8.0, "days_since_first": 8.0}
_NEVER |= dict.fromkeys(("gap_days", "gap_visits", "due_days", "due_visits"), -1.0)
NEVER = np.array([_NEVER.get(name, 0.0) for name in OWN_FEATURES], np.float32)
"""The `OWN_FEATURES` of an item that the user never had."""

USER_FEATURES = ("visits", "visit_size", "repeat_share", "days")
"""Features of a user: log(1 + visits), log items a visit, share of repeats, log(1 + days of the history)."""


@dataclass(frozen=True, slots=True)
class PastEvents:
    """A user's events with known items, in time order, as columns (n,): `item_row` is the item index - 1, `weight` that
    of the action (0 if unknown), `time` in milliseconds; `begins_visit` marks the first event of each visit.
    """

    item_row: NDArray[np.int64]
    weight: NDArray[np.float32]
    time: NDArray[np.int64]
    begins_visit: NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Behaviour:
    """The `PastEvents` of B users, one user after the other, and the user of each event, `row` (N,).

    Without `has_clock` times only give the order, and all ages in days are 0.
    """

    row: NDArray[np.int64]
    past: PastEvents
    user_count: int
    has_clock: bool

    @classmethod
    def of(cls, users: Sequence[PastEvents], has_clock: bool) -> "Behaviour":
        """The events of each of the users."""
        columns = [np.concatenate([getattr(user, column.name) for user in users]) for column in fields(PastEvents)]
        return cls(rows_of([len(user.item_row) for user in users]), PastEvents(*columns), len(users), has_clock)


@dataclass(frozen=True, slots=True)
class OwnItems:
    """The P pairs of user and item with an event of weight 0 or more, sorted by user, then item.

    `row` and `item_row` (P,); `visits` (P,): how many visits had the item; `chances` (P,): how many visits the user had
    after the first of them; `features` (P, `OWN_FEATURES`); `users` (B, `USER_FEATURES`); user b has the pairs
    `offsets[b]:offsets[b + 1]`.
    """

    row: NDArray[np.int64]
    item_row: NDArray[np.int64]
    visits: NDArray[np.int64]
    chances: NDArray[np.int64]
    features: NDArray[np.float32]
    users: NDArray[np.float32]
    offsets: NDArray[np.int64]

    def items_of(self, user: int) -> NDArray[np.int64]:
        """The item rows of one user, ascending."""
        return self.item_row[self.offsets[user] : self.offsets[user + 1]]

    def features_of(self, user: int, item_rows: NDArray[np.integer]) -> NDArray[np.float32]:
        """The `OWN_FEATURES` of one user's items, (R, `OWN_FEATURES`); `NEVER` for items that the user never had."""
        own = self.items_of(user)
        found = np.tile(NEVER, (len(item_rows), 1))
        if len(own):
            place = np.minimum(np.searchsorted(own, item_rows), len(own) - 1)
            is_own = own[place] == item_rows
            found[is_own] = self.features[self.offsets[user] + place[is_own]]
        return found


@dataclass(frozen=True, slots=True)
class _Clock:
    """How long ago each event was, (N,): days before the user's newest event, and visits, 1 for the newest visit.

    `visit_count` and `days` are those of each user's history, (B,).
    """

    days_ago: NDArray[np.float64]
    visits_ago: NDArray[np.int64]
    visit_count: NDArray[np.int64]
    days: NDArray[np.float64]

    @classmethod
    def of(cls, events: Behaviour) -> "_Clock":
        visit = np.cumsum(events.past.begins_visit)
        bounds = np.searchsorted(events.row, np.arange(events.user_count + 1))
        first, last = bounds[:-1], np.maximum(bounds[1:] - 1, bounds[:-1])
        is_active = bounds[1:] > bounds[:-1]
        first, last = first[is_active], last[is_active]
        visit_count, days = np.zeros(events.user_count, np.int64), np.zeros(events.user_count)
        newest_visit, newest_time = np.zeros(events.user_count, np.int64), np.zeros(events.user_count, np.int64)
        newest_visit[is_active], newest_time[is_active] = visit[last], events.past.time[last]
        visit_count[is_active] = visit[last] - visit[first] + 1
        visits_ago = newest_visit[events.row] - visit + 1
        if not events.has_clock:
            return cls(np.zeros(len(visit)), visits_ago, visit_count, days)
        days[is_active] = (events.past.time[last] - events.past.time[first]) / DAY_MS
        return cls((newest_time[events.row] - events.past.time) / DAY_MS, visits_ago, visit_count, days)


def own_items(events: Behaviour, item_count: int) -> OwnItems:
    """The statistics of every user's items; events of negative weight, such as returns, only make up visits."""
    clock = _Clock.of(events)
    wanted = np.flatnonzero(events.past.weight >= 0)
    key = events.row[wanted] * item_count + events.past.item_row[wanted]
    order = np.argsort(key, kind="stable")
    key, place = key[order], wanted[order]
    begins = np.flatnonzero(np.diff(key, prepend=-1))
    row, item_row = key[begins] // item_count, key[begins] % item_count
    visits, features = _pair_features(events, clock, place, begins)
    offsets = np.searchsorted(row, np.arange(events.user_count + 1))
    had = np.maximum(np.bincount(row, visits, events.user_count), 1)
    users = (
        np.log1p(clock.visit_count),
        np.log(had / np.maximum(clock.visit_count, 1)),
        1.0 - np.diff(offsets) / had,
        np.log1p(clock.days),
    )
    chances = clock.visits_ago[place[begins]] - 1
    return OwnItems(row, item_row, visits, chances, features, np.column_stack(users).astype(np.float32), offsets)


def _pair_features(
    events: Behaviour, clock: _Clock, place: NDArray[np.intp], begins: NDArray[np.intp]
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """How many visits had the item, (P,), and the `OWN_FEATURES` (P, F) of pairs whose events are at `place`.

    The events of a pair are consecutive in `place`, in time order, and begin at `begins`.
    """
    if not len(begins):
        return np.zeros(0, np.int64), np.zeros((0, len(OWN_FEATURES)), np.float32)
    days_ago, visits_ago = clock.days_ago[place], clock.visits_ago[place]
    once = np.diff(visits_ago, prepend=-1) != 0  # an item counts once in a visit
    once[begins] = True
    ends = np.append(begins[1:], len(place)) - 1
    visits = np.add.reduceat(once.astype(np.int64), begins)
    fading = [once * np.exp2(-days_ago / half_life) for half_life in HALF_LIVES_DAYS]
    fading += [once * decay ** (visits_ago - 1) for decay in VISIT_DECAYS]
    weight = events.past.weight[place]
    gap_days, due_days = _rhythm(visits, days_ago[begins], days_ago[ends])
    gap_visits, due_visits = _rhythm(visits, visits_ago[begins], visits_ago[ends])
    columns = (
        np.ones(len(begins)),
        np.log1p(visits),
        visits / clock.visit_count[events.row[place[begins]]],
        np.log1p(days_ago[ends]),
        np.log1p(visits_ago[ends]),
        np.log1p(days_ago[begins]),
        *(np.log1p(np.add.reduceat(column, begins)) for column in fading),
        gap_days,
        gap_visits,
        due_days,
        due_visits,
        np.log1p(np.add.reduceat(weight, begins)),
        weight[ends],
    )
    return visits, np.column_stack(columns).astype(np.float32)


def _rhythm(
    visits: NDArray[np.int64], first: NDArray[Any], last: NDArray[Any]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The log gap between visits with the item, and the time since the last of them in such gaps; -1 after one visit.

    `first` and `last` say how long ago the first and the last of them were.
    """
    is_regular = visits > 1
    gap = (first.astype(np.float64) - last) / np.maximum(visits - 1, 1)
    due = np.minimum(last / np.maximum(gap, SHORTEST_GAP), DUE_MAX)
    return np.where(is_regular, np.log1p(gap), -1.0), np.where(is_regular, due, -1.0)
