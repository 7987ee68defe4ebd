"""Evaluation by visit: lists of items for each user before their last visit, which is held out whole.

The targets of a user are the distinct items of the visit. All items are ranked, those that the user had before
included, unless the release excludes them. Rules and the encoder know each user's events before the visit.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from scipy import sparse
from torch import Tensor

from server.core.figures import ENCODER, NEXT_VISIT
from server.core.preprocessing import Preprocessing
from server.core.segments import next_item_part
from training.data.sequences import (
    EventLog,
    HeldOut,
    held_out,
    in_training,
    known_ends,
    positive_actions,
    select_targets,
    users_of,
)
from training.evaluation.baselines import segment_scorer
from training.evaluation.list_filling import LENGTH, best_of, filled
from training.evaluation.results import Result, UserSlice
from training.evaluation.visit_rules import OWN_ONLY, POPULARITY, Past, Rule, rules
from training.metrics import CUTOFFS, LIST_LENGTH, bootstrap_interval, coverage, novelty, set_metrics, target_ranks
from training.model.torch_inference import Scorer
from training.ranking.hybrid import HybridTuner
from training.ranking.variants import leave_out_variants
from training.runs import Progress, no_progress

USERS_MAX = 5_000
"""The users of the test, drawn at random from a larger log."""

VALIDATION_USERS = 500
"""The users on whose validation visits the settings of rules are chosen."""

REPEATS, NEW_TO_USER = "repeats", "items new to the user"
"""The slices of users whose visit has items that they had before, or had not; only these items are targets."""

_SCORES_AT_ONCE = 4_000_000

Lists = NDArray[np.int64]
"""Item rows, best first, of each user, (B, `LENGTH`); -1 where there are fewer."""


@dataclass(frozen=True, eq=False)
class Visitors:
    """B users before a visit: `held` (T,) are the items of the visits, `first` (B,) the place in it of each user's
    first, and `past` is what was known. Lists have the best item of each of the `groups` (V,) of variants.
    """

    log: EventLog
    held: HeldOut
    first: NDArray[np.intp]
    past: Past
    exclude_seen: bool
    groups: NDArray[np.int32] | None = None

    @classmethod
    def of(
        cls,
        log: EventLog,
        from_end: int,
        preprocessing: Preprocessing,
        item_count: int,
        most: int,
        groups: NDArray[np.int32] | None = None,
    ) -> "Visitors":
        """At most `most` users before their last visit (1) or the visit before it (2)."""
        positive = positive_actions(preprocessing)
        held = users_of(held_out(log, from_end, positive), most, seed=0)
        rows, first = np.unique(held.rows, return_index=True)
        known = log.before(known_ends(log, from_end)) & positive[log.features.action_index]
        past = Past(
            log.event_users[known].astype(np.int64),
            log.features.item_index[known].astype(np.int64) - 1,
            log.visits[known],
            log.timestamp[known],
            rows,
            log.timestamp[held.ends[first]],
            len(log.users),
            item_count,
            preprocessing.has_clock,
        )
        return cls(log, held, first, past, preprocessing.exclude_seen, groups)

    @property
    def users(self) -> HeldOut:
        """One target a user, (B,): the first of the visit."""
        return select_targets(self.held, self.first)

    @cached_property
    def seen(self) -> sparse.csr_matrix:
        """Above 0 for each item of the user's events before the visit, (B, V)."""
        users = self.users
        histories = self.log.histories(users.rows, users.ends)
        return self._matrix(histories.rows, histories.item_index)

    @cached_property
    def wanted(self) -> sparse.csr_matrix:
        """1 for each item of the user's visit, (B, V)."""
        return self._matrix(self.places, self.held.targets)

    @cached_property
    def places(self) -> NDArray[np.intp]:
        """The place from 0 of each target's user, (T,)."""
        return np.searchsorted(self.past.asked, self.held.rows)

    def _matrix(self, places: NDArray[np.integer], item_index: NDArray[np.integer]) -> sparse.csr_matrix:
        ones = np.ones(len(places), np.float32)
        shape = len(self.first), self.past.item_count
        return sparse.csr_matrix((ones, (places, item_index.astype(np.int64) - 1)), shape)

    def activity(self) -> dict[str, NDArray[np.bool_]]:
        """Masks (B,) of thirds of the users by number of earlier events."""
        events = self.users.ends - self.log.features.starts[self.past.asked]
        low, high = (int(bound) for bound in np.quantile(events, (1 / 3, 2 / 3), method="lower"))
        return {
            f"few (≤ {low})": events <= low,
            f"some (≤ {high})": (events > low) & (events <= high),
            f"many (> {high})": events > high,
        }


