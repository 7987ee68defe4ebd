"""Rules of one line, and the anchors of next-basket recommendation, that the product is measured beside.

Each rule scores all items for all users: float32 (U, V), larger is better; -inf where it has nothing to say. Histories
are sparse counts of items by visit, the newest visit last.

TIFU-KNN: Hu et al., "Modeling Personalized Item Frequency Information for Next-basket Recommendation", SIGIR 2020.
The graph rule: a few steps in the graph of transitions from one visit to the next (after arXiv 2605.07125).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

Scores = NDArray[np.float32]
DAY_MS = 86_400_000
TOP = 10

HALF_LIVES = (7.0, 15.0, 30.0, 60.0, 120.0, 240.0, 480.0)
"""Days; the best on validation visits is taken."""


class TifuSettings(NamedTuple):
    """Groups of visits, decay within and between them, how many neighbours, and the share of a user's own vector."""

    groups: int
    within: float
    between: float
    neighbours: int
    own: float


TIFU_SETTINGS = (
    TifuSettings(7, 0.9, 0.7, 300, 0.7),
    TifuSettings(7, 0.9, 0.9, 300, 0.9),
    TifuSettings(3, 1.0, 0.9, 900, 0.9),
)
"""The first is the paper's for Instacart; the best on validation visits is taken."""


@dataclass(frozen=True, slots=True)
class Histories:
    """Events of U users by column (N,), sorted by user and time: `user`, `item` row, `visit` (numbered over all users),
    `time` in milliseconds; and `asked_at` (U,), when the next visit begins.
    """

    user: NDArray[np.int64]
    item: NDArray[np.int64]
    visit: NDArray[np.int64]
    time: NDArray[np.int64]
    asked_at: NDArray[np.int64]
    item_count: int

    def counts(self, weight: NDArray[np.float64] | None = None) -> sparse.csr_matrix:
        """How often each user had each item (U, V), each event weighed."""
        weight = np.ones(len(self.user)) if weight is None else weight
        shape = (len(self.asked_at), self.item_count)
        return sparse.csr_matrix((weight, (self.user, self.item)), shape=shape)

    def visit_sets(self) -> tuple[sparse.csr_matrix, NDArray[np.int64]]:
        """The items of each visit, 1 where it has one (W, V), and whose visit it is (W,)."""
        first = np.flatnonzero(np.diff(self.visit, prepend=-1))
        number = np.cumsum(np.diff(self.visit, prepend=self.visit[0]) != 0)
        ones = np.ones(len(self.item), np.float32)
        sets = sparse.csr_matrix((ones, (number, self.item)), shape=(len(first), self.item_count))
        sets.data[:] = 1.0
        return sets, self.user[first]


def popularity(histories: Histories, since: int | None = None) -> Scores:
    """What everybody had most often, of the events from `since` on."""
    kept = np.ones(len(histories.item), bool) if since is None else histories.time >= since
    counts = np.bincount(histories.item[kept], minlength=histories.item_count).astype(np.float32)
    return np.broadcast_to(counts, (len(histories.asked_at), histories.item_count))


def own_frequency(histories: Histories) -> Scores:
    """What this user had in most visits; the later one first among equals, then popularity fills up."""
    return _filled(histories, _dense(_visit_counts(histories)) + 0.5 * _latest(histories))


def own_fading(histories: Histories, half_life: float) -> Scores:
    """The same, each event weighed by 2 to the power of -age / `half_life` days."""
    age = (histories.asked_at[histories.user] - histories.time) / DAY_MS
    return _filled(histories, _dense(histories.counts(2.0 ** (-age / half_life))))


def item_knn(histories: Histories, neighbours: int = 100) -> Scores:
    """Items that are had by the same users (cosine), summed over what the user had."""
    users = histories.counts()
    users.data[:] = 1.0
    norms = np.sqrt(np.maximum(users.multiply(users).sum(axis=0).A1, 1.0))
    likeness = (users.T @ users).tocsr()
    likeness = sparse.diags(1 / norms) @ likeness @ sparse.diags(1 / norms)
    likeness.setdiag(0.0)
    return _dense(users @ _largest(likeness.tocsr(), neighbours))


