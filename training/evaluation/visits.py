"""Evaluation by visit: each user's last visit is held out whole, and lists of items are judged by the set of its items.

Lists are as a release serves them: items of earlier visits may be listed unless the log excludes seen items. Beside the
product stand rules of one line; what this user bought most often is the one to beat (Li et al., "A Next Basket
Recommendation Reality Check", TOIS 2023).
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse

from server.core.own_items import DAY_MS, OwnItems, own_items
from server.core.preprocessing import Preprocessing
from training.data.sequences import (
    EventLog,
    HeldOut,
    held_out,
    positive_actions,
    seen_pairs,
    select_targets,
)
from training.evaluation.baselines import item_knn_scorer, popularity_counts
from training.evaluation.results import NEXT_VISIT, Result, UserSlice
from training.metrics import CUTOFFS, LIST_LENGTH, bootstrap_interval, coverage, novelty
from training.model.torch_inference import Scorer
from training.ranking.next_visit import past_of

LISTED = max(CUTOFFS)
USERS_MAX = 5_000
"""Users who are asked, drawn by a fixed seed."""

HALF_LIVES = (7.0, 15.0, 30.0, 60.0, 120.0, 240.0, 480.0)
"""Days; the half-life that is best on the visits before is taken."""

_ROWS = 64

Lists = NDArray[np.int64]
"""Item rows of each user, best first, (B, ≥ LISTED); -1 where there are fewer."""


@dataclass(frozen=True, slots=True)
class Visits:
    """B users before a visit: `users` holds each once, `targets` (T,) all items of the visits."""

    log: EventLog
    users: HeldOut
    targets: HeldOut

    @classmethod
    def of(cls, log: EventLog, from_end: int, preprocessing: Preprocessing) -> "Visits":
        """Users before their last visit (1) or the visit before it (2); a sample of `USERS_MAX`."""
        held = held_out(log, from_end, positive_actions(preprocessing))
        _, first = np.unique(held.rows, return_index=True)
        if len(first) > USERS_MAX:
            first = np.sort(np.random.default_rng(0).permutation(first)[:USERS_MAX])
        kept = np.flatnonzero(np.isin(held.rows, held.rows[first]))
        return cls(log, select_targets(held, first), select_targets(held, kept))

    def seen(self) -> NDArray[np.bool_]:
        """Whether the user had each target before, (T,)."""
        place, item = seen_pairs(self.log, self.users)
        return np.isin(self._keys(), _keys(place, item))

    def _keys(self) -> NDArray[np.int64]:
        places = np.searchsorted(self.users.rows, self.targets.rows)
        return _keys(places, self.targets.targets.astype(np.int64) - 1)

    def figures(self, lists: Lists, kept: NDArray[np.bool_], count: int) -> dict[str, NDArray[np.float64]]:
        """HR, recall and NDCG of the first `count` items against the targets in the mask `kept` (T,), for each user
        who has one of them, in order.
        """
        listed, wanted = lists[:, :count], self._keys()[kept]
        hits = np.isin(_keys(np.arange(len(lists))[:, None], listed), wanted) & (listed >= 0)
        sizes = np.bincount(np.searchsorted(self.users.rows, self.targets.rows[kept]), minlength=len(lists))
        hits, sizes = hits[sizes > 0], sizes[sizes > 0]
        discounts = 1 / np.log2(np.arange(2, count + 2))
        ideal = np.cumsum(discounts)[np.minimum(sizes, count) - 1]
        return {
            "hr": hits.any(axis=1).astype(np.float64),
            "recall": hits.sum(axis=1) / sizes,
            "ndcg": (hits * discounts).sum(axis=1) / ideal,
        }


def _keys(users: NDArray[np.integer], items: NDArray[np.integer]) -> NDArray[np.int64]:
    return np.asarray(users).astype(np.int64) * (1 << 32) + items


def measure_lists(method: str, visits: Visits, lists: Lists, training_counts: NDArray[np.int64]) -> Result:
    """The figures of a method's lists, all in [0, 1] but novelty, which is in bits."""
    everything = np.ones(len(visits.targets.rows), np.bool_)
    figures: dict[str, float] = {}
    for count in CUTOFFS:
        each = visits.figures(lists, everything, count)
        figures |= {f"{name}@{count}": float(values.mean()) for name, values in each.items()}
    best = torch.from_numpy(np.where(lists[:, :LIST_LENGTH] < 0, lists[:, :1], lists[:, :LIST_LENGTH]))
    figures[f"coverage@{LIST_LENGTH}"] = coverage(best, len(training_counts))
    figures[f"novelty@{LIST_LENGTH}"] = novelty(best, training_counts)
    each = visits.figures(lists, everything, 10)
    intervals = bootstrap_interval(each["ndcg"], seed=0), bootstrap_interval(each["hr"], seed=0)
    return Result(NEXT_VISIT, method, len(lists), figures, *intervals, tuple(_slices(visits, lists, each)))


