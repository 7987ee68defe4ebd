"""Chooses the weights of the hybrid ranking (personal scores, segment items, trend) and measures each strategy.

Users are embedded, clustered and counted from the events before their targets only. The weights are chosen on the
validation targets of the run's split; the figures are measured once, on its test targets.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from server.core.features import Features
from server.core.figures import HYBRID, NEXT_VISIT, PERSONAL, POPULAR, SEGMENT, Figure
from server.core.next_visit import ItemTables, NextVisitModel, SegmentList
from server.core.own_items import own_items
from server.core.preprocessing import Preprocessing
from server.core.segments import next_item_part, normalised, segment_part
from training.data.sequences import (
    EventLog,
    HeldOut,
    held_out,
    known_ends,
    positive_actions,
    sample_targets,
    select_targets,
    users_of,
)
from training.kmeans.engines import Engine, on_one_machine
from training.kmeans.fit import fit_kmeans
from training.kmeans.settings import KMeansSettings
from training.metrics import metrics_by_user, ndcg_each, target_ranks
from training.model.torch_inference import leave_out_seen
from training.ranking.next_visit import (
    VISITS_MAX,
    VISITS_MIN,
    Asked,
    Rows,
    item_statistics,
    learn,
    past_of,
    pools_of,
)
from training.ranking.segment_items import (
    TOP_ITEMS,
    Behaviour,
    Smoothing,
    behaviour_of,
    choose_smoothing,
    cluster_counts,
    half_lives,
    popularity,
    publishable,
    smoothed,
)
from training.ranking.served import LISTED, ServedQuality, served_protocol, strategy_lists
from training.ranking.trend import Demand, Trend, TrendScores, choose_trend, target_times
from training.ranking.variants import leave_out_variants

WEIGHTS = (0.0, 0.25, 0.5, 0.75, 0.9, 1.0)
"""The candidate weights of the personal score; segment items have the rest."""

TARGET_USERS = 2_000
CLUSTERED_USERS = 20_000
ALONE = 1.0
"""The weight of personal scores without segment items; also where there are no validation targets to choose by."""

MIN_STANDARD_ERRORS = 2.5
"""A mix must raise validation NDCG@10 over personal scores alone by this many standard errors, as a trend must."""

_CHUNK = 128

EmbedHistories = Callable[[Features], NDArray[np.float32]]
"""Returns the user embeddings (B, D) of B histories, float32."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The log, the user embeddings and the clusters as they were before the targets of some users.

    `held` are T targets, `times` (T,) their times, `embeddings` (T, D) those of their users. `clusters` (U,) are from 0
    to K - 1, and -1 for a user who was not clustered. `behaviour` holds the events before the targets, `publishable`
    those of them that items of segments may use.
    """

    held: HeldOut
    times: NDArray[np.int64]
    embeddings: NDArray[np.float32]
    clusters: NDArray[np.intp]
    cluster_count: int
    behaviour: Behaviour
    publishable: Behaviour


@dataclass(frozen=True, slots=True)
class HybridChoice:
    """The settings chosen on validation targets, and the quality of each strategy on test targets.

    `quality` is None for a log without validation targets.
    """

    smoothing: Smoothing
    weight: float
    trend: Trend | None
    quality: ServedQuality | None
    next_visit: NextVisitModel | None = None
    """The ranking of a log with visits and repeats, in place of `weight` and `trend`."""

    @property
    def figures(self) -> tuple[Figure, ...]:
        """The quality of each strategy over all test users; empty without validation targets."""
        return self.quality.figures if self.quality else ()

    @property
    def notes(self) -> list[str]:
        """Explanations for people, as sentences."""
        notes = []
        if self.quality is None:
            notes.append("Histories are too short for validation targets, so the hybrid is the personal ranking.")
        elif self.weight == ALONE and not self.next_visit:
            notes.append(
                "No mix with the items of segments clearly beats personal scores alone, so the hybrid is the personal "
                "ranking."
            )
        if self.next_visit:
            notes.append("Items that users had before are ranked beside new ones, by a ranking learned from visits.")
        if self.trend:
            notes.append(f"Items that are in demand now rank higher: trend with {self.trend.describe()}.")
        return notes


@dataclass(frozen=True, slots=True)
class HybridTuner:
    """The log, embeddings and K-means settings that a hybrid is tuned on.

    Items of a segment may show an item that at least `min_item_users` of its users chose. Of each of `groups` (V,) of
    variants the best item is ranked, as a server does.
    """

    log: EventLog
    preprocessing: Preprocessing
    item_embeddings: NDArray[np.float32]
    embed: EmbedHistories
    k: int
    engine: Engine
    kmeans: KMeansSettings
    min_item_users: int = 1
    groups: NDArray[np.int32] | None = None

    def choose(self) -> HybridChoice:
        """Choose the settings on validation targets, and measure them on test targets."""
        if self.learns_next_visit:
            return self._choose_for_visits()
        snapshot = self.snapshot(2)
        smoothing = self.smoothing(snapshot)
        if snapshot is None:
            return HybridChoice(smoothing, ALONE, None, None)
        trend = self._trend(snapshot)
        by_weight = self._ranks(snapshot, smoothing, WEIGHTS, self._trend_scores(trend, 2))
        weight = best_weight({weight: ndcg_each(ranks, 10) for weight, ranks in by_weight.items()})
        test = self.snapshot(1, self._test_targets())
        quality = self._quality(test, smoothing, weight, trend) if test else None
        return HybridChoice(smoothing, weight, trend, quality)

    def _test_targets(self) -> HeldOut:
        """A sample of the test targets; of a visit all its items or none."""
        held = held_out(self.log, 1, positive_actions(self.preprocessing))
        if self.log.split.by_visit:
            return users_of(held, TARGET_USERS, seed=0)
        return sample_targets(held, TARGET_USERS, self.kmeans.seed)

    @property
    def learns_next_visit(self) -> bool:
        """Whether the log has visits whose users repeat items, and enough of them to learn a ranking."""
        if not self.log.split.by_visit or self.preprocessing.exclude_seen:
            return False
        return len(np.unique(held_out(self.log, 2, positive_actions(self.preprocessing)).rows)) >= VISITS_MIN

    def _choose_for_visits(self) -> HybridChoice:
        validation = self.before_visit(2)
        smoothing = self.smoothing(validation.snapshot)
        asked, tables = self.asked(validation, smoothing)
        rows = Rows.of(tables, asked)
        is_positive = validation.is_positive(rows)
        model = learn(rows, is_positive, self.kmeans.seed)
        test = self.before_visit(1)
        asked, tables = self.asked(test, smoothing)
        test_rows = Rows.of(tables, asked)
        lists = strategy_lists(
            test_rows.best(model, len(asked.rows), LISTED, self.groups), tables, asked, groups=self.groups
        )
        each = {
            name: {f"{metric}@10": values for metric, values in test.figures(listed, 10).items()}
            for name, listed in lists.items()
        }
        quality = ServedQuality(NEXT_VISIT, test.snapshot.held.rows, each)
        # Once measured, the ranking learns from the test visits too: a release serves the visits after them.
        both = rows.and_also(test_rows)
        learned = learn(both, np.concatenate([is_positive, test.is_positive(test_rows)]), self.kmeans.seed)
        return HybridChoice(smoothing, ALONE, None, quality, learned)

    def before_visit(self, from_end: int) -> "BeforeVisit":
        """A sample of users before their last visit (1), or the visit before it (2)."""
        # The seed of the evaluate stage, whose sample has these users too.
        held = users_of(held_out(self.log, from_end, positive_actions(self.preprocessing)), VISITS_MAX, seed=0)
        _, first = np.unique(held.rows, return_index=True)
        snapshot = self.snapshot(from_end, select_targets(held, first))
        assert snapshot is not None
        return BeforeVisit(snapshot, held, from_end)

    def asked(self, before: "BeforeVisit", smoothing: Smoothing) -> tuple[Asked, ItemTables]:
        """The users with what they had and the tables of items, as a release of that time would hold them."""
        snapshot = before.snapshot
        held, ends = snapshot.held, known_ends(self.log, before.from_end)
        item_count = len(self.item_embeddings)
        statistics = item_statistics(self.log, ends, self.preprocessing, item_count)
        popular = np.log(popularity(snapshot.behaviour, smoothing.half_life)).astype(np.float32)
        tables = ItemTables(self.item_embeddings, popular, statistics)
        lists = segment_lists(snapshot, smoothing)
        asked = Asked(
            held.rows,
            own_items(past_of(self.log, held.rows, held.ends, self.preprocessing), item_count),
            np.ascontiguousarray(snapshot.embeddings, np.float32),
            pools_of(snapshot.embeddings, self.item_embeddings),
            [lists[cluster] for cluster in snapshot.clusters[held.rows].tolist()],
        )
        return asked, tables

    def smoothing(self, snapshot: Snapshot | None) -> Smoothing:
        """The smoothing that predicts the targets of a snapshot best; the middle candidate without a snapshot."""
        candidates = half_lives(self.preprocessing)
        if snapshot is None:
            return Smoothing(candidates[len(candidates) // 2], 1_000.0)
        targets = snapshot.held.rows, snapshot.held.targets.astype(np.intp) - 1
        return choose_smoothing(
            snapshot.behaviour, snapshot.clusters, snapshot.cluster_count, targets, candidates, self.min_item_users
        )

    def snapshot(self, from_end: int, targets: HeldOut | None = None) -> Snapshot | None:
        """The snapshot before `targets`, by default a sample of `held_out(log, from_end)`; None without targets."""
        positive = positive_actions(self.preprocessing)
        held = targets or sample_targets(held_out(self.log, from_end, positive), TARGET_USERS, self.kmeans.seed)
        if not len(held.rows):
            return None
        ends = known_ends(self.log, from_end)
        known = np.flatnonzero(ends > self.log.features.starts)
        drawn = np.random.default_rng(self.kmeans.seed).permutation(known)[:CLUSTERED_USERS]
        rows = np.union1d(drawn, held.rows)
        embeddings = self.embed(self.log.histories(rows, ends[rows], self.preprocessing.max_length))
        points = normalised(segment_part(embeddings, self.item_embeddings.shape[1]))
        engine = on_one_machine(self.engine)
        fitted = fit_kmeans(points, min(self.k, len(rows)), engine=engine, settings=self.kmeans)
        # Only the users at `rows` were embedded; all others are in no cluster (-1).
        clusters = np.full(len(ends), -1, np.intp)
        clusters[rows] = fitted.labels
        behaviour = behaviour_of(self.log, ends, self.preprocessing, len(self.item_embeddings))
        return Snapshot(
            held,
            target_times(self.log, held, from_end),
            next_item_part(embeddings, self.item_embeddings.shape[1])[np.searchsorted(rows, held.rows)],
            clusters,
            len(fitted.centroids),
            behaviour,
            publishable(behaviour, clusters, self.min_item_users),
        )

    def _trend(self, snapshot: Snapshot) -> Trend | None:
        items, users = torch.from_numpy(self.item_embeddings.T), torch.from_numpy(snapshot.embeddings)
        return choose_trend(
            self.log,
            snapshot.held,
            lambda places: users[torch.from_numpy(places)] @ items,
            self.preprocessing,
            len(self.item_embeddings),
            exclude_seen=self.preprocessing.exclude_seen,
        )

    def _trend_scores(self, trend: Trend | None, from_end: int) -> TrendScores | None:
        if trend is None:
            return None
        return Demand(self.log, from_end, self.preprocessing, len(self.item_embeddings)).scores_by_time(trend)

    def _quality(self, snapshot: Snapshot, smoothing: Smoothing, weight: float, trend: Trend | None) -> ServedQuality:
        by_weight = self._ranks(snapshot, smoothing, sorted({0.0, weight, 1.0}), self._trend_scores(trend, 1))
        popular = np.log(popularity(snapshot.behaviour, smoothing.half_life)).astype(np.float32)
        by_popularity = self._ranked(snapshot, [np.arange(len(snapshot.held.rows))], [popular], [0.0])[0.0]
        ranks = {POPULAR: by_popularity, SEGMENT: by_weight[0.0], PERSONAL: by_weight[1.0], HYBRID: by_weight[weight]}
        users, places = np.unique(snapshot.held.rows, return_inverse=True)
        each = {
            strategy: {f"{name}@10": values for name, values in metrics_by_user(found, places, 10).items()}
            for strategy, found in ranks.items()
        }
        return ServedQuality(served_protocol(self.log.split, self.preprocessing), users, each)

    def _ranks(
        self, snapshot: Snapshot, smoothing: Smoothing, weights: Sequence[float], trend_scores: TrendScores | None
    ) -> dict[float, NDArray[np.int64]]:
        target_clusters = snapshot.clusters[snapshot.held.rows]
        places = [np.flatnonzero(target_clusters == cluster) for cluster in range(snapshot.cluster_count)]
        return self._ranked(snapshot, places, segment_scores(snapshot, smoothing), weights, trend_scores)

    def _ranked(
        self,
        snapshot: Snapshot,
        groups: Iterable[NDArray[np.intp]],
        log_probabilities: Iterable[NDArray[np.float32]],
        weights: Sequence[float],
        trend_scores: TrendScores | None = None,
    ) -> dict[float, NDArray[np.int64]]:
        """Rank of each target (T,) by weight; the users at the places of a group share a log-probability (V,)."""
        ranks = {weight: np.zeros(len(snapshot.held.rows), np.int64) for weight in weights}
        items = torch.from_numpy(self.item_embeddings)
        for group, log_probability in zip(groups, log_probabilities, strict=True):
            shared = torch.from_numpy(log_probability)
            for start in range(0, len(group), _CHUNK):
                places = group[start : start + _CHUNK]
                targets = torch.from_numpy(snapshot.held.targets[places].astype(np.int64) - 1)
                personal = torch.from_numpy(snapshot.embeddings[places]) @ items.T
                if trend_scores:
                    personal += trend_scores(snapshot.times[places])
                if self.preprocessing.exclude_seen:
                    leave_out_seen(personal, self.log, select_targets(snapshot.held, places))
                for weight in weights:
                    # An item left out (-inf) stays -inf; the product 0 * -inf would be NaN.
                    scores = torch.where(personal == -torch.inf, personal, weight * personal + (1 - weight) * shared)
                    ranks[weight][places] = target_ranks(leave_out_variants(scores, self.groups), targets).numpy()
        return ranks


@dataclass(frozen=True, slots=True)
class BeforeVisit:
    """Users before a visit: the `snapshot` has each user once, `targets` (T,) all items of the visits."""

    snapshot: Snapshot
    targets: HeldOut
    from_end: int

    def is_positive(self, rows: Rows) -> NDArray[np.bool_]:
        """Whether the visit of each candidate's user has the item, (R,)."""
        return np.isin(self._keys(self.snapshot.held.rows[rows.user], rows.item_row), self._wanted)

    def figures(self, lists: NDArray[np.int64], count: int) -> dict[str, NDArray[np.float64]]:
        """HR, recall and NDCG of the first `count` rows of each user's list (B, ≥ count), (B,) each."""
        listed = lists[:, :count]
        users = np.repeat(self.snapshot.held.rows, listed.shape[1])
        hits = np.isin(self._keys(users, listed.ravel()), self._wanted).reshape(listed.shape)
        sizes = np.bincount(np.searchsorted(self.snapshot.held.rows, self.targets.rows))
        discounts = 1 / np.log2(np.arange(2, listed.shape[1] + 2))
        ideal = np.cumsum(discounts)[np.minimum(sizes, listed.shape[1]) - 1]
        return {
            "hr": hits.any(axis=1).astype(np.float64),
            "recall": hits.sum(axis=1) / sizes,
            "ndcg": (hits * discounts).sum(axis=1) / ideal,
        }

    @property
    def _wanted(self) -> NDArray[np.int64]:
        return self._keys(self.targets.rows, self.targets.targets.astype(np.int64) - 1)

    @staticmethod
    def _keys(users: NDArray[np.integer], items: NDArray[np.integer]) -> NDArray[np.int64]:
        return users.astype(np.int64) * (1 << 32) + items


