"""Rules of one line, and the anchors of next-basket recommendation, that the product is measured beside.

A rule scores items for some users at a time: sparse (C, V), larger is better. Popularity decides between equal scores,
and fills up where a rule names fewer than ten items. Nothing is dense for all users or all pairs of items.

TIFU-KNN: Hu et al., "Modeling Personalized Item Frequency Information for Next-basket Recommendation", SIGIR 2020.
Rings: the heuristic of Han et al., "An Embarrassingly Simple Graph Heuristic Reveals Shortcut-Solvable Benchmarks for
Sequential Recommendation", arXiv 2605.07125, 2026. The walk over the same graph is our own.
"""

import itertools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

Rule = Callable[[slice], sparse.csr_matrix]
"""The scores of the users of a slice, (C, V), above 0 where a rule has something to say."""

DAY_MS = 86_400_000
TOP = 10
_CHUNK = 2**24
"""Scores at a time, were they dense: 64 MiB."""
_BLOCK = 512
"""Rows of a product of items by items at a time."""


class TifuSettings(NamedTuple):
    """Groups of visits, decay within and between them, how many neighbours, and the share of a user's own vector."""

    groups: int
    within: float
    between: float
    neighbours: int
    own: float


class WalkSettings(NamedTuple):
    """How many of the last visits it starts from, its steps, and what a step or an older visit is worth."""

    last: int
    steps: int
    damping: float


HALF_LIVES = (7.0, 15.0, 30.0, 60.0, 120.0, 240.0, 480.0)
"""Days."""
TIFU_SETTINGS = (
    TifuSettings(7, 0.9, 0.7, 300, 0.7),
    TifuSettings(7, 0.9, 0.9, 300, 0.9),
    TifuSettings(3, 1.0, 0.9, 900, 0.9),
)
"""The first is the paper's for Instacart."""
SHRINKAGES = (10.0, 100.0)
WALK_SETTINGS = (WalkSettings(1, 1, 0.5), WalkSettings(1, 3, 0.5), WalkSettings(2, 1, 0.5), WalkSettings(2, 3, 0.8))
RING_BUDGETS = (((7, 2, 1),), ((5, 1), (3, 1)))
"""Items from each ring around the last item, and around the one before; both are the paper's."""


EXPLICIT_RINGS = 2
"""The third ring is all items beyond these, as in the authors' code for large graphs."""


@dataclass(frozen=True, eq=False)
class Visits:
    """W visits sorted by user and time: `sets` (W, V), 1 where a visit has an item; `user` (W,); `back` (W,), 0 for a
    user's newest.
    """

    sets: sparse.csr_matrix
    user: NDArray[np.int64]
    back: NDArray[np.int64]

    def last(self, users: int, count: int, fading: float = 1.0) -> sparse.csr_matrix:
        """The items of each user's `count` last visits, each visit worth `fading` of the one after it, (U, V)."""
        taken = np.flatnonzero(self.back < count)
        weight = fading ** self.back[taken].astype(np.float32)
        chosen = sparse.csr_matrix((weight, (self.user[taken], taken)), (users, len(self.user)))
        return (chosen @ self.sets).tocsr()

    @cached_property
    def followers(self) -> tuple[sparse.csr_matrix, NDArray[np.float32]]:
        """How often an item of one visit was followed by another in the next: the 200 most frequent of each item
        (V, V), and how often it was followed by any (V,).
        """
        followed = np.flatnonzero(self.user[1:] == self.user[:-1])
        before, after = self.sets[followed].T.tocsr(), self.sets[followed + 1]
        total = np.asarray(before @ after.sum(axis=1)).ravel().astype(np.float32)
        return _product(before, after, 200, lambda block, _: block), np.maximum(total, 1.0)


