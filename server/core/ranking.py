"""Ranks the items of a release for users: strategies, filters and diversity."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from server.core.history import History
from server.core.next_visit import (
    NO_SEGMENT,
    POOL,
    Person,
    SegmentList,
    candidate_rows,
    features_of,
    never_had,
    segment_scores,
)
from server.core.own_items import Behaviour, OwnItems, PastEvents, own_items
from server.core.release import Release
from server.core.visits import visit_starts

POOL_FACTOR = 4
"""Candidates of the hybrid and of the diversity step, as a multiple of `top_k`."""

SMALLEST_POOL = 100


class Strategy(Enum):
    """How items are chosen; see the API's `Strategy`."""

    HYBRID = auto()
    PERSONAL = auto()
    SEGMENT = auto()
    POPULAR = auto()


class Reason(Enum):
    """Why an item is recommended; see the API's `ItemReason`."""

    PERSONAL = auto()
    SEGMENT = auto()
    PERSONAL_AND_SEGMENT = auto()
    POPULAR = auto()
    AGAIN = auto()


@dataclass(frozen=True, slots=True)
class Query:
    """What to recommend. `exclude_seen` None means the default of the release; `diversity` is 0 to 1."""

    top_k: int = 10
    strategy: Strategy = Strategy.HYBRID
    exclude_seen: bool | None = None
    exclude_item_ids: tuple[str, ...] = ()
    exclude_categories: tuple[str, ...] = ()
    include_categories: tuple[str, ...] = ()
    candidate_item_ids: tuple[str, ...] = ()
    diversity: float = 0.0


@dataclass(frozen=True, slots=True)
class Subject:
    """The user: embedding (D,) and segment id (None and 0 if unknown), and the events of the history."""

    embedding: NDArray[np.float32] | None
    segment_id: int
    past: PastEvents

    @property
    def seen_rows(self) -> NDArray[np.int64]:
        """The items of the history, ascending."""
        return np.unique(self.past.item_row)


class Ranked(NamedTuple):
    """A recommended item with score and reason. `row` is the item index - 1."""

    row: int
    score: float
    reason: Reason
    seen: bool


def past_events(release: Release, history: History) -> PastEvents:
    """The events of a history with items that the release knows."""
    found = release.item_index.find(history.item_hashes)
    known = found > 0
    times = history.timestamps[known]
    weights = release.action_weights[release.action_index.find(history.action_hashes)[known]]
    starts = visit_starts(np.zeros(len(times), np.intp), times, release.preprocessing.visits.gap_seconds)
    return PastEvents(found[known].astype(np.int64) - 1, weights, times, starts)


def rank(release: Release, query: Query, subjects: Sequence[Subject]) -> list[list[Ranked]]:
    """Rank items for each subject, best first: `top_k` items, or fewer when the filters leave no more.

    A subject without an embedding gets popular items. A segment with too few items is followed by popular items.
    """
    allowed = allowed_items(release, query)
    exclude_seen = release.preprocessing.exclude_seen if query.exclude_seen is None else query.exclude_seen
    pools = _personal_pools(release, query, subjects, allowed, exclude_seen)
    seen = [set(subject.past.item_row.tolist()) for subject in subjects]
    filters = [_Filter(allowed, rows if exclude_seen else set()) for rows in seen]
    if query.strategy is Strategy.HYBRID and release.next_visit is not None:
        scored = _next_visit(release, query, subjects, pools, allowed, filters)
    else:
        each = zip(subjects, pools, filters, strict=True)
        scored = [_scored(release, query, subject, pool, passes) for subject, pool, passes in each]
    answers = []
    for one, rows in zip(scored, seen, strict=True):
        chosen = _diversified(release, one, query) if query.diversity else one[: query.top_k]
        answers.append([Ranked(row, score, reason, row in rows) for row, score, reason in chosen])
    return answers


def allowed_items(release: Release, query: Query) -> NDArray[np.bool_] | None:
    """Mask (V,) of the items that pass the filters of the query; None without filters."""
    filters = (
        query.exclude_item_ids,
        query.exclude_categories,
        query.include_categories,
        query.candidate_item_ids,
    )
    if not any(filters):
        return None
    keep = np.ones(len(release.item_ids), bool)
    if query.candidate_item_ids:
        keep &= _mask(len(keep), _rows_of_items(release, query.candidate_item_ids))
    if query.include_categories:
        keep &= _mask(len(keep), _rows_of_categories(release, query.include_categories))
    keep[_rows_of_items(release, query.exclude_item_ids)] = False
    keep[_rows_of_categories(release, query.exclude_categories)] = False
    return keep


