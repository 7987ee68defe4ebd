"""Ranks the items of a release for users: strategies, filters, variants, diversity and reasons."""

from collections.abc import Sequence
from itertools import repeat

import numpy as np

from server.core.history import History
from server.core.own_items import PastEvents
from server.core.ranking.diversity import diverse_places
from server.core.ranking.query import Query, Ranked, Ranking, Subject
from server.core.ranking.reasons import parts_of
from server.core.ranking.strategies import Plan, Scored, score
from server.core.release import Release
from server.core.visits import visit_starts


def past_events(release: Release, history: History) -> PastEvents:
    """The events of a history with items that the release knows."""
    found = release.item_index.find(history.item_hashes)
    known = found > 0
    times = history.timestamps[known]
    weights = release.action_weights[release.action_index.find(history.action_hashes)[known]]
    starts = visit_starts(np.zeros(len(times), np.intp), times, release.preprocessing.visits.gap_seconds)
    return PastEvents(found[known].astype(np.int64) - 1, weights, times, starts)


def rank(release: Release, query: Query, subjects: Sequence[Subject]) -> list[Ranking]:
    """Rank items for each subject, best first: `top_k` items, or fewer when the filters leave no more.

    A subject without an embedding gets popular items. A segment with too few items is followed by popular items.
    """
    plan = Plan.of(release, query)
    seen = [set(subject.past.item_row.tolist()) for subject in subjects]
    filters = [plan.filter_for(rows) for rows in seen]
    chosen = [_chosen(release, query, one) for one in score(plan, subjects, filters)]
    parts = parts_of(release, subjects, chosen)
    places = zip(parts.reasons(), parts.explanations() if query.explain else repeat(None), strict=False)
    rankings = []
    for one, seen_rows, passes in zip(chosen, seen, filters, strict=True):
        items = [
            Ranked(row, value, reason, row in seen_rows, explanation)
            for row, value, (reason, explanation) in zip(one.rows.tolist(), one.scores.tolist(), places, strict=False)
        ]
        rankings.append(Ranking(items, one.strategy, len(release.item_ids) - passes.left_count))
    return rankings


def _chosen(release: Release, query: Query, scored: Scored) -> Scored:
    if not query.diversity:
        return scored
    vectors = release.item_embeddings[scored.rows]
    return scored.at(diverse_places(scored.scores, vectors, query.diversity, query.top_k))