@dataclass(frozen=True, eq=False)
class Histories:
    """Events of U users by column (N,), sorted by user and time: `user`, `item` row, `visit` (numbered over all users),
    `time` in milliseconds; `asked_at` (U,), when the next visit begins. The first `asked` users are asked for. `seen`
    (asked, V) is true at every item that they had, also by an action that no rule counts. `words` (V, words) describes
    items by unit vectors, None where nothing describes them.
    """

    user: NDArray[np.int64]
    item: NDArray[np.int64]
    visit: NDArray[np.int64]
    time: NDArray[np.int64]
    asked_at: NDArray[np.int64]
    asked: int
    seen: sparse.csr_matrix
    words: sparse.csr_matrix | None = None

    @property
    def item_count(self) -> int:
        """V."""
        return int(self.seen.shape[1])

    def counts(self, weight: NDArray[np.float32] | None = None) -> sparse.csr_matrix:
        """How often each user had each item (U, V), each event weighed."""
        weight = np.ones(len(self.user), np.float32) if weight is None else weight
        return sparse.csr_matrix((weight, (self.user, self.item)), (len(self.asked_at), self.item_count))

    def popularity(self, since: int | None = None) -> NDArray[np.float32]:
        """How many events each item has, from `since` on, (V,)."""
        item = self.item if since is None else self.item[self.time >= since]
        return np.bincount(item, minlength=self.item_count).astype(np.float32)

    @cached_property
    def visits(self) -> Visits:
        """Visits by their numbers."""
        return self._visits(np.diff(self.visit, prepend=-1) != 0)

    @cached_property
    def moments(self) -> Visits:
        """Events of one time as a visit: of logs of sessions, mostly one event each."""
        return self._visits((np.diff(self.user, prepend=-1) != 0) | (np.diff(self.time, prepend=-1) != 0))

    def _visits(self, starts: NDArray[np.bool_]) -> Visits:
        number, first = np.cumsum(starts) - 1, np.flatnonzero(starts)
        ones = np.ones(len(self.item), np.float32)
        sets = sparse.csr_matrix((ones, (number, self.item)), (len(first), self.item_count))
        sets.data[:] = 1.0
        user = self.user[first]
        newest = np.cumsum(np.bincount(user, minlength=len(self.asked_at))) - 1
        return Visits(sets, user, newest[user] - np.arange(len(user)))


class Recommended(NamedTuple):
    """Item rows, best first, (asked, 10): of all items, and of those that are new to the user."""

    any: NDArray[np.int64]
    new: NDArray[np.int64]


