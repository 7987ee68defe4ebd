"""Rules that predict a user's next visit: what the user had before, what like users have, what follows the last visit.

A rule scores items for some users at a time: sparse (C, V), above 0 where the rule has something to say, larger is
better. No rule holds scores of all users and all items at once.

TIFU-KNN: Hu et al., "Modeling Personalized Item Frequency Information for Next-basket Recommendation", SIGIR 2020.
The graph rule walks a few steps in the graph of transitions, like the heuristic of Han et al., "An Embarrassingly
Simple Graph Heuristic Reveals Shortcut-Solvable Benchmarks for Sequential Recommendation", arXiv 2605.07125, 2026.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from training.evaluation.baselines import RECENT_DAYS, item_similarity

Rule = Callable[[slice], sparse.csr_matrix]
"""The scores (C, V) of the asked users of a slice."""

HALF_LIVES = (7.0, 15.0, 30.0, 60.0, 120.0, 240.0, 480.0)
"""Candidate half-lives of own items, in days."""

POPULARITY, RECENT_POPULARITY = "popularity", f"popularity, {RECENT_DAYS} days"
OWN_FREQUENT, OWN_FADING = "own, most frequent", "own, fading"
TIFU_KNN, ITEM_KNN, GRAPH = "TIFU-KNN", "item-kNN", "graph"
OWN_ONLY = frozenset({OWN_FREQUENT, OWN_FADING})
"""The rules that score no item that is new to the user."""

_DAY_MS = 86_400_000
_NEIGHBOUR_USERS = 20_000
_FOLLOWERS = 200
"""The most frequent followers kept per item."""
_STEP_ITEMS = 200
"""The items of a step from which the next step goes on."""
_BLOCK = 512


class TifuSettings(NamedTuple):
    """The number of groups of visits, the decay within and between groups, the number of nearest users, and the weight
    of a user's own vector; the nearest users have the rest.
    """

    groups: int
    within: float
    between: float
    neighbours: int
    own: float


class GraphSettings(NamedTuple):
    """The number of last visits to start from, the number of steps, and the worth of each older visit or next step."""

    visits: int
    steps: int
    damping: float


TIFU_SETTINGS = (
    TifuSettings(7, 0.9, 0.7, 300, 0.7),
    TifuSettings(7, 0.9, 0.9, 300, 0.9),
    TifuSettings(3, 1.0, 0.9, 300, 0.9),
)
"""The first is the paper's for Instacart."""
GRAPH_SETTINGS = (GraphSettings(1, 1, 0.5), GraphSettings(1, 3, 0.5), GraphSettings(2, 2, 0.5))


