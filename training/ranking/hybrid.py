"""How far personal scores and segment items are mixed, chosen on validation targets; and what each way is worth.

Everything here looks at the past only: users are embedded, clustered and counted from the events before their
target. Settings are chosen on each user's last event but one, figures are read once, on the last one.
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
    smoothed,
    told,
)
from training.ranking.trend import Demand, Lately, Trend, choose_trend, moments_of

WEIGHTS = (0.0, 0.25, 0.5, 0.75, 0.9, 1.0)
"""Shares of the personal score to choose from."""

ASKED_USERS = 2_000
CLUSTERED_USERS = 20_000
DEFAULT_WEIGHT = 0.5
_CHUNK = 128

Embed = Callable[[Features], NDArray[np.float32]]
"""Whole user embeddings of B histories, (B, D) or longer."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The state of the world before some users' targets.

    `held` (T) are the users asked about, `moments` (T,) when, `embeddings` (T, D) theirs; `clusters` (U,) is each
    user's cluster from 0 to K - 1, or -1 where a user was left out. `told` is what of the `behaviour` segments may
    tell.
    """

    held: HeldOut
    moments: NDArray[np.int64]
    embeddings: NDArray[np.float32]
    clusters: NDArray[np.intp]
    cluster_count: int
    behaviour: Behaviour
    told: Behaviour


@dataclass(frozen=True, slots=True)
class HybridChoice:
    """What validation chose, and test figures by name, such as `hybrid_ndcg@10`; none where no user can be asked."""

    smoothing: Smoothing
    weight: float
    trend: Trend | None
    figures: dict[str, float]

    @property
    def notes(self) -> list[str]:
        """What people should know, in sentences."""
        notes = []
        if not self.figures:
            notes.append("Histories are too short to hold events back: the hybrid's weight is a default, not chosen.")
        if self.trend:
            notes.append(f"Items count for more while they are in demand: {self.trend.in_words()}.")
        return notes


@dataclass(frozen=True, slots=True)
class HybridTuner:
    """What ranks items for the users of a log, how K-means is asked, and of how many users an item is told."""

    log: EventLog
    preprocessing: Preprocessing
    item_embeddings: NDArray[np.float32]
    embed: Embed
    k: int
    engine: Engine
    kmeans: KMeansSettings
    min_item_users: int = 1

    def choose(self) -> HybridChoice:
        """Choose on validation targets, and measure on test targets."""
        scene = self.scene(2)
        smoothing = self.smoothing(scene)
        if scene is None:
            return HybridChoice(smoothing, DEFAULT_WEIGHT, None, {})
        trend = self._trend(scene)
        by_weight = self._ranks(scene, smoothing, WEIGHTS, self._lately(trend, 2))
        weight = max(WEIGHTS, key=lambda candidate: float(ndcg_each(by_weight[candidate], 10).mean()))
        final = self.scene(1)
        return HybridChoice(smoothing, weight, trend, self._figures(final, smoothing, weight, trend) if final else {})

    def smoothing(self, scene: Snapshot | None) -> Smoothing:
        """Fading and prior that foretell the targets of a scene best; a middle choice without one."""
        candidates = half_lives(self.preprocessing)
        if scene is None:
            return Smoothing(candidates[len(candidates) // 2], 1_000.0)
        targets = scene.held.rows, scene.held.targets.astype(np.intp) - 1
        return choose_smoothing(
            scene.behaviour, scene.clusters, scene.cluster_count, targets, candidates, self.min_item_users
        )

    def scene(self, from_end: int, targets: HeldOut | None = None) -> Snapshot | None:
        """The world before `targets`, by default a sample of those of `held_out`; None without any."""
        positive = positive_actions(self.preprocessing)
        held = targets or sample_targets(held_out(self.log, from_end, positive), ASKED_USERS, self.kmeans.seed)
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
        # Only the users at `rows` were embedded; everybody else is in no cluster.
        clusters = np.full(len(ends), -1, np.intp)
        clusters[rows] = fitted.labels
        behaviour = behaviour_of(self.log, ends, self.preprocessing, len(self.item_embeddings))
        asked = next_item_part(embeddings, self.item_embeddings.shape[1])[np.searchsorted(rows, held.rows)]
        own = told(behaviour, clusters, self.min_item_users)
        return Snapshot(
            held, moments_of(self.log, held, from_end), asked, clusters, len(fitted.centroids), behaviour, own
        )

    def _trend(self, scene: Snapshot) -> Trend | None:
        items, users = torch.from_numpy(self.item_embeddings.T), torch.from_numpy(scene.embeddings)
        return choose_trend(
            self.log,
            scene.held,
            lambda places: users[torch.from_numpy(places)] @ items,
            self.preprocessing,
            len(self.item_embeddings),
            exclude_seen=self.preprocessing.exclude_seen,
        )

    def _lately(self, trend: Trend | None, from_end: int) -> Lately | None:
        if trend is None:
            return None
        return Demand(self.log, from_end, self.preprocessing, len(self.item_embeddings)).by_time(trend)

    def _figures(self, scene: Snapshot, smoothing: Smoothing, weight: float, trend: Trend | None) -> dict[str, float]:
        by_weight = self._ranks(scene, smoothing, sorted({0.0, weight, 1.0}), self._lately(trend, 1))
        popular = np.log(popularity(scene.behaviour, smoothing.half_life)).astype(np.float32)
        by_popularity = self._ranked(scene, [np.arange(len(scene.held.rows))], [popular], [0.0])[0.0]
        ways = {"popular": by_popularity, "segment": by_weight[0.0]}
        ways |= {"personal": by_weight[1.0], "hybrid": by_weight[weight]}
        figures = {f"{way}_ndcg@10": float(ndcg_each(ranks, 10).mean()) for way, ranks in ways.items()}
        return figures | {f"{way}_hr@10": hit_rate(ranks, 10) for way, ranks in ways.items()}

    def _ranks(
        self, scene: Snapshot, smoothing: Smoothing, weights: Sequence[float], lately: Lately | None
    ) -> dict[float, NDArray[np.int64]]:
        asked = scene.clusters[scene.held.rows]
        places = [np.flatnonzero(asked == cluster) for cluster in range(scene.cluster_count)]
        return self._ranked(scene, places, segment_scores(scene, smoothing), weights, lately)

    def _ranked(
        self,
        scene: Snapshot,
        groups: Iterable[NDArray[np.intp]],
        log_probabilities: Iterable[NDArray[np.float32]],
        weights: Sequence[float],
        lately: Lately | None = None,
    ) -> dict[float, NDArray[np.int64]]:
        """Rank of each target (T,) by weight. A group is places of users (…,) who share a log-probability (V,)."""
        ranks = {weight: np.zeros(len(scene.held.rows), np.int64) for weight in weights}
        items = torch.from_numpy(self.item_embeddings)
        for group, log_probability in zip(groups, log_probabilities, strict=True):
            shared = torch.from_numpy(log_probability)
            for start in range(0, len(group), _CHUNK):
                places = group[start : start + _CHUNK]
                targets = torch.from_numpy(scene.held.targets[places].astype(np.int64) - 1)
                personal = torch.from_numpy(scene.embeddings[places]) @ items.T
                if lately:
                    personal += lately(scene.moments[places])
                if self.preprocessing.exclude_seen:
                    leave_out_seen(personal, self.log, select_targets(scene.held, places))
                for weight in weights:
                    # -inf stays -inf under any weight but 0.
                    scores = torch.where(personal == -torch.inf, personal, weight * personal + (1 - weight) * shared)
                    ranks[weight][places] = target_ranks(scores, targets).numpy()
        return ranks


def segment_scores(scene: Snapshot, smoothing: Smoothing) -> Iterator[NDArray[np.float32]]:
    """For each cluster the log-probability of each item (V,) as the server reads it from a release.

    Items that are not listed have their global popularity, but no more than the last one listed.
    """
    everyone = popularity(scene.behaviour, smoothing.half_life)
    for counts in cluster_counts(scene.told, scene.clusters, scene.cluster_count, smoothing.half_life):
        probability = smoothed(counts, everyone, smoothing.prior)
        listed = np.argsort(-probability, kind="stable")[:TOP_ITEMS]
        served = np.minimum(everyone, probability[listed[-1]])
        served[listed] = probability[listed]
        yield np.log(served).astype(np.float32)