def recommend(rule: Rule, histories: Histories) -> Recommended:
    """The ten best items of each user who is asked for, in chunks of users."""
    chunk = max(1, _CHUNK // histories.item_count)
    popular = histories.popularity()
    order = np.argsort(-popular, kind="stable")
    share = popular / (popular.max() + 1) * 1e-3
    ten, new = (np.empty((histories.asked, TOP), np.int64) for _ in Recommended._fields)
    for start in range(0, histories.asked, chunk):
        scores = rule(slice(start, min(start + chunk, histories.asked))).tocsr()
        for user, (first, end) in enumerate(itertools.pairwise(scores.indptr), start):
            items, values = scores.indices[first:end], scores.data[first:end]
            values = values + share[items] * values.min(initial=1.0)
            seen = histories.seen.indices[histories.seen.indptr[user] : histories.seen.indptr[user + 1]]
            unseen = ~np.isin(items, seen)
            ten[user] = _ten(items, values, order)
            new[user] = _ten(items[unseen], values[unseen], order, seen)
    return Recommended(ten, new)


def _ten(
    items: NDArray[np.int64], values: NDArray[np.float32], order: NDArray[np.int64], barred: Iterable[int] = ()
) -> NDArray[np.int64]:
    """The ten items of the largest values, the smaller row first among equals; then those first in `order` that are not
    barred; then a row that no item has.
    """
    if len(items) > TOP:
        kept = values >= np.partition(values, len(values) - TOP)[-TOP]
        items, values = items[kept], values[kept]
    best: list[int] = items[np.lexsort((items, -values))][:TOP].tolist()
    if len(best) < TOP:
        taken = {*best, *barred}
        best += itertools.islice((row for row in order.tolist() if row not in taken), TOP - len(best))
    return np.array(best + [len(order)] * (TOP - len(best)))


def families(histories: Histories) -> Mapping[str, Mapping[str, Callable[[Histories], Rule]]]:
    """Every rule by its name, with each setting that it can have."""
    units = {"visits": _visits, "moments": _moments}
    if len(histories.visits.user) == len(histories.moments.user):
        del units["moments"]
    return {
        "popularity": {"": popularity},
        "popularity of the last 7 days": {"": lambda one: popularity(one, int(one.time.max()) - 7 * DAY_MS)},
        "own, most frequent": {"": own_frequency},
        "own, fading": {f"half-life {days:g} days": partial(own_fading, half_life=days) for days in HALF_LIVES},
        "TIFU-KNN": {_named(one): partial(tifu_knn, settings=one) for one in TIFU_SETTINGS},
        "item-kNN": {f"shrinkage {one:g}": partial(item_knn, shrinkage=one) for one in SHRINKAGES},
        "graph, walk": {
            f"{unit}: {_named(one)}": partial(walk, settings=one, unit=of)
            for unit, of in units.items()
            for one in WALK_SETTINGS
        },
        "graph, rings": {str(one): partial(rings, budgets=one) for one in RING_BUDGETS},
    }


def popularity(histories: Histories, since: int | None = None) -> Rule:
    """What everybody had most often, of the events from `since` on."""
    counts = sparse.csr_matrix(histories.popularity(since))
    return lambda users: counts[np.zeros(users.stop - users.start, int)]


def own_frequency(histories: Histories) -> Rule:
    """What this user had in most visits; the later one first among equals."""
    visits = histories.visits
    ones = np.ones(len(visits.user), np.float32)
    owner = sparse.csr_matrix((ones, (visits.user, np.arange(len(ones)))), (len(histories.asked_at), len(ones)))
    scores = (owner @ visits.sets + 0.5 * _latest(histories)).tocsr()
    return lambda users: scores[users]


def own_fading(histories: Histories, half_life: float) -> Rule:
    """What this user had most often, each event weighed by 2 to the power of -age / `half_life` days."""
    age = (histories.asked_at[histories.user] - histories.time) / DAY_MS
    scores = histories.counts((2.0 ** (-age / half_life)).astype(np.float32))
    return lambda users: scores[users]


def item_knn(histories: Histories, shrinkage: float = 0.0, neighbours: int = 100) -> Rule:
    """Items that are had by the same users (cosine, `shrinkage` added below), summed over what the user had."""
    users = histories.counts()
    users.data[:] = 1.0
    root = np.sqrt(np.asarray(users.sum(axis=0)).ravel())

    def cosine(block: sparse.csr_matrix, first: int) -> sparse.csr_matrix:
        row = np.repeat(np.arange(first, first + block.shape[0]), np.diff(block.indptr))
        block.data /= root[row] * root[block.indices] + shrinkage
        block.data[row == block.indices] = 0.0
        return block

    alike = _product(users.T.tocsr(), users, neighbours, cosine)
    return lambda chunk: users[chunk] @ alike


def tifu_knn(histories: Histories, settings: TifuSettings) -> Rule:
    """Item frequencies fading by visit and by group of visits, mixed with those of the nearest users."""
    groups, within, between, neighbours, own = settings
    sets, user, back = histories.visits.sets, histories.visits.user, histories.visits.back
    users = len(histories.asked_at)
    size = np.ceil(np.bincount(user, minlength=users)[user] / groups)
    weight = (between ** (back // size) * within ** (back % size) / (size * groups)).astype(np.float32)
    vectors = (sparse.csr_matrix((weight, (user, np.arange(len(user)))), (users, len(user))) @ sets).tocsr()
    squared = np.asarray(vectors.multiply(vectors).sum(axis=1)).ravel()
    count = min(neighbours, users - 1)

    def scores(chunk: slice) -> sparse.csr_matrix:
        distance = squared - 2 * (vectors[chunk] @ vectors.T).toarray()  # (C, U), without the user's own square
        rows = np.arange(len(distance))
        distance[rows, rows + chunk.start] = np.inf
        near = np.argpartition(distance, count - 1, axis=1)[:, :count]
        share = np.full(near.size, 1 / count, np.float32)
        links = sparse.csr_matrix((share, (np.repeat(rows, count), near.ravel())), (len(rows), users))
        return own * vectors[chunk] + (1 - own) * (links @ vectors)

    return scores


def walk(histories: Histories, settings: WalkSettings, unit: Callable[[Histories], Visits] | None = None) -> Rule:
    """A few steps from the items of the last visits in the graph of transitions between visits, each worth less."""
    visits = (unit or _visits)(histories)
    counts, total = visits.followers
    transitions = (sparse.diags(1 / total) @ counts).tocsr().astype(np.float32)
    sources = visits.last(len(histories.asked_at), settings.last, settings.damping)

    def scores(chunk: slice) -> sparse.csr_matrix:
        state, found = sources[chunk], sparse.csr_matrix((chunk.stop - chunk.start, histories.item_count))
        for step in range(settings.steps):
            state = _largest((state @ transitions).tocsr(), 500)
            found = found + settings.damping**step * state
        return found

    return scores


def rings(histories: Histories, budgets: tuple[tuple[int, ...], ...]) -> Rule:
    """The paper's heuristic: of each ring of the transition graph around the last item, and around the one before, a
    few items (`budgets`) by their likeness to it, plus half the weight of the transition in the first ring.

    Ours differs in four things. Items of one time count as the last item together, since their order means nothing. The
    graph has the 200 most frequent followers of each item. Words of titles and categories stand for text embeddings;
    without an item table there is no likeness. The rest of the first ring, then popularity, fills up.
    """
    counts, _ = histories.moments.followers
    weights = counts.log1p()
    strongest = np.maximum(weights.max(axis=1).toarray().ravel(), 1.0)
    weights = (sparse.diags(0.5 / strongest) @ weights).tocsr()
    newest = [histories.moments.last(len(histories.asked_at), back + 1) for back in range(len(budgets))]
    sources = [_shares(later - earlier) for later, earlier in zip(newest, [0 * newest[0], *newest], strict=False)]

    def scores(chunk: slice) -> sparse.csr_matrix:
        found = np.zeros((chunk.stop - chunk.start, histories.item_count), np.float32)
        for source, of_rings in zip(sources, budgets, strict=True):
            _add_rings(found, source[chunk], weights, histories.words, of_rings)
        return sparse.csr_matrix(found)

    return scores


def _add_rings(
    found: NDArray[np.float32],
    source: sparse.csr_matrix,
    weights: sparse.csr_matrix,
    words: sparse.csr_matrix | None,
    budgets: tuple[int, ...],
) -> None:
    """Give the best items of each ring around `source` (C, V) the next ranks in `found` (C, V): 10 for the first pick,
    one less for each after it, and below 1 for the rest of the first ring.
    """
    like = np.zeros(found.shape, np.float32) if words is None else ((source @ words) @ words.T).toarray()
    links = weights.sign()
    reached, visited = source, source.toarray() > 0
    rank = TOP - (found >= 1).sum(axis=1)
    for number, budget in enumerate(budgets):
        if number < EXPLICIT_RINGS:
            reached = (reached @ links).sign()
            ring = reached.toarray() > 0
        else:
            ring = np.ones(found.shape, bool)
        if number == 0:
            like = like + (source @ weights).toarray()  # at most 1.5
            rest = np.where(ring & (found == 0), 0.1 + 0.5 * like, 0.0).astype(np.float32)
        else:
            ring &= ~visited
        visited |= ring
        value = np.where(ring & (found < 1), like, -np.inf)
        picked = _best(value, budget)
        for column in picked.T:  # the first pick of all users, then the second
            row = np.flatnonzero(np.isfinite(value[np.arange(len(value)), column]))
            found[row, column[row]] = rank[row]
            rank[row] -= 1
    np.maximum(found, rest, out=found)


def _best(value: NDArray[np.float32], count: int) -> NDArray[np.int64]:
    """The columns of the `count` largest values of each row, best first."""
    near = np.argpartition(-value, count, axis=1)[:, :count]
    near.sort(axis=1)
    order = np.argsort(-np.take_along_axis(value, near, axis=1), axis=1, kind="stable")
    return np.take_along_axis(near, order, axis=1)


def _visits(histories: Histories) -> Visits:
    return histories.visits


def _moments(histories: Histories) -> Visits:
    return histories.moments


def _named(settings: TifuSettings | WalkSettings) -> str:
    fields = settings._asdict()
    return ", ".join(f"{name} {value:g}" for name, value in fields.items())


def _latest(histories: Histories) -> sparse.csr_matrix:
    """How lately each user had each item: towards 1 for just before the next visit, (U, V)."""
    age = np.maximum(histories.asked_at[histories.user] - histories.time, 1) / DAY_MS
    pair, place = np.unique(histories.user * histories.item_count + histories.item, return_inverse=True)
    latest = np.zeros(len(pair), np.float32)
    np.maximum.at(latest, place, (1 / (1 + age)).astype(np.float32))
    shape = (len(histories.asked_at), histories.item_count)
    return sparse.csr_matrix((latest, np.divmod(pair, histories.item_count)), shape)


def _product(
    left: sparse.csr_matrix,
    right: sparse.csr_matrix,
    count: int,
    weigh: Callable[[sparse.csr_matrix, int], sparse.csr_matrix],
) -> sparse.csr_matrix:
    """`left` (V, M) times `right` (M, V), weighed, only the `count` largest entries of each row; in blocks of rows."""
    blocks = []
    for first in range(0, left.shape[0], _BLOCK):
        block = weigh((left[first : first + _BLOCK] @ right).tocsr(), first)
        blocks.append(_largest(block, count))
    return sparse.vstack(blocks, format="csr")


def _largest(matrix: sparse.csr_matrix, count: int) -> sparse.csr_matrix:
    """Only the `count` largest entries of each row; of equal entries at the end, all."""
    for row in range(matrix.shape[0]):
        part = matrix.data[matrix.indptr[row] : matrix.indptr[row + 1]]
        if len(part) > count:
            part[part < np.partition(part, len(part) - count)[len(part) - count]] = 0.0
    matrix.eliminate_zeros()
    return matrix


def _shares(matrix: sparse.csr_matrix) -> sparse.csr_matrix:
    """Rows that sum to 1, without entries of 0."""
    matrix = matrix.tocsr()
    matrix.eliminate_zeros()
    total = np.maximum(np.asarray(matrix.sum(axis=1)).ravel(), 1e-12)
    return (sparse.diags(1 / total) @ matrix).tocsr().astype(np.float32)