@dataclass(frozen=True, eq=False)
class Visits:
    """W visits sorted by user and time: `sets` (W, V) is 1 where a visit has an item; `user` (W,) is its user.

    `back` (W,) is the number of the user's later visits.
    """

    sets: sparse.csr_matrix
    user: NDArray[np.int64]
    back: NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Past:
    """What was known of U users before the visits of the B users `asked` (B,), which begin at `asked_at` (B,).

    N events, sorted by user and time: `user` (N,), `item` row (N,), `visit` number (N,), `time` in ms (N,).
    """

    user: NDArray[np.int64]
    item: NDArray[np.int64]
    visit: NDArray[np.int64]
    time: NDArray[np.int64]
    asked: NDArray[np.intp]
    asked_at: NDArray[np.int64]
    user_count: int
    item_count: int
    has_clock: bool

    @cached_property
    def counts(self) -> sparse.csr_matrix:
        """1 for each item that a user had, (U, V)."""
        ones = np.ones(len(self.user), np.float32)
        counts = sparse.csr_matrix((ones, (self.user, self.item)), (self.user_count, self.item_count))
        counts.data[:] = 1.0
        return counts

    @cached_property
    def visits(self) -> Visits:
        """The visits of all users."""
        starts = np.diff(self.visit, prepend=-1) != 0
        number, first = np.cumsum(starts) - 1, np.flatnonzero(starts)
        ones = np.ones(len(self.item), np.float32)
        sets = sparse.csr_matrix((ones, (number, self.item)), (len(first), self.item_count))
        sets.data[:] = 1.0
        user = self.user[first]
        newest = np.cumsum(np.bincount(user, minlength=self.user_count)) - 1
        return Visits(sets, user, newest[user] - np.arange(len(user)))

    @cached_property
    def transitions(self) -> sparse.csr_matrix:
        """Share of the followers of each item in the next visit that are another item, (V, V), the largest only."""
        sets, user = self.visits.sets, self.visits.user
        followed = np.flatnonzero(user[1:] == user[:-1])
        before, after = sets[followed].T.tocsr(), sets[followed + 1]
        total = np.maximum(np.asarray(before @ after.sum(axis=1)).ravel(), 1.0)
        blocks = [
            largest((before[first : first + _BLOCK] @ after).tocsr(), _FOLLOWERS)
            for first in range(0, self.item_count, _BLOCK)
        ]
        return (sparse.diags(1 / total) @ sparse.vstack(blocks, format="csr")).tocsr().astype(np.float32)

    def popularity(self) -> NDArray[np.int64]:
        """The number of events of each item, (V,)."""
        return np.bincount(self.item, minlength=self.item_count)


def rules(past: Past) -> Mapping[str, Mapping[str, Callable[[Past], Rule]]]:
    """Each rule by name, with its candidate settings by description; "" where there is nothing to choose."""
    clock: dict[str, dict[str, Callable[[Past], Rule]]] = {}
    fading: dict[str, dict[str, Callable[[Past], Rule]]] = {}
    if past.has_clock:
        clock = {RECENT_POPULARITY: {"": partial(popularity, days=RECENT_DAYS)}}
        fading = {OWN_FADING: {f"half-life {one:g} days": partial(own_fading, half_life=one) for one in HALF_LIVES}}
    return {
        POPULARITY: {"": popularity},
        **clock,
        OWN_FREQUENT: {"": own_frequent},
        **fading,
        TIFU_KNN: {_words(one): partial(tifu_knn, settings=one) for one in TIFU_SETTINGS},
        ITEM_KNN: {"": item_knn},
        GRAPH: {_words(one): partial(graph, settings=one) for one in GRAPH_SETTINGS},
    }


def popularity(past: Past, days: float | None = None) -> Rule:
    """The number of events of each item, of all time or of the last `days` before the newest event."""
    recent = np.ones(len(past.time), np.bool_)
    if days is not None and len(past.time):
        recent = past.time > past.time.max() - days * _DAY_MS
    counts = np.bincount(past.item[recent], minlength=past.item_count).astype(np.float32)
    row = sparse.csr_matrix(counts)
    return lambda users: row[np.zeros(users.stop - users.start, np.intp)]


def own_frequent(past: Past) -> Rule:
    """The number of the user's visits with the item; among equal numbers, the item of the later visit is first."""
    visits = past.visits
    weight = 1.0 + 1e-3 * 0.5 ** np.minimum(visits.back, 100)
    owner = sparse.csr_matrix((weight, (visits.user, np.arange(len(visits.user)))), (past.user_count, len(visits.user)))
    scores = (owner[past.asked] @ visits.sets).tocsr().astype(np.float32)
    return lambda users: scores[users]


def own_fading(past: Past, half_life: float) -> Rule:
    """The number of the user's events of the item, each halved for every `half_life` days before the visit."""
    asked_at = np.zeros(past.user_count, np.int64)
    asked_at[past.asked] = past.asked_at
    is_asked = np.zeros(past.user_count, np.bool_)
    is_asked[past.asked] = True
    kept = is_asked[past.user]
    user = past.user[kept]
    weight = np.exp2(-(asked_at[user] - past.time[kept]) / _DAY_MS / half_life)
    shape = past.user_count, past.item_count
    scores = sparse.csr_matrix((weight, (user, past.item[kept])), shape)[past.asked]
    return lambda users: scores[users]