def _mask(size: int, rows: NDArray[np.intp]) -> NDArray[np.bool_]:
    mask = np.zeros(size, bool)
    mask[rows] = True
    return mask


def _rows_of_items(release: Release, item_ids: Iterable[str]) -> NDArray[np.intp]:
    known = (release.vocabulary.get(item_id, 0) for item_id in item_ids)
    return np.array([index - 1 for index in known if index], np.intp)


def _rows_of_categories(release: Release, categories: Iterable[str]) -> NDArray[np.intp]:
    """Rows of the items of any of these categories; an item of several can be there several times."""
    empty = np.empty(0, np.intp)
    return np.concatenate([empty, *(release.category_rows.get(category, empty) for category in categories)])


@dataclass(frozen=True, slots=True)
class _Filter:
    mask: NDArray[np.bool_] | None
    banned: set[int]

    def of(self, rows: NDArray[np.integer]) -> NDArray[np.bool_]:
        """Mask of the rows that may be returned."""
        keep = np.ones(len(rows), bool) if self.mask is None else self.mask[rows]
        if self.banned:
            keep &= np.fromiter((row not in self.banned for row in rows.tolist()), bool, len(rows))
        return keep


_Scored = list[tuple[int, float, Reason]]


def _pool_size(query: Query) -> int:
    return max(SMALLEST_POOL, POOL_FACTOR * query.top_k)


def _personal_pools(
    release: Release,
    query: Query,
    subjects: Sequence[Subject],
    allowed: NDArray[np.bool_] | None,
    exclude_seen: bool,
) -> list[NDArray[np.intp]]:
    """The rows with the highest personal scores for each subject, exact; seen items are still included."""
    pools: list[NDArray[np.intp]] = [np.empty(0, np.intp) for _ in subjects]
    if query.strategy not in (Strategy.HYBRID, Strategy.PERSONAL):
        return pools
    known = {place: subject.embedding for place, subject in enumerate(subjects) if subject.embedding is not None}
    if not known:
        return pools
    places = list(known)
    embeddings = np.stack(list(known.values())).astype(np.float32)
    longest_seen = max(len(subjects[place].seen_rows) for place in places) if exclude_seen else 0
    count = _pool_size(query) + longest_seen
    for place, pool in zip(places, release.search(embeddings, count, allowed), strict=True):
        pools[place] = pool
    return pools


def _count(query: Query) -> int:
    """How many scored items a query needs: a larger pool for the diversity step."""
    return _pool_size(query) if query.diversity else query.top_k


def _scored(release: Release, query: Query, subject: Subject, pool: NDArray[np.intp], filters: _Filter) -> _Scored:
    """Items of one subject, best first."""
    count = _count(query)
    if subject.embedding is None or query.strategy is Strategy.POPULAR:
        return _popular(release, count, filters)
    if query.strategy is Strategy.PERSONAL:
        rows = pool[filters.of(pool)][:count]
        scores = release.personal_scores(subject.embedding, rows)
        return [(row, score, Reason.PERSONAL) for row, score in zip(rows.tolist(), scores.tolist(), strict=True)]
    segment = _segment_list(release, subject.segment_id)
    if query.strategy is Strategy.SEGMENT:
        return _segment(release, segment, count, filters)
    return _hybrid(release, subject.embedding, segment, pool[filters.of(pool)][: _pool_size(query)], filters)[:count]


def _popular(release: Release, count: int, filters: _Filter) -> _Scored:
    scored: _Scored = []
    for start in range(0, len(release.popular_rows), 4096):
        rows = release.popular_rows[start : start + 4096]
        kept_rows = rows[filters.of(rows)][: count - len(scored)]
        scores = release.popularity[kept_rows].tolist()
        scored += [(row, score, Reason.POPULAR) for row, score in zip(kept_rows.tolist(), scores, strict=True)]
        if len(scored) >= count:
            break
    return scored


def _segment(release: Release, segment: SegmentList, count: int, filters: _Filter) -> _Scored:
    keep = filters.of(segment.rows)
    kept_rows, scores = segment.rows[keep][:count], segment.scores[keep][:count]
    scored: _Scored = [
        (row, score, Reason.SEGMENT) for row, score in zip(kept_rows.tolist(), scores.tolist(), strict=True)
    ]
    if len(scored) < count:
        rest = _Filter(filters.mask, filters.banned | {row for row, _, _ in scored})
        scored += _popular(release, count - len(scored), rest)
    return scored


def _segment_list(release: Release, segment_id: int) -> SegmentList:
    items = release.segment_items.get(segment_id)
    return NO_SEGMENT if items is None else SegmentList((items.item_index - 1).astype(np.intp), items.score)


