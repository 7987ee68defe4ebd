"""Scores the items of a release for each user by a strategy, and keeps the best."""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from server.core.next_visit import NO_SEGMENT, POOL, Person, SegmentList, candidate_rows, features_of, segment_scores
from server.core.own_items import Behaviour, OwnItems, own_items
from server.core.ranking.caps import Picker
from server.core.ranking.filters import Filter
from server.core.ranking.query import Query, Strategy, Subject
from server.core.ranking.release_rules import SegmentRules
from server.core.ranking.variants import best_of_groups
from server.core.release import Release

POOL_FACTOR = 4
"""Candidates of the hybrid and of the diversity step, as a multiple of `top_k`."""

SMALLEST_POOL = 100
_WIDER = 4
"""How many times more candidates are scored if variants or caps left too few."""
RAISED_MAX = 1_000
"""Largest number of items that are candidates only because rules raise them, those by the largest amounts."""


@dataclass(frozen=True, slots=True)
class Scored:
    """Items of one user, best first: `rows` (R,) and `scores` (R,), by the strategy that was used.

    `features` (R, `FEATURES`) are those that the ranking of the next visit has read. `lift` (R,) is what rules have
    added to the scores; None without rules. The first `pinned_count` items are pinned, whatever their scores.
    """

    rows: NDArray[np.intp]
    scores: NDArray[np.float64]
    strategy: Strategy
    features: NDArray[np.float32] | None = None
    lift: NDArray[np.float64] | None = None
    pinned_count: int = 0

    def at(self, places: NDArray[np.intp], pinned_count: int = 0) -> "Scored":
        """The items at these places, in this order, the first of them pinned."""
        features = None if self.features is None else self.features[places]
        lift = None if self.lift is None else self.lift[places]
        return Scored(self.rows[places], self.scores[places], self.strategy, features, lift, pinned_count)


@dataclass(frozen=True)
class Plan:
    """A query to a release: the strategy that it comes to, the mask (V,) of its filters and of banning rules, how many
    items each user's list needs, the groups (V,) of variants, None where each item counts for itself, and the rules,
    None without any.
    """

    release: Release
    query: Query
    strategy: Strategy
    mask: NDArray[np.bool_] | None
    passing_count: int
    count: int
    groups: NDArray[np.int32] | None
    rules: SegmentRules | None = None

    @classmethod
    def of(cls, release: Release, query: Query, rules: SegmentRules | None = None) -> "Plan":
        mask = query.filters.mask(release)
        if rules is not None and len(rules.banned):
            mask = np.ones(len(release.item_ids), bool) if mask is None else mask
            mask[rules.banned] = False
        passing = len(release.item_ids) if mask is None else int(np.count_nonzero(mask))
        count = pool_size(query) if query.diversity else query.top_k
        groups = None if query.include_variants else release.variant_groups
        return cls(release, query, _used(release, query.strategy), mask, passing, count, groups, rules)

    def filter_for(self, seen_rows: Collection[int]) -> Filter:
        """The items that a user may get who has seen these."""
        default = self.release.preprocessing.exclude_seen
        is_excluded = default if self.query.exclude_seen is None else self.query.exclude_seen
        return Filter(self.mask, self.passing_count, np.array(sorted(seen_rows) if is_excluded else [], np.int64))

    @property
    def leaves_out(self) -> bool:
        """Whether items of a pool can be left out because of others: variants, or those beyond a cap."""
        return self.groups is not None or (self.rules is not None and bool(self.rules.caps))

    def pools(self, embeddings: NDArray[np.float32], count: int) -> list[NDArray[np.intp]]:
        """The rows with the highest personal scores of each embedding (B, D), without order where there are rules."""
        if self.rules is None:
            return list(self.release.search(embeddings, count, self.mask))
        found = []
        for members in self.rules.classes:
            allowed = members if self.mask is None else members & self.mask
            found.append(self.release.search(embeddings, min(count, int(np.count_nonzero(allowed))), allowed))
        return [np.unique(np.concatenate([*rows, self.raised])) for rows in zip(*found, strict=True)]

    @cached_property
    def raised(self) -> NDArray[np.intp]:
        """The rows that rules raise most, pin, or put in the place of others, and that pass the filters."""
        assert self.rules is not None
        best = np.argsort(-self.rules.amounts, kind="stable")[:RAISED_MAX]
        moved = self.rules.boosted[best[self.rules.amounts[best] > 0]].tolist()
        moved += [one.new_row for one in self.rules.replacements] + [pin.row for pin in self.rules.pins]
        rows = np.unique(np.array(moved, np.intp))
        return rows if self.mask is None else rows[self.mask[rows]]

    @cached_property
    def popular_rows(self) -> NDArray[np.intp]:
        """All rows by popularity, raised and lowered by the rules."""
        if self.rules is None:
            return self.release.popular_rows
        adjusted = self.rules.adjusted(np.arange(len(self.release.item_ids)), self.release.popularity)
        return adjusted.rows[np.argsort(-adjusted.scores, kind="stable")]

    def best(
        self,
        rows: NDArray[np.intp],
        scores: NDArray[np.floating],
        strategy: Strategy,
        features: NDArray[np.float32] | None = None,
    ) -> Scored:
        """The `count` best of distinct scored rows (R,), one of each group; pinned ones, which do not count, first."""
        if self.rules is not None:
            return self._best_by_rules(self.rules, Scored(rows, scores.astype(np.float64), strategy, features))
        order = np.argsort(-scores, kind="stable")
        kept = order[best_of_groups(self.groups, rows[order], self.count)]
        return Scored(rows, scores.astype(np.float64), strategy, features).at(kept)

    def _best_by_rules(self, rules: SegmentRules, scored: Scored) -> Scored:
        rows, scores, lift, places = rules.adjusted(scored.rows, scored.scores)
        features = None if scored.features is None else scored.features[places]
        order = np.argsort(-scores, kind="stable")
        picker, pinned = Picker(self.groups, rules.caps), self._pinned(rules, rows)
        for row in rows[pinned].tolist():
            picker.take(row)
        kept = order[picker.pick(rows[order], self.count)]
        best = Scored(rows, scores, scored.strategy, features, lift)
        return best.at(np.concatenate([pinned, kept]), len(pinned))

    def _pinned(self, rules: SegmentRules, rows: NDArray[np.intp]) -> NDArray[np.intp]:
        """The places among rows (R,) of those that are pinned within the list, in the order of the pins."""
        wanted = [pin.row for pin in rules.pins if pin.place <= self.query.top_k]
        place_of = {row: place for place, row in enumerate(rows.tolist())} if wanted else {}
        return np.array([place_of[row] for row in wanted if row in place_of], np.intp)


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
    pools = plan.pools(embeddings, _first_pool(plan, filters, known))
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
    """The scored items of a user; of a wider pool if variants or caps have left fewer than the query asks for."""
    scored = scorer(pool)
    while plan.leaves_out and len(scored.rows) < plan.count and len(pool) < plan.passing_count:
        pool = plan.pools(embedding[None], _WIDER * len(pool))[0]
        scored = scorer(pool)
    return scored


