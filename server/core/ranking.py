"""Which items to recommend to a user, best first, from one release."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from functools import reduce
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from server.core.release import RankedItems, Release

POOL_FACTOR = 4
"""How many times `top_k` candidates are weighed against each other in the hybrid and for variety."""

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
    """What to recommend and what not. `exclude_seen` None means as the release says; `diversity` is 0 to 1."""

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
    """To whom: a user embedding (D,) and segment id, or neither; and the rows of items in the history."""

    embedding: NDArray[np.float32] | None
    segment_id: int
    seen_rows: NDArray[np.intp]


class Ranked(NamedTuple):
    """An item with its score and reason. `row` is the item index less 1."""

    row: int
    score: float
    reason: Reason
    seen: bool


def rank(release: Release, query: Query, subjects: Sequence[Subject]) -> list[list[Ranked]]:
    """Rank items for each subject, best first, at most `top_k`; fewer where the filters leave no more.

    A subject without an embedding gets popular items. A list that its segment cannot fill ends with popular items.
    """
    allowed = allowed_rows(release, query)
    exclude_seen = release.preprocessing.exclude_seen if query.exclude_seen is None else query.exclude_seen
    personal = _personal_pools(release, query, subjects, allowed, exclude_seen)
    mask = None if allowed is None else _mask(len(release.item_ids), allowed)
    answers = []
    for subject, pool in zip(subjects, personal, strict=True):
        banned = set(subject.seen_rows.tolist()) if exclude_seen else set()
        scored = _scored(release, query, subject, pool, _Filter(mask, banned))
        chosen = _varied(release, scored, query) if query.diversity else scored[: query.top_k]
        seen = set(subject.seen_rows.tolist())
        answers.append([Ranked(row, score, reason, row in seen) for row, score, reason in chosen])
    return answers


def allowed_rows(release: Release, query: Query) -> NDArray[np.intp] | None:
    """Rows (A,) that the query's filters leave, ascending; None when it has no filter."""
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
        """Which of these rows may be returned."""
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
    """For each subject the rows of highest personal score, seen ones not yet taken out, exact."""
    pools: list[NDArray[np.intp]] = [np.empty(0, np.intp) for _ in subjects]
    if query.strategy not in (Strategy.HYBRID, Strategy.PERSONAL):
        return pools
    known = {place: subject.embedding for place, subject in enumerate(subjects) if subject.embedding is not None}
    if not known or (allowed is not None and not len(allowed)):
        return pools
    places = list(known)
    embeddings = np.stack(list(known.values())).astype(np.float32)
    longest_seen = max(len(subjects[place].seen_rows) for place in places) if exclude_seen else 0
    wanted = _pool_size(query) + longest_seen
    if allowed is None:
        rows = release.search(embeddings, min(wanted, len(release.item_ids)))
    else:
        scores = release.personal_scores(embeddings, allowed)
        rows = allowed[np.argsort(-scores, axis=1, kind="stable")[:, :wanted]]
    for place, found in zip(places, rows, strict=True):
        pools[place] = found
    return pools


def _scored(release: Release, query: Query, subject: Subject, pool: NDArray[np.intp], filters: _Filter) -> _Scored:
    """Items of one subject, best first: `top_k` of them, or a larger pool where variety is wanted."""
    wanted = _pool_size(query) if query.diversity else query.top_k
    items = release.segment_items.get(subject.segment_id)
    if subject.embedding is None or query.strategy is Strategy.POPULAR:
        return _popular(release, wanted, filters)
    if query.strategy is Strategy.PERSONAL:
        rows = pool[filters.of(pool)][:wanted]
        scores = release.personal_scores(subject.embedding, rows)
        return [(row, score, Reason.PERSONAL) for row, score in zip(rows.tolist(), scores.tolist(), strict=True)]
    if query.strategy is Strategy.SEGMENT:
        return _segment(release, items, wanted, filters)
    return _hybrid(release, subject.embedding, items, pool[filters.of(pool)][: _pool_size(query)], filters)[:wanted]


def _popular(release: Release, wanted: int, filters: _Filter) -> _Scored:
    found: _Scored = []
    for start in range(0, len(release.popular_rows), 4096):
        rows = release.popular_rows[start : start + 4096]
        kept = rows[filters.of(rows)][: wanted - len(found)]
        scores = release.popularity[kept].tolist()
        found += [(row, score, Reason.POPULAR) for row, score in zip(kept.tolist(), scores, strict=True)]
        if len(found) >= wanted:
            break
    return found


def _segment(release: Release, items: RankedItems | None, wanted: int, filters: _Filter) -> _Scored:
    if items is None:
        return _popular(release, wanted, filters)
    rows = items.item_index - 1
    keep = filters.of(rows)
    kept, scores = rows[keep][:wanted], items.score[keep][:wanted]
    found: _Scored = [(row, score, Reason.SEGMENT) for row, score in zip(kept.tolist(), scores.tolist(), strict=True)]
    if len(found) < wanted:
        rest = _Filter(filters.mask, filters.banned | {row for row, _, _ in found})
        found += _popular(release, wanted - len(found), rest)
    return found


def _hybrid(
    release: Release,
    embedding: NDArray[np.float32],
    items: RankedItems | None,
    personal: NDArray[np.intp],
    filters: _Filter,
) -> _Scored:
    """Log-linear mix of the user's personal scores and the segment's log-probabilities, over the best of both."""
    segment_rows = np.empty(0, np.intp) if items is None else (items.item_index - 1).astype(np.intp)
    segment_best = segment_rows[filters.of(segment_rows)][: max(SMALLEST_POOL, len(personal))]
    rows = np.union1d(personal, segment_best)
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


def _varied(release: Release, scored: _Scored, query: Query) -> _Scored:
    """Maximal marginal relevance (Carbonell & Goldstein 1998): each next item trades score against likeness.

    Scores are scaled to 0..1 over the pool; likeness is the largest cosine to an item already chosen.
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
    likeness = np.full(len(rows), -1.0)
    left = np.ones(len(rows), bool)
    chosen: _Scored = []
    for _ in range(min(query.top_k, len(rows))):
        marginal = (1.0 - query.diversity) * relevance - query.diversity * np.maximum(likeness, 0.0)
        best = int(np.argmax(np.where(left, marginal, -np.inf)))
        left[best] = False
        chosen.append(scored[best])
        likeness = np.maximum(likeness, vectors @ vectors[best])
    return chosen
