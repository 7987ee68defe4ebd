"""Builds the profile of each segment from its members, traits and activity."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from server.core.profiles import SegmentProfile
from training.profiles.activity import Habits, habits_of
from training.profiles.labels import descriptions_of, labels_of
from training.profiles.traits import actions_by_cluster, tallies_of, traits_by_cluster

_SAMPLE = 5_000
_EXEMPLARS = 10


@dataclass(frozen=True, slots=True)
class Members:
    """For each user row (U,): its cluster, from 0 to K - 1, and its distance to the centroid; `points` is (U, D)."""

    clusters: NDArray[np.intp]
    distances: NDArray[np.float64]
    points: NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Privacy:
    """k-anonymity limits.

    A segment with fewer than `min_segment_size` users publishes no figures. An item, category or action appears in a
    profile only if at least `min_item_users` users of the segment have it.
    """

    min_segment_size: int = 1
    min_item_users: int = 1


def profiles_of(
    events: pl.LazyFrame,
    items: pl.DataFrame,
    members: Members,
    segment_ids: Sequence[int],
    has_clock: bool,
    privacy: Privacy,
    zone: str = "UTC",
) -> list[SegmentProfile]:
    """A profile for each cluster, without the history across releases.

    `events` has `row`, `item_id`, `action`, `value` and `timestamp` (milliseconds), in any order; `items` has
    `item_id, title, category`; `segment_ids` are by cluster. Traits and descriptions are of the
    time `zone`; hours and weekdays are UTC.
    """
    count, least = len(segment_ids), privacy.min_item_users
    events, items = _compact(events, items)
    tallies = tallies_of(events, items, members.clusters, has_clock, zone)
    habits = habits_of(events, members.clusters, count, has_clock, least, zone)
    sizes = np.bincount(members.clusters, minlength=count)
    shown = sizes >= max(privacy.min_segment_size, 1)
    all_traits = traits_by_cluster(tallies, count, least)
    traits = [traits_of_cluster if shown[cluster] else [] for cluster, traits_of_cluster in enumerate(all_traits)]
    actions = actions_by_cluster(tallies, count, least)
    bare = bare_profiles(members, segment_ids, labels_of(traits, sizes.tolist()))
    profiles = [
        _with_habits(profile, habits[cluster]).model_copy(
            update={"traits": tuple(traits[cluster]), "actions": tuple(actions[cluster])}
        )
        if shown[cluster]
        else withheld_profile(profile, count)
        for cluster, profile in enumerate(bare)
    ]
    published = [
        profile.model_copy(update={"weekdays": habits[cluster].local_weekdays})
        for cluster, profile in enumerate(profiles)
        if shown[cluster]
    ]
    sentences = iter(descriptions_of(published, zone))
    too_few = f"Fewer than {privacy.min_segment_size} users; figures of so small a segment are withheld."
    return [
        profile.model_copy(update={"description": next(sentences) if traits_of_cluster else too_few})
        for profile, traits_of_cluster in zip(profiles, shown, strict=True)
    ]


def bare_profiles(members: Members, segment_ids: Sequence[int], labels: Sequence[str]) -> list[SegmentProfile]:
    """Profiles with only the sizes, distances and silhouettes."""
    sizes = np.bincount(members.clusters, minlength=len(segment_ids))
    distances = np.bincount(members.clusters, members.distances, len(segment_ids)) / np.maximum(sizes, 1)
    silhouettes = silhouettes_of(members, len(segment_ids), seed=0)
    return [
        SegmentProfile(
            segment_id=segment_id,
            label=labels[cluster],
            user_count=int(sizes[cluster]),
            share=float(sizes[cluster] / sizes.sum()),
            mean_distance=float(distances[cluster]),
            silhouette=float(silhouettes[cluster]),
        )
        for cluster, segment_id in enumerate(segment_ids)
    ]


def withheld_profile(profile: SegmentProfile, segment_count: int) -> SegmentProfile:
    """The profile of a segment that is too small: id and label; `share` is 1 for the only segment, else 0."""
    alone = 1.0 if segment_count == 1 else 0.0
    return SegmentProfile(
        segment_id=profile.segment_id, label=profile.label, user_count=0, share=alone, mean_distance=0, silhouette=0
    )


def exemplars_of(members: Members, segment_ids: Sequence[int], user_ids: pl.Series) -> pl.DataFrame:
    """The users nearest to each segment's centroid and those farthest: `segment_id, kind, rank, user_id, distance`.

    These rows identify people: they stay in the run, and never go into a release, a report or a program log.
    """
    placed = pl.DataFrame(
        {
            "segment_id": np.array(segment_ids, np.int64)[members.clusters],
            "user_id": user_ids,
            "distance": members.distances.astype(np.float32),
        }
    )
    rank = pl.int_range(1, pl.len() + 1, dtype=pl.Int32).over("segment_id").alias("rank")
    parts = [
        placed.sort("segment_id", "distance", "user_id", descending=[False, farthest, False])
        .with_columns(pl.lit(kind).alias("kind"), rank)
        .filter(pl.col("rank") <= _EXEMPLARS)
        for kind, farthest in (("nearest", False), ("farthest", True))
    ]
    return pl.concat(parts).select("segment_id", "kind", "rank", "user_id", "distance")


def _compact(events: pl.LazyFrame, items: pl.DataFrame) -> tuple[pl.LazyFrame, pl.DataFrame]:
    """The events in memory, with ids and actions as numbers: 24 bytes per event."""
    item_id = pl.col("item_id").cast(pl.Enum(items["item_id"]))
    columns = ("row", item_id, pl.col("action").cast(pl.Categorical), "timestamp", "value")
    return events.select(*columns).collect(engine="streaming").lazy(), items.with_columns(item_id)


def _with_habits(profile: SegmentProfile, habits: Habits) -> SegmentProfile:
    names = ("activity", "growth", "hours", "weekdays", "spend")
    return profile.model_copy(update={name: getattr(habits, name) for name in names})


def silhouettes_of(members: Members, cluster_count: int, seed: int) -> NDArray[np.float64]:
    """Mean silhouette of each cluster (K,), -1 to 1, on a sample of users; 0 if the sample has one cluster only."""
    from sklearn.metrics import silhouette_samples

    rows = np.random.default_rng(seed).permutation(len(members.clusters))[:_SAMPLE]
    clusters = members.clusters[rows]
    silhouettes = np.zeros(cluster_count)
    if 2 <= len(np.unique(clusters)) < len(rows):
        values = silhouette_samples(members.points[rows], clusters)
        counts = np.bincount(clusters, minlength=cluster_count)
        silhouettes = np.bincount(clusters, values, cluster_count) / np.maximum(counts, 1)
    return np.clip(silhouettes, -1.0, 1.0)