@dataclass(frozen=True, slots=True)
class Ranking:
    """The lists of a method: `served`, and `new` without the items that the user had before."""

    served: Lists
    new: Lists


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The results by method, the encoder's rank of each target (protocol, user_id, item_id, rank), and notes.

    `ndcg` has NDCG@10 of each user of the protocol that is served: user_id, and a column for each method.
    """

    results: tuple[Result, ...]
    ranks: pl.DataFrame
    ndcg: pl.DataFrame
    notes: tuple[str, ...]


def evaluate_visits(
    visitors: Visitors,
    validation: Visitors,
    tuner: HybridTuner,
    item_ids: pl.Series,
    served: Mapping[str, Lists],
    progress: Progress = no_progress,
) -> Evaluation:
    """Measure the encoder, the rules, and the ready-made lists `served` (B, `LENGTH`) by name, on the visits."""
    log, notes = visitors.log, []
    held_users = np.unique(held_out(log, 1, positive_actions(tuner.preprocessing)).rows)
    if len(held_users) > len(visitors.first):
        notes.append(f"{NEXT_VISIT}: {len(visitors.first):,} users drawn from {len(held_users):,}")
    counts = np.bincount(log.features.item_index[in_training(log)] - 1, minlength=visitors.past.item_count)
    personal = personal_scorer(tuner, visitors)

    def rankings() -> Iterator[tuple[str, Ranking]]:
        for name, lists in served.items():
            yield name, Ranking(lists, without_seen(lists, visitors.seen))
        yield ENCODER, scored_lists(personal, visitors)
        for name, rule in chosen_rules(visitors, validation, notes):
            yield name, rule_lists(rule, visitors)
        yield f"{POPULARITY}, {tuner.k} segments", scored_lists(segment_scorer(tuner, visitors.users), visitors)

    results: list[Result] = []
    ndcg = {"user_id": log.users.gather(visitors.users.rows)}
    progress(f"{NEXT_VISIT}: {ENCODER}", 0, 0)
    for name, ranking in rankings():
        progress(f"{NEXT_VISIT}: {name}", len(results), 0)
        results.append(measure_visits(name, visitors, ranking, counts))
        ndcg[name] = pl.Series(visit_metrics(visitors, ranking)["ndcg"], dtype=pl.Float32)
    columns = {
        "user_id": log.users.gather(visitors.held.rows),
        "item_id": item_ids.gather(visitors.held.targets.astype(np.int64) - 1),
        "rank": pair_ranks(personal, visitors),
    }
    ranks = pl.DataFrame({"protocol": [NEXT_VISIT] * len(visitors.held.rows), **columns})
    return Evaluation(tuple(results), ranks, pl.DataFrame(ndcg), tuple(notes))


def chosen_rules(visitors: Visitors, validation: Visitors, notes: list[str]) -> Iterator[tuple[str, Rule]]:
    """Each rule by name, with the settings that have the highest NDCG@10 on the validation visits.

    Rules of own items are left out if a release excludes seen items.
    """
    for name, candidates in rules(visitors.past).items():
        if visitors.exclude_seen and name in OWN_ONLY:
            continue
        setting = next(iter(candidates))
        if len(candidates) > 1 and len(validation.first):
            ndcg = {words: _validation_ndcg(make(validation.past), validation) for words, make in candidates.items()}
            setting = max(candidates, key=lambda words: ndcg[words])
        if setting:
            notes.append(f"{NEXT_VISIT}: {name}: {setting}, chosen on the visits before the last")
        yield name, candidates[setting](visitors.past)


def _validation_ndcg(rule: Rule, visitors: Visitors) -> float:
    [lists] = _rule_lists(rule, visitors, [visitors.exclude_seen])
    sizes = np.diff(visitors.wanted.indptr)
    return float(set_metrics(hits_of(lists, visitors.wanted), sizes, LIST_LENGTH)["ndcg"].mean())


def personal_scorer(tuner: HybridTuner, visitors: Visitors) -> Scorer:
    """Scores items by the inner products of item embeddings and the embeddings of the histories before the visits."""
    users = visitors.users
    histories = visitors.log.histories(users.rows, users.ends, tuner.preprocessing.max_length)
    items = torch.from_numpy(tuner.item_embeddings)
    embeddings = torch.from_numpy(next_item_part(tuner.embed(histories), items.shape[1]))
    return lambda places: embeddings[torch.from_numpy(places)] @ items.T


def scored_lists(scorer: Scorer, visitors: Visitors) -> Ranking:
    """The best items of each user by dense scores, in chunks of users."""
    parts = []
    for places in _chunks(len(visitors.first), visitors.past.item_count):
        scores = scorer(places)
        best = _best(leave_out_variants(scores, visitors.groups))
        _leave_out(scores, visitors.seen[places])
        new = _best(leave_out_variants(scores, visitors.groups))
        parts.append((new if visitors.exclude_seen else best, new))
    return Ranking(*(np.concatenate(lists) for lists in zip(*parts, strict=True)))


def _best(scores: Tensor) -> Lists:
    count = min(LENGTH, scores.shape[1])
    found = scores.topk(count, dim=1)
    lists = np.full((len(scores), LENGTH), -1, np.int64)
    lists[:, :count] = torch.where(found.values > -torch.inf, found.indices, -1).numpy()
    return lists


def rule_lists(rule: Rule, visitors: Visitors) -> Ranking:
    """The best items of each user by a rule; popularity orders equal scores and fills up the list."""
    return Ranking(*_rule_lists(rule, visitors, (visitors.exclude_seen, True)))


def _rule_lists(rule: Rule, visitors: Visitors, exclude: Sequence[bool]) -> list[Lists]:
    """The lists of each way, all at once: without the items that the user had before (true), or with them (false)."""
    popular = visitors.past.popularity()
    order = np.argsort(-popular, kind="stable")
    place = np.empty(len(order), np.int64)
    place[order] = np.arange(len(order))
    found = [np.full((len(visitors.first), LENGTH), -1, np.int64) for _ in exclude]
    seen, is_barred = visitors.seen, np.zeros(len(order), np.bool_)
    for places in _chunks(len(visitors.first), visitors.past.item_count):
        scores = rule(slice(int(places[0]), int(places[-1]) + 1))
        for row, user in enumerate(places.tolist()):
            entries = slice(scores.indptr[row], scores.indptr[row + 1])
            items, values = scores.indices[entries], scores.data[entries]
            items, values = items[values > 0], values[values > 0]
            for lists, excluded in zip(found, exclude, strict=True):
                barred = seen.indices[seen.indptr[user] : seen.indptr[user + 1] if excluded else seen.indptr[user]]
                is_barred[barred] = True
                free = ~is_barred[items]
                best = best_of(items[free], values[free], place, visitors.groups)
                is_barred[best] = True
                full = filled(best, order, is_barred, LENGTH + len(barred), visitors.groups)
                lists[user, : len(full)] = full
                is_barred[barred] = is_barred[best] = False
    return found


def without_seen(lists: Lists, seen: sparse.csr_matrix) -> Lists:
    """The lists without items that the user had before; the rest moves up."""
    kept = (lists >= 0) & ~hits_of(lists, seen)
    order = np.argsort(~kept, axis=1, kind="stable")
    return np.where(np.take_along_axis(kept, order, 1), np.take_along_axis(lists, order, 1), -1)


def hits_of(lists: Lists, items: sparse.csr_matrix) -> NDArray[np.bool_]:
    """Whether each item of a list is one of the user's `items` (B, V), (B, `LENGTH`)."""
    item_count = items.shape[1]
    users = np.repeat(np.arange(items.shape[0]), np.diff(items.indptr))
    keys = np.arange(len(lists))[:, None] * item_count + lists
    return (lists >= 0) & np.isin(keys, users * item_count + items.indices)


