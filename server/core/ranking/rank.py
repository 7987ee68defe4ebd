"""Ranks the items of a release for users: strategies, filters, variants, diversity and reasons."""

from collections.abc import Sequence
from itertools import repeat

import numpy as np

from server.core.history import History
from server.core.own_items import PastEvents
from server.core.ranking.diversity import diverse_places
from server.core.ranking.query import Part, Query, Ranked, Ranking, Subject
from server.core.ranking.reasons import parts_of
from server.core.ranking.release_rules import SegmentRules, action_weights, rules_of
from server.core.ranking.strategies import Plan, Scored, score
from server.core.release import Release
from server.core.visits import visit_starts


def past_events(release: Release, history: History) -> PastEvents:
    """The events of a history with items that the release knows."""
    found = release.item_index.find(history.item_hashes)
    known = found > 0
    times = history.timestamps[known]
    weights = action_weights(release)[release.action_index.find(history.action_hashes)[known]]
    starts = visit_starts(np.zeros(len(times), np.intp), times, release.preprocessing.visits.gap_seconds)
    return PastEvents(found[known].astype(np.int64) - 1, weights, times, starts)


def rank(release: Release, query: Query, subjects: Sequence[Subject]) -> list[Ranking]:
    """Rank items for each subject, best first: `top_k` items, or fewer when the filters leave no more.

    A subject without an embedding gets popular items. A segment with too few items is followed by popular items. The
    rules in force of the release hold.
    """
    rules = rules_of(release)
    if rules is None:
        return _ranked(release, query, subjects, None)
    groups: dict[SegmentRules | None, list[int]] = {}
    for place, subject in enumerate(subjects):
        groups.setdefault(rules.for_segment(subject.segment_id), []).append(place)
    rankings: dict[int, Ranking] = {}
    for of_segment, places in groups.items():
        ranked = _ranked(release, query, [subjects[place] for place in places], of_segment)
        rankings.update(zip(places, ranked, strict=True))
    return [rankings[place] for place in range(len(subjects))]


def _ranked(release: Release, query: Query, subjects: Sequence[Subject], rules: SegmentRules | None) -> list[Ranking]:
    plan = Plan.of(release, query, rules)
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
        if rules is not None:
            items = _placed(rules, query, one, items)
        rankings.append(Ranking(items, one.strategy, len(release.item_ids) - passes.left_count))
    return rankings


def _placed(rules: SegmentRules, query: Query, scored: Scored, items: list[Ranked]) -> list[Ranked]:
    """The items with the rules that have moved them, pinned ones at their places; a short list ends with them."""
    lifts = [0.0] * len(items) if scored.lift is None else scored.lift.tolist()
    named = [
        item._replace(
            reason=Part.RULE if place < scored.pinned_count else item.reason,
            rule_ids=rules.rule_ids(item.row, lift, is_pinned=place < scored.pinned_count),
        )
        for place, (item, lift) in enumerate(zip(items, lifts, strict=True))
    ]
    pinned, placed = named[: scored.pinned_count], named[scored.pinned_count :]
    for item in sorted(pinned, key=lambda one: rules.place_of[one.row]):
        placed.insert(rules.place_of[item.row] - 1, item)
    return placed[: query.top_k]


def _chosen(release: Release, query: Query, scored: Scored) -> Scored:
    """The `top_k` items, where asked for diverse ones; pinned items are kept besides."""
    if not query.diversity:
        return scored
    pinned = np.arange(scored.pinned_count)
    scores, vectors = scored.scores[scored.pinned_count :], release.item_embeddings[scored.rows[scored.pinned_count :]]
    chosen = diverse_places(scores, vectors, query.diversity, query.top_k) + scored.pinned_count
    return scored.at(np.concatenate([pinned, chosen]), scored.pinned_count)