def _personal_scorer(plan: Plan, embedding: NDArray[np.float32], passes: Filter) -> _Scorer:
    def scored(pool: NDArray[np.intp]) -> Scored:
        rows = pool[passes.of(pool)]
        if plan.rules is None:  # the pool has the order of the scores
            rows = rows[best_of_groups(plan.groups, rows, plan.count)]
            scores = plan.release.personal_scores(embedding, rows).astype(np.float64)
            return Scored(rows, scores, Strategy.PERSONAL)
        return plan.best(rows, plan.release.personal_scores(embedding, rows), Strategy.PERSONAL)

    return scored


def _hybrid_scorer(plan: Plan, embedding: NDArray[np.float32], segment_id: int, passes: Filter) -> _Scorer:
    """Log-linear mix of personal scores and log-probabilities of the segment, over the best items of both."""
    release, segment = plan.release, segment_list(plan.release, segment_id)
    listed = segment.rows[passes.of(segment.rows)]

    def scored(pool: NDArray[np.intp]) -> Scored:
        personal = pool[passes.of(pool)]
        rows = np.union1d(personal, listed[: max(SMALLEST_POOL, len(personal))])
        return plan.best(rows, _mixed_scores(release, embedding, segment, rows), Strategy.HYBRID)

    return scored


def _mixed_scores(
    release: Release, embedding: NDArray[np.float32], segment: SegmentList, rows: NDArray[np.intp]
) -> NDArray[np.float32]:
    weight, log_probability = release.manifest.hybrid_weight, segment_scores(segment, release.popularity, rows)
    scores: NDArray[np.float32] = weight * release.personal_scores(embedding, rows) + (1.0 - weight) * log_probability
    return scores


def _next_visit_scorers(
    plan: Plan,
    subjects: Sequence[Subject],
    embeddings: NDArray[np.float32],
    pools: Sequence[NDArray[np.intp]],
    filters: Sequence[Filter],
    known: Sequence[int],
) -> list[_Scorer]:
    """Scorers by the log-probability that an item is in the user's next visit."""
    # The personal scores are relative to the best of all items, whatever the filters of the query.
    is_whole = plan.mask is None and plan.rules is None
    best = [pool[:POOL] for pool in pools] if is_whole else plan.release.search(embeddings, POOL)
    own, people = _people(plan.release, subjects, embeddings, best)
    return [_next_visit_scorer(plan, own, person, filters[place]) for person, place in zip(people, known, strict=True)]


def _people(
    release: Release,
    subjects: Sequence[Subject],
    embeddings: NDArray[np.float32],
    best: Sequence[NDArray[np.integer]] | NDArray[np.integer],
) -> tuple[OwnItems, list[Person]]:
    """What the subjects had before, and each of them with the rows of the `best` items by personal score."""
    past = Behaviour.of([subject.past for subject in subjects], release.preprocessing.has_clock)
    people = [
        Person(row, embeddings[row], best[row], segment_list(release, subject.segment_id))
        for row, subject in enumerate(subjects)
    ]
    return own_items(past, len(release.item_ids)), people


