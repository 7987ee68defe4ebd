"""Chooses the weights of the hybrid ranking (personal scores, segment items, trend) and measures each strategy.

Users are embedded, clustered and counted from the events before their targets only. The weights are chosen on the
validation targets of the run's split; the figures are measured once, on its test targets.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from server.core.features import Features
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
)
from training.kmeans.engines import Engine, on_one_machine
from training.kmeans.fit import fit_kmeans
from training.kmeans.settings import KMeansSettings
from training.metrics import hit_rate, ndcg_each, target_ranks
from training.model.torch_inference import leave_out_seen
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
from training.ranking.trend import Demand, Trend, TrendScores, choose_trend, target_times

WEIGHTS = (0.0, 0.25, 0.5, 0.75, 0.9, 1.0)
"""The candidate weights of the personal score; segment items have the rest."""

TARGET_USERS = 2_000
CLUSTERED_USERS = 20_000
DEFAULT_WEIGHT = 0.5
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
    """The settings chosen on validation targets, and test figures by name, such as `hybrid_ndcg@10`.

    `figures` is empty for a log without validation targets.
    """

    smoothing: Smoothing
    weight: float
    trend: Trend | None
    figures: dict[str, float]

    @property
    def notes(self) -> list[str]:
        """Explanations for people, as sentences."""
        notes = []
        if not self.figures:
            notes.append("Histories are too short for validation targets, so the hybrid's weight is the default.")
        if self.trend:
            notes.append(f"Items that are in demand now rank higher: trend with {self.trend.describe()}.")
        return notes


@dataclass(frozen=True, slots=True)
class HybridTuner:
    """The log, embeddings and K-means settings that a hybrid is tuned on.

    Items of a segment may show an item that at least `min_item_users` of its users chose.
    """

    log: EventLog
    preprocessing: Preprocessing
    item_embeddings: NDArray[np.float32]
    embed: EmbedHistories
    k: int
    engine: Engine
    kmeans: KMeansSettings
    min_item_users: int = 1

    def choose(self) -> HybridChoice:
        """Choose the settings on validation targets, and measure them on test targets."""
        snapshot = self.snapshot(2)
        smoothing = self.smoothing(snapshot)
        if snapshot is None:
            return HybridChoice(smoothing, DEFAULT_WEIGHT, None, {})
        trend = self._trend(snapshot)
        by_weight = self._ranks(snapshot, smoothing, WEIGHTS, self._trend_scores(trend, 2))
        weight = max(WEIGHTS, key=lambda candidate: float(ndcg_each(by_weight[candidate], 10).mean()))
        test = self.snapshot(1)
        return HybridChoice(smoothing, weight, trend, self._figures(test, smoothing, weight, trend) if test else {})

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

    def _figures(
        self, snapshot: Snapshot, smoothing: Smoothing, weight: float, trend: Trend | None
    ) -> dict[str, float]:
        by_weight = self._ranks(snapshot, smoothing, sorted({0.0, weight, 1.0}), self._trend_scores(trend, 1))
        popular = np.log(popularity(snapshot.behaviour, smoothing.half_life)).astype(np.float32)
        by_popularity = self._ranked(snapshot, [np.arange(len(snapshot.held.rows))], [popular], [0.0])[0.0]
        strategies = {"popular": by_popularity, "segment": by_weight[0.0]}
        strategies |= {"personal": by_weight[1.0], "hybrid": by_weight[weight]}
        figures = {f"{strategy}_ndcg@10": float(ndcg_each(ranks, 10).mean()) for strategy, ranks in strategies.items()}
        return figures | {f"{strategy}_hr@10": hit_rate(ranks, 10) for strategy, ranks in strategies.items()}

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
                    ranks[weight][places] = target_ranks(scores, targets).numpy()
        return ranks


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