def graph(histories: Histories, steps: int = 3, damping: float = 0.5) -> Scores:
    """A few steps from the last visit's items in the graph of transitions between visits, each step worth less."""
    sets, users = histories.visit_sets()
    same_user = users[1:] == users[:-1]
    before, after = sets[:-1][same_user], sets[1:][same_user]
    transitions = (before.T @ after).tocsr()
    total = np.maximum(transitions.sum(axis=1).A1, 1.0)
    transitions = _largest(sparse.diags(1 / total) @ transitions, 200)
    last = np.append(users[1:] != users[:-1], True)
    state = sets[last]
    scores = sparse.csr_matrix(state.shape, dtype=np.float64)
    for step in range(steps):
        state = _largest(state @ transitions, 500)
        scores = scores + damping**step * state
    return _dense(scores)


def tifu_knn(histories: Histories, settings: TifuSettings) -> Scores:
    """Item frequencies fading by visit and by group of visits, mixed with those of the nearest users."""
    groups, within, between, neighbours, own = settings
    sets, users = histories.visit_sets()
    count = np.bincount(users, minlength=len(histories.asked_at))
    place = np.arange(len(users)) - np.repeat(np.cumsum(count) - count, count)
    back = count[users] - 1 - place  # visits since
    size = np.ceil(count[users] / groups)
    weight = between ** (back // size) * within ** (back % size) / (size * groups)
    vectors = _dense(sparse.csr_matrix((weight, (users, np.arange(len(users)))), (len(count), len(users))) @ sets)
    squared = (vectors**2).sum(axis=1)
    distance = squared[:, None] + squared[None, :] - 2 * vectors @ vectors.T
    np.fill_diagonal(distance, np.inf)
    near = np.argpartition(distance, min(neighbours, len(count) - 2), axis=1)[:, :neighbours]
    rows = np.repeat(np.arange(len(count)), near.shape[1])
    links = sparse.csr_matrix((np.full(near.size, 1 / near.shape[1]), (rows, near.ravel())), (len(count), len(count)))
    scores: Scores = (own * vectors + (1 - own) * (links @ sparse.csr_matrix(vectors)).toarray()).astype(np.float32)
    return scores


def top_items(scores: Scores) -> NDArray[np.int64]:
    """The ten best items of each user, best first (U, 10); the smaller row first among equals."""
    order = np.argpartition(-scores, TOP - 1, axis=1)[:, :TOP]
    order.sort(axis=1)
    values = np.take_along_axis(scores, order, axis=1)
    return np.take_along_axis(order, np.argsort(-values, axis=1, kind="stable"), axis=1)


def rules(histories: Histories) -> Mapping[str, Scores]:
    """Those without a setting to choose."""
    newest = int(histories.time.max())
    return {
        "popularity": popularity(histories),
        "popularity of the last 7 days": popularity(histories, newest - 7 * DAY_MS),
        "own, most frequent": own_frequency(histories),
        "item-kNN": item_knn(histories),
        "graph of transitions": graph(histories),
    }


def _visit_counts(histories: Histories) -> sparse.csr_matrix:
    """In how many visits each user had each item, (U, V)."""
    sets, users = histories.visit_sets()
    owner = sparse.csr_matrix(
        (np.ones(len(users)), (users, np.arange(len(users)))), (len(histories.asked_at), len(users))
    )
    return owner @ sets


def _latest(histories: Histories) -> Scores:
    """How lately each user had each item: 0 for never, towards 1 for just before the next visit, (U, V)."""
    latest = np.zeros((len(histories.asked_at), histories.item_count), np.float32)
    age = np.maximum(histories.asked_at[histories.user] - histories.time, 1) / DAY_MS
    np.maximum.at(latest, (histories.user, histories.item), (1 / (1 + age)).astype(np.float32))
    return latest


def _filled(histories: Histories, scores: Scores) -> Scores:
    """The scores, and popularity far below them for those who have fewer than ten items of their own."""
    popular = popularity(histories)
    least = scores[scores > 0].min(initial=1.0)
    filled: Scores = scores + popular / (popular.max() + 1) * np.float32(least * 1e-3)
    return filled


def _largest(matrix: sparse.csr_matrix, count: int) -> sparse.csr_matrix:
    """Only the `count` largest entries of each row."""
    matrix = matrix.tocsr()
    for row in range(matrix.shape[0]):
        part = matrix.data[matrix.indptr[row] : matrix.indptr[row + 1]]
        if len(part) > count:
            part[part < np.partition(part, len(part) - count)[len(part) - count]] = 0.0
    matrix.eliminate_zeros()
    return matrix


def _dense(matrix: sparse.csr_matrix) -> Scores:
    dense: Scores = matrix.toarray().astype(np.float32)
    return dense