def _slices(visits: Visits, lists: Lists, each: Mapping[str, NDArray[np.float64]]) -> Iterator[UserSlice]:
    events = visits.users.ends - visits.log.features.starts[visits.users.rows]
    low, high = (int(bound) for bound in np.quantile(events, (1 / 3, 2 / 3), method="lower"))
    masks = {f"few (≤ {low})": events <= low, f"some (≤ {high})": (events > low) & (events <= high)}
    for name, mask in (masks | {f"many (> {high})": events > high}).items():
        yield _slice(name, each["ndcg"][mask], each["hr"][mask])
    seen = visits.seen()
    for name, kept in (("repeats", seen), ("items new to the user", ~seen)):
        part = visits.figures(lists, kept, 10)
        yield _slice(name, part["ndcg"], part["hr"])


def _slice(name: str, ndcg: NDArray[np.float64], hits: NDArray[np.float64]) -> UserSlice:
    users = len(ndcg)
    return UserSlice(name, users, float(ndcg.mean()) if users else 0.0, float(hits.mean()) if users else 0.0)


def best_of(scorer: Scorer, visits: Visits, item_count: int, *, exclude_seen: bool) -> Lists:
    """The best items of each user by scores of all items."""
    count = min(LISTED, item_count)
    lists = np.full((len(visits.users.rows), LISTED), -1, np.int64)
    with torch.inference_mode():
        for start in range(0, len(lists), _ROWS):
            places = np.arange(start, min(start + _ROWS, len(lists)))
            scores = scorer(places)
            if exclude_seen:
                place, item = seen_pairs(visits.log, select_targets(visits.users, places))
                scores[torch.from_numpy(place), torch.from_numpy(item)] = -torch.inf
            lists[places, :count] = scores.topk(count).indices.numpy()
    return lists


def rules(log: EventLog, visits: Visits, preprocessing: Preprocessing, item_count: int) -> Iterator[tuple[str, Lists]]:
    """The lists of each rule of one line, by name; rules of own items only where items may be recommended again."""
    counts = popularity_counts(log, preprocessing, item_count)
    excluded = preprocessing.exclude_seen
    for name, popular in counts.items():
        scores = torch.from_numpy(popular).float()
        yield name, best_of(_same_for_all(scores), visits, item_count, exclude_seen=excluded)
    knn = item_knn_scorer(log, visits.users, preprocessing, item_count)
    yield "item-kNN", best_of(knn, visits, item_count, exclude_seen=excluded)
    if excluded:
        return
    popular = counts["popularity"]
    yield "own, most frequent", _own(visits, preprocessing, popular, _most_frequent)
    if preprocessing.has_clock:
        before = Visits.of(log, 2, preprocessing)
        tried = {half_life: _fading(half_life) for half_life in HALF_LIVES}
        best = HALF_LIVES[0]
        if len(before.users.rows):
            everything = np.ones(len(before.targets.rows), np.bool_)
            best = max(
                HALF_LIVES,
                key=lambda one: before.figures(_own(before, preprocessing, popular, tried[one]), everything, 10)[
                    "ndcg"
                ].mean(),
            )
        yield f"own, fading, {best:g} days", _own(visits, preprocessing, popular, tried[best])


def _same_for_all(scores: torch.Tensor) -> Scorer:
    return lambda places: scores.repeat(len(places), 1)


Weigh = Callable[[OwnItems, NDArray[np.int64], NDArray[np.float64]], NDArray[np.float64]]
"""The score of each pair of user and item, (P,), from the pair of each event and its age in days, (N,) each."""


def _most_frequent(own: OwnItems, pair: NDArray[np.int64], days_ago: NDArray[np.float64]) -> NDArray[np.float64]:
    latest = np.full(len(own.row), np.inf)
    np.minimum.at(latest, pair, days_ago)
    return own.visits + 0.5 / (1.0 + latest)


def _fading(half_life: float) -> Weigh:
    def weigh(own: OwnItems, pair: NDArray[np.int64], days_ago: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.bincount(pair, np.exp2(-days_ago / half_life), len(own.row)).astype(np.float64)

    return weigh


def _own(visits: Visits, preprocessing: Preprocessing, popular: NDArray[np.int64], weigh: Weigh) -> Lists:
    """Own items by weight, then what is popular."""
    behaviour = past_of(visits.log, visits.users.rows, visits.users.ends, preprocessing)
    item_count = len(popular)
    own = own_items(behaviour, item_count)
    wanted = behaviour.past.weight >= 0
    row, item = behaviour.row[wanted], behaviour.past.item_row[wanted]
    newest = np.zeros(behaviour.user_count, np.int64)
    np.maximum.at(newest, behaviour.row, behaviour.past.time)
    days_ago = (newest[row] - behaviour.past.time[wanted]) / DAY_MS
    pair = np.searchsorted(own.row * item_count + own.item_row, row * item_count + item)
    scores = sparse.csr_matrix(
        (weigh(own, pair, days_ago), (own.row, own.item_row)), (behaviour.user_count, item_count)
    )
    filler = torch.from_numpy(popular / (popular.max(initial=0) + 1.0) * 1e-9).double()
    return best_of(
        lambda places: torch.from_numpy(scores[places].toarray()) + filler, visits, item_count, exclude_seen=False
    )
