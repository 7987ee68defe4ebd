"""Scores the items of a release for each user by a strategy, and keeps the best."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from server.core.next_visit import NO_SEGMENT, POOL, Person, SegmentList, candidate_rows, features_of, segment_scores
from server.core.own_items import Behaviour, OwnItems, own_items
from server.core.ranking.filters import Filter
from server.core.ranking.query import Query, Strategy, Subject
from server.core.ranking.variants import best_of_groups
from server.core.release import Release

POOL_FACTOR = 4
"""Candidates of the hybrid and of the diversity step, as a multiple of `top_k`."""

SMALLEST_POOL = 100
_WIDER = 4
"""How many times more candidates are scored if variants left too few."""


@dataclass(frozen=True, slots=True)
class Scored:
    """Items of one user, best first: `rows` (R,) and `scores` (R,), by the strategy that was used.

    `features` (R, `FEATURES`) are those that the ranking of the next visit has read.
    """

    rows: NDArray[np.intp]
    scores: NDArray[np.float64]
    strategy: Strategy
    features: NDArray[np.float32] | None = None

    def at(self, places: NDArray[np.intp]) -> "Scored":
        """The items at these places, in this order."""
        features = None if self.features is None else self.features[places]
        return Scored(self.rows[places], self.scores[places], self.strategy, features)


@dataclass(frozen=True, slots=True)
class Plan:
    """A query to a release: the strategy that it comes to, the mask (V,) of its filters, how many items each user's
    list needs, and the groups (V,) of variants, None where each item counts for itself.
    """

    release: Release
    query: Query
    strategy: Strategy
    mask: NDArray[np.bool_] | None
    passing_count: int
    count: int
    groups: NDArray[np.int32] | None

    @classmethod
    def of(cls, release: Release, query: Query) -> "Plan":
        mask = query.filters.mask(release)
        passing = len(release.item_ids) if mask is None else int(np.count_nonzero(mask))
        count = pool_size(query) if query.diversity else query.top_k
        groups = None if query.include_variants else release.variant_groups
        return cls(release, query, _used(release, query.strategy), mask, passing, count, groups)

    def filter_for(self, seen_rows: Collection[int]) -> Filter:
        """The items that a user may get who has seen these."""
        default = self.release.preprocessing.exclude_seen
        is_excluded = default if self.query.exclude_seen is None else self.query.exclude_seen
        return Filter(self.mask, self.passing_count, np.array(sorted(seen_rows) if is_excluded else [], np.int64))

    def best(self, rows: NDArray[np.intp], scores: NDArray[np.floating], strategy: Strategy) -> Scored:
        """The `count` best of scored rows (R,), one of each group."""
        order = np.argsort(-scores, kind="stable")
        kept = order[best_of_groups(self.groups, rows[order], self.count)]
        return Scored(rows[kept], scores[kept].astype(np.float64), strategy)


def _used(release: Release, asked: Strategy) -> Strategy:
    """The strategy that a release answers with: a hybrid with all weight on one side is that side."""
    if asked is not Strategy.HYBRID or release.next_visit is not None:
        return asked
    weight = release.manifest.hybrid_weight
    if weight == 1:
        return Strategy.PERSONAL
    return asked if weight else Strategy.SEGMENT


def pool_size(query: Query) -> int:
    """How many candidates a query asks for."""
    return max(SMALLEST_POOL, POOL_FACTOR * query.top_k)


def score(plan: Plan, subjects: Sequence[Subject], filters: Sequence[Filter]) -> list[Scored]:
    """The best items of each user. A user without an embedding gets popular items."""
    release, strategy = plan.release, plan.strategy
    known = [place for place, subject in enumerate(subjects) if subject.embedding is not None]
    if strategy in (Strategy.POPULAR, Strategy.SEGMENT) or not known:
        return [_listed(plan, subject, passes) for subject, passes in zip(subjects, filters, strict=True)]
    scored = [_EMPTY] * len(subjects)
    embeddings = np.stack([one for subject in subjects if (one := subject.embedding) is not None]).astype(np.float32)
    pools = release.search(embeddings, _first_pool(plan, filters, known), plan.mask)
    if release.next_visit is not None and strategy is Strategy.HYBRID:
        scorers = _next_visit_scorers(plan, [subjects[place] for place in known], embeddings, pools, filters, known)
    elif strategy is Strategy.HYBRID:
        scorers = [
            _hybrid_scorer(plan, embedding, subjects[place].segment_id, filters[place])
            for place, embedding in zip(known, embeddings, strict=True)
        ]
    else:
        scorers = [
            _personal_scorer(plan, embedding, filters[place])
            for place, embedding in zip(known, embeddings, strict=True)
        ]
    for place, embedding, pool, scorer in zip(known, embeddings, pools, scorers, strict=True):
        scored[place] = _filled(plan, embedding, pool, scorer)
    for place, subject in enumerate(subjects):
        if subject.embedding is None:
            scored[place] = popular(plan, filters[place])
    return scored


_EMPTY = Scored(np.empty(0, np.intp), np.empty(0), Strategy.POPULAR)

_Scorer = Callable[[NDArray[np.intp]], Scored]
"""Scores candidates, given the rows with the highest personal scores."""


def _first_pool(plan: Plan, filters: Sequence[Filter], known: Sequence[int]) -> int:
    return pool_size(plan.query) + max(len(filters[place].banned) for place in known)


def _filled(plan: Plan, embedding: NDArray[np.float32], pool: NDArray[np.intp], scorer: _Scorer) -> Scored:
    """The scored items of a user; of a wider pool if variants have left fewer than the query asks for."""
    scored = scorer(pool)
    while plan.groups is not None and len(scored.rows) < plan.count and len(pool) < plan.passing_count:
        pool = plan.release.search(embedding[None], _WIDER * len(pool), plan.mask)[0]
        scored = scorer(pool)
    return scored


def _personal_scorer(plan: Plan, embedding: NDArray[np.float32], passes: Filter) -> _Scorer:
    def scored(pool: NDArray[np.intp]) -> Scored:
        rows = pool[passes.of(pool)]
        rows = rows[best_of_groups(plan.groups, rows, plan.count)]
        scores = plan.release.personal_scores(embedding, rows).astype(np.float64)
        return Scored(rows, scores, Strategy.PERSONAL)

    return scored


def _hybrid_scorer(plan: Plan, embedding: NDArray[np.float32], segment_id: int, passes: Filter) -> _Scorer:
    """Log-linear mix of personal scores and log-probabilities of the segment, over the best items of both."""
    release, segment = plan.release, segment_list(plan.release, segment_id)
    listed, weight = segment.rows[passes.of(segment.rows)], plan.release.manifest.hybrid_weight

    def scored(pool: NDArray[np.intp]) -> Scored:
        personal = pool[passes.of(pool)]
        rows = np.union1d(personal, listed[: max(SMALLEST_POOL, len(personal))])
        log_probability = segment_scores(segment, release.popularity, rows)
        scores = weight * release.personal_scores(embedding, rows) + (1.0 - weight) * log_probability
        return plan.best(rows, scores, Strategy.HYBRID)

    return scored


def _next_visit_scorers(
    plan: Plan,
    subjects: Sequence[Subject],
    embeddings: NDArray[np.float32],
    pools: NDArray[np.intp],
    filters: Sequence[Filter],
    known: Sequence[int],
) -> list[_Scorer]:
    """Scorers by the log-probability that an item is in the user's next visit."""
    release = plan.release
    past = Behaviour.of([subject.past for subject in subjects], release.preprocessing.has_clock)
    own = own_items(past, len(release.item_ids))
    # The personal scores are relative to the best of all items, whatever the filters of the query.
    best = pools[:, :POOL] if plan.mask is None else release.search(embeddings, POOL)
    scorers = []
    for row, (subject, place) in enumerate(zip(subjects, known, strict=True)):
        person = Person(row, embeddings[row], best[row], segment_list(release, subject.segment_id))
        scorers.append(_next_visit_scorer(plan, own, person, filters[place]))
    return scorers