def pair_ranks(scorer: Scorer, visitors: Visitors) -> NDArray[np.int64]:
    """The rank of each target from 0, (T,), among all items or, if seen items are excluded, among the new ones."""
    ranks = np.empty(len(visitors.held.rows), np.int64)
    bounds = np.append(visitors.first, len(ranks))
    targets = torch.from_numpy(visitors.held.targets.astype(np.int64) - 1)
    for places in _chunks(len(visitors.first), visitors.past.item_count):
        scores = scorer(places)
        if visitors.exclude_seen:
            _leave_out(scores, visitors.seen[places])
        scores = leave_out_variants(scores, visitors.groups)
        pairs = slice(bounds[places[0]], bounds[places[-1] + 1])
        ranks[pairs] = _ranks(scores, visitors.places[pairs] - places[0], targets[pairs])
    return ranks


def _ranks(scores: Tensor, rows: NDArray[np.intp], targets: Tensor) -> NDArray[np.int64]:
    """As `target_ranks`, for targets (t,) with their `rows` (t,) of the scores (b, V), but each row is sorted once."""
    ordered = np.sort(scores.numpy(), axis=1)
    values = scores[torch.from_numpy(rows), targets].numpy()
    ranks = np.empty(len(rows), np.int64)
    is_tied = np.empty(len(rows), np.bool_)
    for row in np.unique(rows):
        pairs = rows == row
        after = np.searchsorted(ordered[row], values[pairs], "right")
        ranks[pairs] = ordered.shape[1] - after
        is_tied[pairs] = after - np.searchsorted(ordered[row], values[pairs], "left") != 1
    is_tied |= values == -np.inf
    for place in np.flatnonzero(is_tied):
        ranks[place] = int(target_ranks(scores[rows[place]][None], targets[place][None]))
    return ranks