def _hybrid(
    release: Release,
    embedding: NDArray[np.float32],
    segment: SegmentList,
    personal: NDArray[np.intp],
    filters: _Filter,
) -> _Scored:
    """Log-linear mix of personal scores and log-probabilities of the segment, over the best items of both."""
    segment_best = segment.rows[filters.of(segment.rows)][: max(SMALLEST_POOL, len(personal))]
    rows = np.union1d(personal, segment_best)
    log_probability = segment_scores(segment, release.popularity, rows)
    weight = release.manifest.hybrid_weight
    scores = weight * release.personal_scores(embedding, rows) + (1.0 - weight) * log_probability
    in_personal, in_segment = np.isin(rows, personal), np.isin(rows, segment_best)
    order = np.argsort(-scores, kind="stable")
    return [(int(rows[i]), float(scores[i]), _reason(bool(in_personal[i]), bool(in_segment[i]))) for i in order]


def _next_visit(
    release: Release,
    query: Query,
    subjects: Sequence[Subject],
    pools: Sequence[NDArray[np.intp]],
    allowed: NDArray[np.bool_] | None,
    filters: Sequence[_Filter],
) -> list[_Scored]:
    """Items by the log-probability that they are in the user's next visit, for each subject."""
    scored = [_popular(release, _count(query), passes) for passes in filters]
    known = [place for place, subject in enumerate(subjects) if subject.embedding is not None]
    if not known:
        return scored
    own = own_items(
        Behaviour.of([subjects[place].past for place in known], release.preprocessing.has_clock), len(release.item_ids)
    )
    embeddings = np.stack([one for subject in subjects if (one := subject.embedding) is not None]).astype(np.float32)
    best = [pools[place][:POOL] for place in known] if allowed is None else list(release.search(embeddings, POOL))
    for row, place in enumerate(known):
        segment = _segment_list(release, subjects[place].segment_id)
        person = Person(row, embeddings[row], best[row], segment)
        rows = np.union1d(candidate_rows(release.item_tables, own, person), pools[place])
        rows = rows[filters[place].of(rows)]
        scored[place] = _by_next_visit(release, own, person, rows, _count(query))
    return scored


def _by_next_visit(release: Release, own: OwnItems, person: Person, rows: NDArray[np.intp], count: int) -> _Scored:
    """The best `count` of candidate rows (R,) for a person."""
    assert release.next_visit is not None
    features = features_of(release.item_tables, own, person, rows)
    log_odds = release.next_visit.log_odds(features)
    order = np.argsort(-log_odds, kind="stable")[:count]
    # An item is there again where having had it raised its score.
    without = release.next_visit.log_odds(never_had(features[order]))
    again = np.isin(rows[order], own.items_of(person.row)) & (log_odds[order] > without)
    in_personal, in_segment = np.isin(rows[order], person.pool), np.isin(rows[order], person.segment.rows[:POOL])
    log_probability = -np.logaddexp(0.0, -log_odds[order].astype(np.float64))
    reasons = [
        Reason.AGAIN if is_again else _reason(personal, segment)
        for is_again, personal, segment in zip(again.tolist(), in_personal.tolist(), in_segment.tolist(), strict=True)
    ]
    return list(zip(rows[order].tolist(), log_probability.tolist(), reasons, strict=True))


def _reason(personal: bool, segment: bool) -> Reason:
    if personal and segment:
        return Reason.PERSONAL_AND_SEGMENT
    if personal:
        return Reason.PERSONAL
    return Reason.SEGMENT if segment else Reason.POPULAR


def _diversified(release: Release, scored: _Scored, query: Query) -> _Scored:
    """Maximal marginal relevance (Carbonell & Goldstein 1998): each item trades score against similarity.

    Scores are scaled to 0..1 over the pool; similarity is the largest cosine to a chosen item.
    """
    if not scored:
        return []
    rows = np.array([row for row, _, _ in scored])
    scores = np.array([score for _, score, _ in scored])
    scale = np.ptp(scores) or 1.0
    relevance = (scores - scores.min()) / scale
    vectors = release.item_embeddings[rows]
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    vectors = np.divide(vectors, lengths, out=np.zeros_like(vectors), where=lengths > 0)
    similarity = np.full(len(rows), -1.0)
    is_left = np.ones(len(rows), bool)
    chosen: _Scored = []
    for _ in range(min(query.top_k, len(rows))):
        marginal = (1.0 - query.diversity) * relevance - query.diversity * np.maximum(similarity, 0.0)
        best = int(np.argmax(np.where(is_left, marginal, -np.inf)))
        is_left[best] = False
        chosen.append(scored[best])
        similarity = np.maximum(similarity, vectors @ vectors[best])
    return chosen