def _next_visit_scorer(plan: Plan, own: OwnItems, person: Person, passes: Filter) -> _Scorer:
    release = plan.release
    assert release.next_visit is not None
    model = release.next_visit

    def scored(pool: NDArray[np.intp]) -> Scored:
        rows = np.union1d(candidate_rows(release.item_tables, own, person), pool)
        rows = rows[passes.of(rows)]
        features = features_of(release.item_tables, own, person, rows)
        log_odds = model.log_odds(features)
        order = np.argsort(-log_odds, kind="stable")
        kept = order[best_of_groups(plan.groups, rows[order], plan.count)]
        log_probability = -np.logaddexp(0.0, -log_odds[kept].astype(np.float64))
        return Scored(rows[kept], log_probability, Strategy.HYBRID, features[kept])

    return scored


def _listed(plan: Plan, subject: Subject, passes: Filter) -> Scored:
    """The items of the user's segment, then popular items where they are too few; popular items without a segment."""
    if subject.embedding is None or plan.strategy is not Strategy.SEGMENT:
        return popular(plan, passes)
    segment = segment_list(plan.release, subject.segment_id)
    places = np.flatnonzero(passes.of(segment.rows))
    places = places[best_of_groups(plan.groups, segment.rows[places], plan.count)]
    rows, scores = segment.rows[places], segment.scores[places].astype(np.float64)
    if len(rows) < plan.count:
        rest = popular(plan, passes, rows)
        rows, scores = np.concatenate([rows, rest.rows]), np.concatenate([scores, rest.scores])
    return Scored(rows, scores, Strategy.SEGMENT)


def popular(plan: Plan, passes: Filter, after: NDArray[np.intp] = _EMPTY.rows) -> Scored:
    """The most popular items, as many as the plan needs behind the rows `after`, which are left out."""
    release, groups = plan.release, plan.groups
    count = plan.count - len(after)
    taken = set(after.tolist() if groups is None else groups[after].tolist())
    found = []
    for start in range(0, len(release.popular_rows), 4096):
        rows = release.popular_rows[start : start + 4096]
        rows = rows[passes.of(rows)]
        if taken and groups is None:
            rows = rows[~np.isin(rows, after)]
        rows = rows[best_of_groups(groups, rows, count, taken)]
        found.append(rows)
        count -= len(rows)
        if count <= 0:
            break
        if groups is not None:
            taken.update(groups[rows].tolist())
    rows = np.concatenate(found) if found else _EMPTY.rows
    return Scored(rows, release.popularity[rows].astype(np.float64), Strategy.POPULAR)


def segment_list(release: Release, segment_id: int) -> SegmentList:
    """The list of a segment; empty for an unknown segment."""
    return release.segment_lists.get(segment_id, NO_SEGMENT)