def _next_visit_scorer(plan: Plan, own: OwnItems, person: Person, passes: Filter) -> _Scorer:
    release = plan.release
    assert release.next_visit is not None
    model = release.next_visit

    def scored(pool: NDArray[np.intp]) -> Scored:
        rows = np.union1d(candidate_rows(release.item_tables, own, person), pool)
        rows = rows[passes.of(rows)]
        features = features_of(release.item_tables, own, person, rows)
        log_odds = model.log_odds(features)
        if plan.rules is not None:
            return plan.best(rows, _log_probability(log_odds), Strategy.HYBRID, features)
        order = np.argsort(-log_odds, kind="stable")
        kept = order[best_of_groups(plan.groups, rows[order], plan.count)]
        return Scored(rows[kept], _log_probability(log_odds[kept]), Strategy.HYBRID, features[kept])

    return scored


def _log_probability(log_odds: NDArray[np.float32]) -> NDArray[np.float64]:
    log_probability: NDArray[np.float64] = -np.logaddexp(0.0, -log_odds.astype(np.float64))
    return log_probability


def scored_rows(
    release: Release, strategy: Strategy, subjects: Sequence[Subject], rows: NDArray[np.intp]
) -> list[Scored]:
    """The same item rows (R,) for subjects with embeddings, in the order given, by the strategy hybrid or personal.

    `strategy` is that of a ranking: the scores are those of the ranking, but for what rules add.
    """
    embeddings = np.stack([one for subject in subjects if (one := subject.embedding) is not None]).astype(np.float32)
    if strategy is Strategy.PERSONAL:
        return [
            Scored(rows, scores.astype(np.float64), strategy) for scores in release.personal_scores(embeddings, rows)
        ]
    if release.next_visit is None:
        lists = [segment_list(release, subject.segment_id) for subject in subjects]
        mixed = (_mixed_scores(release, *pair, rows) for pair in zip(embeddings, lists, strict=True))
        return [Scored(rows, scores.astype(np.float64), strategy) for scores in mixed]
    own, people = _people(release, subjects, embeddings, release.search(embeddings, POOL))
    features = [features_of(release.item_tables, own, person, rows) for person in people]
    return [Scored(rows, _log_probability(release.next_visit.log_odds(one)), strategy, one) for one in features]


def _listed(plan: Plan, subject: Subject, passes: Filter) -> Scored:
    """The items of the user's segment, then popular items where they are too few; popular items without a segment."""
    if subject.embedding is None or plan.strategy is not Strategy.SEGMENT:
        return popular(plan, passes)
    segment = segment_list(plan.release, subject.segment_id)
    if plan.rules is not None:
        return _listed_by_rules(plan, segment, passes)
    places = np.flatnonzero(passes.of(segment.rows))
    places = places[best_of_groups(plan.groups, segment.rows[places], plan.count)]
    rows, scores = segment.rows[places], segment.scores[places].astype(np.float64)
    if len(rows) < plan.count:
        rest = popular(plan, passes, rows)
        rows, scores = np.concatenate([rows, rest.rows]), np.concatenate([scores, rest.scores])
    return Scored(rows, scores, Strategy.SEGMENT)


def _listed_by_rules(plan: Plan, segment: SegmentList, passes: Filter) -> Scored:
    """The same with rules, by which items outside of the segment's list can stand before others of it."""
    listed = segment.rows[passes.of(segment.rows)]
    for block in _popular_blocks(plan, passes):
        rows = np.union1d(np.concatenate([listed, plan.raised[passes.of(plan.raised)]]), block)
        scored = plan.best(rows, segment_scores(segment, plan.release.popularity, rows), Strategy.SEGMENT)
        if len(scored.rows) - scored.pinned_count >= plan.count:
            break
    return scored


def _popular_blocks(plan: Plan, passes: Filter) -> Iterator[NDArray[np.intp]]:
    """More and more of the most popular items that may be returned, until all of them."""
    size = 4096
    while True:
        rows = plan.popular_rows[:size]
        yield rows[passes.of(rows)]
        if size >= len(plan.popular_rows):
            return
        size *= _WIDER


def _popular_by_rules(plan: Plan, passes: Filter) -> Scored:
    for rows in _popular_blocks(plan, passes):
        rows = np.union1d(rows, plan.raised[passes.of(plan.raised)])
        scored = plan.best(rows, plan.release.popularity[rows], Strategy.POPULAR)
        if len(scored.rows) - scored.pinned_count >= plan.count:
            break
    return scored


def popular(plan: Plan, passes: Filter, after: NDArray[np.intp] = _EMPTY.rows) -> Scored:
    """The most popular items, as many as the plan needs behind the rows `after`, which are left out."""
    if plan.rules is not None:
        return _popular_by_rules(plan, passes)
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