def item_knn(past: Past) -> Rule:
    """The summed cosine of an item to the items that the user had (Sarwar et al. 2001)."""
    similarity = item_similarity(past.counts)
    histories = past.counts[past.asked]
    return lambda users: (histories[users] @ similarity).tocsr()


def tifu_knn(past: Past, settings: TifuSettings) -> Rule:
    """Item frequencies that fade by visit and by group of visits, mixed with those of the nearest users."""
    groups, within, between, neighbours, own = settings
    vectors = _tifu_vectors(past, groups, within, between)
    active = np.unique(past.user)
    drawn = np.random.default_rng(0).permutation(active)[:_NEIGHBOUR_USERS]
    pool = np.union1d(drawn, np.intersect1d(past.asked, active))
    others, mine = vectors[pool], vectors[past.asked]
    squared = np.asarray(others.multiply(others).sum(axis=1)).ravel()
    count = min(neighbours, len(pool) - 1)

    def scores(users: slice) -> sparse.csr_matrix:
        if count < 1:
            return own * mine[users]
        # Squared distances (C, P), without the square of the user's own vector, which changes no order.
        distance = squared - 2 * (others @ np.ascontiguousarray(mine[users].toarray().T)).T
        distance[pool == past.asked[users, None]] = np.inf
        near = np.argpartition(distance, count - 1, axis=1)[:, :count]
        share = np.full(near.size, 1 / count, np.float32)
        links = sparse.csr_matrix((share, (np.repeat(np.arange(len(near)), count), near.ravel())), distance.shape)
        return (own * mine[users] + (1 - own) * (links @ others)).tocsr()

    return scores


def _tifu_vectors(past: Past, groups: int, within: float, between: float) -> sparse.csr_matrix:
    """Weighted item frequencies (U, V): the mean over groups of the means over each group's visits."""
    sets, user, back = past.visits.sets, past.visits.user, past.visits.back
    size = np.ceil(np.bincount(user, minlength=past.user_count)[user] / groups)
    weight = between ** (back // size) * within ** (back % size) / (size * groups)
    owner = sparse.csr_matrix((weight.astype(np.float32), (user, np.arange(len(user)))), (past.user_count, len(user)))
    return (owner @ sets).tocsr()


def graph(past: Past, settings: GraphSettings) -> Rule:
    """A few steps from the items of the last visits in the graph of transitions, each worth less than the last."""
    visits = past.visits
    taken = np.flatnonzero(visits.back < settings.visits)
    weight = settings.damping ** visits.back[taken].astype(np.float32)
    newest = sparse.csr_matrix((weight, (visits.user[taken], taken)), (past.user_count, len(visits.user)))
    sources = (newest[past.asked] @ visits.sets).tocsr()

    def scores(users: slice) -> sparse.csr_matrix:
        state, found = sources[users], None
        for step in range(settings.steps):
            state = largest(state, _STEP_ITEMS) @ past.transitions
            found = state if found is None else found + settings.damping**step * state
        return sparse.csr_matrix(found)

    return scores


def largest(matrix: sparse.csr_matrix, count: int) -> sparse.csr_matrix:
    """Keep the `count` largest entries of each row; of equal entries at the end, all. Changes the matrix."""
    matrix = matrix.tocsr()
    for row in np.flatnonzero(np.diff(matrix.indptr) > count):
        part = matrix.data[matrix.indptr[row] : matrix.indptr[row + 1]]
        part[part < np.partition(part, len(part) - count)[len(part) - count]] = 0.0
    matrix.eliminate_zeros()
    return matrix


def _words(settings: NamedTuple) -> str:
    return ", ".join(f"{name} {value:g}" for name, value in settings._asdict().items())
