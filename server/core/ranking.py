"""Ranks the items of a release for users: strategies, filters and diversity."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from functools import reduce
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from server.core.release import RankedItems, Release

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
    """The user: embedding (D,) and segment id (None and 0 if unknown), and the rows of the items in the history."""

    embedding: NDArray[np.float32] | None
    segment_id: int
    seen_rows: NDArray[np.intp]


class Ranked(NamedTuple):
    """A recommended item with score and reason. `row` is the item index - 1."""

    row: int
    score: float
    reason: Reason
    seen: bool


def rank(release: Release, query: Query, subjects: Sequence[Subject]) -> list[list[Ranked]]:
    """Rank items for each subject, best first: `top_k` items, or fewer when the filters leave no more.

    A subject without an embedding gets popular items. A segment with too few items is followed by popular items.
    """
    allowed = allowed_rows(release, query)
    exclude_seen = release.preprocessing.exclude_seen if query.exclude_seen is None else query.exclude_seen
    personal = _personal_pools(release, query, subjects, allowed, exclude_seen)
    mask = None if allowed is None else _mask(len(release.item_ids), allowed)
    answers = []
    for subject, pool in zip(subjects, personal, strict=True):
        banned = set(subject.seen_rows.tolist()) if exclude_seen else set()
        scored = _scored(release, query, subject, pool, _Filter(mask, banned))
        chosen = _diversified(release, scored, query) if query.diversity else scored[: query.top_k]
        seen = set(subject.seen_rows.tolist())
        answers.append([Ranked(row, score, reason, row in seen) for row, score, reason in chosen])
    return answers


def allowed_rows(release: Release, query: Query) -> NDArray[np.intp] | None:
    """Rows (A,) that pass the filters of the query, ascending; None without filters."""
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
    return np.flatnonzero(keep)


def _mask(size: int, rows: NDArray[np.intp]) -> NDArray[np.bool_]:
    mask = np.zeros(size, bool)
    mask[rows] = True
    return mask


def _rows_of_items(release: Release, item_ids: Iterable[str]) -> NDArray[np.intp]:
    known = (release.vocabulary.get(item_id, 0) for item_id in item_ids)
    return np.array([index - 1 for index in known if index], np.intp)


def _rows_of_categories(release: Release, categories: Iterable[str]) -> NDArray[np.intp]:
    empty = np.empty(0, np.intp)
    return reduce(np.union1d, (release.category_rows.get(category, empty) for category in categories), empty)


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
    allowed: NDArray[np.intp] | None,
    exclude_seen: bool,
) -> list[NDArray[np.intp]]:
    """The rows with the highest personal scores for each subject, exact; seen items are still included."""
    pools: list[NDArray[np.intp]] = [np.empty(0, np.intp) for _ in subjects]
    if query.strategy not in (Strategy.HYBRID, Strategy.PERSONAL):
        return pools
    known = {place: subject.embedding for place, subject in enumerate(subjects) if subject.embedding is not None}
    if not known or (allowed is not None and not len(allowed)):
        return pools
    places = list(known)
    embeddings = np.stack(list(known.values())).astype(np.float32)
    longest_seen = max(len(subjects[place].seen_rows) for place in places) if exclude_seen else 0
    count = _pool_size(query) + longest_seen
    if allowed is None:
        rows = release.search(embeddings, min(count, len(release.item_ids)))
    else:
        scores = release.personal_scores(embeddings, allowed)
        rows = allowed[np.argsort(-scores, axis=1, kind="stable")[:, :count]]
    for place, pool in zip(places, rows, strict=True):
        pools[place] = pool
    return pools


def _scored(release: Release, query: Query, subject: Subject, pool: NDArray[np.intp], filters: _Filter) -> _Scored:
    """Items of one subject, best first: `top_k` items, or a larger pool for the diversity step."""
    count = _pool_size(query) if query.diversity else query.top_k
    items = release.segment_items.get(subject.segment_id)
    if subject.embedding is None or query.strategy is Strategy.POPULAR:
        return _popular(release, count, filters)
    if query.strategy is Strategy.PERSONAL:
        rows = pool[filters.of(pool)][:count]
        scores = release.personal_scores(subject.embedding, rows)
        return [(row, score, Reason.PERSONAL) for row, score in zip(rows.tolist(), scores.tolist(), strict=True)]
    if query.strategy is Strategy.SEGMENT:
        return _segment(release, items, count, filters)
    return _hybrid(release, subject.embedding, items, pool[filters.of(pool)][: _pool_size(query)], filters)[:count]


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


def _segment(release: Release, items: RankedItems | None, count: int, filters: _Filter) -> _Scored:
    if items is None:
        return _popular(release, count, filters)
    rows = items.item_index - 1
    keep = filters.of(rows)
    kept_rows, scores = rows[keep][:count], items.score[keep][:count]
    scored: _Scored = [
        (row, score, Reason.SEGMENT) for row, score in zip(kept_rows.tolist(), scores.tolist(), strict=True)
    ]
    if len(scored) < count:
        rest = _Filter(filters.mask, filters.banned | {row for row, _, _ in scored})
        scored += _popular(release, count - len(scored), rest)
    return scored


def _hybrid(
    release: Release,
    embedding: NDArray[np.float32],
    items: RankedItems | None,
    personal: NDArray[np.intp],
    filters: _Filter,
) -> _Scored:
    """Log-linear mix of personal scores and log-probabilities of the segment, over the best items of both."""
    segment_rows = np.empty(0, np.intp) if items is None else (items.item_index - 1).astype(np.intp)
    segment_best = segment_rows[filters.of(segment_rows)][: max(SMALLEST_POOL, len(personal))]
    rows = np.union1d(personal, segment_best)
    # Items that the segment does not list get their popularity, but at most the score of the last listed item.
    log_probability = release.popularity[rows].copy()
    if items is not None and len(segment_rows):
        log_probability = np.minimum(log_probability, items.score[-1])
        order = np.argsort(segment_rows, kind="stable")
        place = order[np.minimum(np.searchsorted(segment_rows[order], rows), len(order) - 1)]
        listed = segment_rows[place] == rows
        log_probability[listed] = items.score[place[listed]]
    weight = release.manifest.hybrid_weight
    scores = weight * release.personal_scores(embedding, rows) + (1.0 - weight) * log_probability
    in_personal, in_segment = np.isin(rows, personal), np.isin(rows, segment_best)
    order = np.argsort(-scores, kind="stable")
    return [(int(rows[i]), float(scores[i]), _reason(bool(in_personal[i]), bool(in_segment[i]))) for i in order]


def _reason(personal: bool, segment: bool) -> Reason:
    if personal and segment:
        return Reason.PERSONAL_AND_SEGMENT
    return Reason.PERSONAL if personal else Reason.SEGMENT


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
