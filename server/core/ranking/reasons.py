"""Takes scores apart: what the user's own history, the encoder, the segment, popularity and trend add to each.

A score is a base plus the parts, all in nats. The base is the score of an average item: one that the user never had, of
average popularity and average fit to the user, that the user's segment chooses as everyone does, in its usual demand.
Averages are over items weighted by their popularity, which is an item of an average event. So:

- encoder: the personal score, less that of the average item
- segment: the log-probability of the item in the segment, less that among everyone
- popularity: the log-probability of the item among everyone, less that of the average item
- trend: what the item is in demand lately more than ever
- own history: what is known of the user's own events with the item
- rule: what operators' rules have added

The scores of the log-linear hybrid are sums, and the parts are its terms. In the learned ranking of the next visit
parts interact, and are the exact Shapley values of the score (Lundberg & Lee, NeurIPS 2017), see
`server.core.ranking.shapley`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from server.core.ranking.query import Explanation, Part, Strategy, Subject
from server.core.ranking.shapley import next_visit_parts
from server.core.ranking.strategies import Scored
from server.core.release import Release


@dataclass(frozen=True, slots=True)
class Parts:
    """The `base` (N,) and the `values` (N, `Part`) of N scores; `is_there` tells which parts a score has."""

    base: NDArray[np.float64]
    values: NDArray[np.float64]
    is_there: NDArray[np.bool_]

    def reasons(self) -> list[Part]:
        """The largest part of each score."""
        largest = np.where(self.is_there, self.values, -np.inf).argmax(axis=1)
        return [_PARTS[column] for column in largest.tolist()]

    def explanations(self) -> Iterator[Explanation]:
        """The base and the parts of each score."""
        for base, *columns in zip(self.base.tolist(), self.values.tolist(), self.is_there.tolist(), strict=True):
            row = zip(_PARTS, *columns, strict=True)
            yield Explanation(base, {part: value for part, value, is_there in row if is_there})


_PARTS = tuple(Part)


def parts_of(release: Release, subjects: Sequence[Subject], scored: Sequence[Scored]) -> Parts:
    """The parts of all scores of several users, one user after the other."""
    parts = _parts_without_rules(release, subjects, scored)
    if any(one.lift is not None for one in scored):
        lift = np.concatenate([np.zeros(len(one.rows)) if one.lift is None else one.lift for one in scored])
        parts.values[:, Part.RULE.value] = lift
        parts.is_there[:, Part.RULE.value] = lift != 0
    return parts


def _parts_without_rules(release: Release, subjects: Sequence[Subject], scored: Sequence[Scored]) -> Parts:
    if len({one.strategy for one in scored}) == 1:
        return _FUNCTIONS[scored[0].strategy](release, _Items(subjects, scored))
    lengths = [len(one.rows) for one in scored]
    parts = Parts(*(np.zeros(shape, kind) for shape, kind in _columns(sum(lengths))))
    places = np.split(np.arange(sum(lengths)), np.cumsum(lengths)[:-1])
    for strategy in {one.strategy for one in scored}:
        users = [user for user, one in enumerate(scored) if one.strategy is strategy and lengths[user]]
        if not users:
            continue
        found = _FUNCTIONS[strategy](
            release, _Items([subjects[user] for user in users], [scored[user] for user in users])
        )
        where = np.concatenate([places[user] for user in users])
        parts.base[where], parts.values[where], parts.is_there[where] = found.base, found.values, found.is_there
    return parts


def _columns(count: int) -> tuple[tuple[tuple[int, ...], type], ...]:
    return ((count,), float), ((count, len(Part)), float), ((count, len(Part)), bool)


@dataclass(frozen=True)
class _Items:
    """The N items of B users by one strategy, one user after the other."""

    subjects: Sequence[Subject]
    scored: Sequence[Scored]

    @cached_property
    def rows(self) -> NDArray[np.intp]:
        return np.concatenate([one.rows for one in self.scored])

    @cached_property
    def scores(self) -> NDArray[np.float64]:
        """The scores without what rules have added, (N,)."""
        return np.concatenate([one.scores if one.lift is None else one.scores - one.lift for one in self.scored])

    @cached_property
    def user(self) -> NDArray[np.intp]:
        """The place from 0 of each item's user, (N,)."""
        return np.repeat(np.arange(len(self.scored)), [len(one.rows) for one in self.scored])

    @cached_property
    def embeddings(self) -> NDArray[np.float64]:
        """The embeddings of the users (B, D)."""
        return np.stack([one for user in self.subjects if (one := user.embedding) is not None]).astype(np.float64)


def _popular(release: Release, items: _Items) -> Parts:
    base = np.full(len(items.rows), release.item_tables.average.popularity)
    return _filled(base, {Part.POPULARITY: items.scores - base})


def _segment(release: Release, items: _Items) -> Parts:
    popularity = release.popularity[items.rows].astype(np.float64)
    base = np.full(len(items.rows), release.item_tables.average.popularity)
    return _filled(base, {Part.POPULARITY: popularity - base, Part.SEGMENT: items.scores - popularity})


def _personal(release: Release, items: _Items) -> Parts:
    base = (items.embeddings @ release.item_tables.average.embedding)[items.user]
    trend = np.zeros(len(items.rows)) if release.trend is None else release.trend[items.rows].astype(np.float64)
    return _filled(base, {Part.ENCODER: items.scores - base - trend, Part.TREND: trend})


def _hybrid(release: Release, items: _Items) -> Parts:
    average = release.item_tables.average
    personal = np.einsum("nd,nd->n", items.embeddings[items.user], release.item_embeddings[items.rows])
    average_personal = (items.embeddings @ average.embedding)[items.user]
    if release.next_visit is not None:
        features = np.concatenate([one.features for one in items.scored if one.features is not None])
        base, values, is_there = next_visit_parts(release.next_visit, average, features, personal - average_personal)
        no_rule = np.zeros((len(base), len(Part) - values.shape[1]))
        return Parts(base, np.hstack([values, no_rule]), np.hstack([is_there, no_rule.astype(bool)]))
    weight = release.manifest.hybrid_weight
    base = weight * average_personal + (1.0 - weight) * average.popularity
    parts = {
        Part.ENCODER: weight * (personal - average_personal),
        Part.POPULARITY: (1.0 - weight) * (release.popularity[items.rows] - average.popularity),
    }
    if release.trend is not None:
        parts[Part.TREND] = weight * release.trend[items.rows].astype(np.float64)
    # The last term of the sum, which needs no second look at the segments' lists.
    parts[Part.SEGMENT] = items.scores - base - sum(parts.values())
    return _filled(base, parts)


def _filled(base: NDArray[np.float64], parts: dict[Part, NDArray[np.float64]]) -> Parts:
    """A part that adds nothing is not there, unless it is the only one."""
    values = np.zeros((len(base), len(Part)))
    is_there = np.zeros(values.shape, bool)
    for part, column in parts.items():
        values[:, part.value] = column
        is_there[:, part.value] = column != 0
    is_there[~is_there.any(axis=1), next(iter(parts)).value] = True
    return Parts(base, values, is_there)


_FUNCTIONS = {
    Strategy.POPULAR: _popular,
    Strategy.SEGMENT: _segment,
    Strategy.PERSONAL: _personal,
    Strategy.HYBRID: _hybrid,
}