def best_weight(ndcg: Mapping[float, NDArray[np.float64]]) -> float:
    """The weight with the highest mean NDCG (T,), if it beats `ALONE` beyond chance on these targets; else `ALONE`."""
    best = max(ndcg, key=lambda weight: float(ndcg[weight].mean()))
    gain = ndcg[best] - ndcg[ALONE]
    bound = MIN_STANDARD_ERRORS * gain.std() / math.sqrt(len(gain))
    return best if gain.mean() > bound else ALONE


def segment_lists(snapshot: Snapshot, smoothing: Smoothing) -> list[SegmentList]:
    """For each cluster the list of items that a release would hold."""
    probability = popularity(snapshot.behaviour, smoothing.half_life)
    lists = []
    for counts in cluster_counts(snapshot.publishable, snapshot.clusters, snapshot.cluster_count, smoothing.half_life):
        scores = smoothed(counts, probability, smoothing.prior)
        rows = np.argsort(-scores, kind="stable")[:TOP_ITEMS]
        lists.append(SegmentList(rows, np.log(scores[rows]).astype(np.float32)))
    return lists


def segment_scores(snapshot: Snapshot, smoothing: Smoothing) -> Iterator[NDArray[np.float32]]:
    """For each cluster the log-probability of each item (V,), as the server reads it from a release.

    An item outside the cluster's list has its global popularity, but at most the probability of the last listed item.
    """
    global_popularity = popularity(snapshot.behaviour, smoothing.half_life)
    for counts in cluster_counts(snapshot.publishable, snapshot.clusters, snapshot.cluster_count, smoothing.half_life):
        probability = smoothed(counts, global_popularity, smoothing.prior)
        listed = np.argsort(-probability, kind="stable")[:TOP_ITEMS]
        served = np.minimum(global_popularity, probability[listed[-1]])
        served[listed] = probability[listed]
        yield np.log(served).astype(np.float32)