def _leave_out(scores: Tensor, items: sparse.csr_matrix) -> None:
    """Lower the scores (b, V) of `items` (b, V) to minus infinity, in place."""
    rows = np.repeat(np.arange(items.shape[0]), np.diff(items.indptr))
    scores[torch.from_numpy(rows), torch.from_numpy(items.indices.astype(np.int64))] = -torch.inf


def _chunks(users: int, item_count: int) -> Iterator[NDArray[np.intp]]:
    step = max(1, min(256, _SCORES_AT_ONCE // item_count))
    for start in range(0, users, step):
        yield np.arange(start, min(start + step, users))


def measure_visits(method: str, visitors: Visitors, ranking: Ranking, counts: NDArray[np.int64]) -> Result:
    """The figures of a method's lists; `counts` (V,) are the training events of each item."""
    wanted, seen = visitors.wanted, visitors.seen > 0
    sizes, hits = np.diff(wanted.indptr), hits_of(ranking.served, wanted)
    figures: dict[str, float] = {}
    for k in CUTOFFS:
        figures |= {f"{name}@{k}": float(each.mean()) for name, each in set_metrics(hits, sizes, k).items()}
    top = ranking.served[:, :LIST_LENGTH]
    listed = torch.from_numpy(top[top >= 0])
    figures |= {f"coverage@{LIST_LENGTH}": coverage(listed, len(counts))}
    figures |= {f"novelty@{LIST_LENGTH}": novelty(listed, counts)}
    at_ten = visit_metrics(visitors, ranking)
    slices = [_slice(name, at_ten, mask) for name, mask in visitors.activity().items()]
    repeats = wanted.multiply(seen).tocsr()
    news = (wanted - repeats).tocsr()
    news.eliminate_zeros()
    slices.append(_of_items(REPEATS, ranking.served, repeats))
    if method in OWN_ONLY:
        slices.append(UserSlice(NEW_TO_USER, 0, 0.0, 0.0))
    else:
        slices.append(_of_items(NEW_TO_USER, ranking.new, news))
    interval, hr_interval = (bootstrap_interval(at_ten[name], seed=0) for name in ("ndcg", "hr"))
    return Result(NEXT_VISIT, method, len(sizes), figures, interval, hr_interval, tuple(slices))


def visit_metrics(visitors: Visitors, ranking: Ranking) -> Mapping[str, NDArray[np.float64]]:
    """HR, recall and NDCG of each user's first ten items, (B,) each."""
    sizes = np.diff(visitors.wanted.indptr)
    return set_metrics(hits_of(ranking.served, visitors.wanted), sizes, LIST_LENGTH)


def _of_items(name: str, lists: Lists, items: sparse.csr_matrix) -> UserSlice:
    """The slice of the users with one of `items` (B, V), which are the only targets."""
    sizes = np.diff(items.indptr)
    metrics = set_metrics(hits_of(lists, items), np.maximum(sizes, 1), LIST_LENGTH)
    return _slice(name, metrics, sizes > 0)


def _slice(name: str, metrics: Mapping[str, NDArray[np.float64]], mask: NDArray[np.bool_]) -> UserSlice:
    figures = (float(metrics[figure][mask].mean()) if mask.any() else 0.0 for figure in ("ndcg", "hr"))
    return UserSlice(name, int(mask.sum()), *figures)
