"""What sets each segment apart, in figures and in plain words."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from server.core.profiles import SegmentProfile, Trait

SMALLEST_LIFT = 1.15
"""Something done less than this many times more often than among all users sets nobody apart."""

_MOST = {"category": 6, "action": 2, "time": 1, "item": 3}
"""Traits of each kind that a profile holds."""

_SUPPORT_USERS = 20
_SUPPORT_SHARE = 0.05
_HOURS = 6
"""Hours in a part of the day. They are UTC: a log does not say where its users live, so no part has a name."""

_SAMPLE = 5_000


@dataclass(frozen=True, slots=True)
class Members:
    """Users by row (U): the cluster of each, from 0 to K - 1, and its distance to the centroid. `points` (U, D)."""

    clusters: NDArray[np.intp]
    distances: NDArray[np.float64]
    points: NDArray[np.float64]


def facts_of(events: pl.LazyFrame, items: pl.DataFrame, has_clock: bool) -> pl.DataFrame:
    """What each user did how often: `row`, `kind`, `name`, `count`; and `total`, the user's events of all.

    `events` has `row`, `item_id`, `action` and `timestamp` (milliseconds); `items` has `item_id, title, category`.
    """
    counted = (
        events.group_by("row", "item_id")
        .len("count")
        .join(items.lazy().select("item_id", "title", "category"), on="item_id")
    )
    title = pl.coalesce(pl.when(pl.col("title") != "").then("title"), "item_id")
    kinds = {
        "category": counted.explode("category").drop_nulls("category").rename({"category": "name"}),
        "item": counted.with_columns(title.alias("name")),
        "action": events.group_by("row", pl.col("action").alias("name")).len("count"),
    }
    if has_clock:
        start = pl.from_epoch("timestamp", "ms").dt.hour() // _HOURS * _HOURS
        part = pl.format("{}–{} h UTC", start, start + _HOURS)
        kinds["time"] = events.group_by("row", part.alias("name")).len("count")
    facts = pl.concat(
        frame.group_by("row", "name").agg(pl.col("count").sum().cast(pl.Int64)).with_columns(pl.lit(kind).alias("kind"))
        for kind, frame in kinds.items()
    )
    totals = events.group_by("row").len("total")
    return facts.join(totals, on="row").sort("row", "kind", "name").collect()


def traits_by_cluster(facts: pl.DataFrame, clusters: NDArray[np.intp], cluster_count: int) -> list[list[Trait]]:
    """What each cluster does more than everyone, strongest first.

    Strongest is what contributes most to Pearson's chi-square of cluster and trait, for a cluster of given size. A
    trait needs so many users of the cluster who have it: 5 % of them, but 2 at least and 20 at most.
    """
    users = pl.DataFrame({"row": np.arange(len(clusters), dtype=np.uint32), "cluster": clusters.astype(np.int64)})
    placed = facts.join(users, on="row")
    sizes = users.group_by("cluster").len("size")
    events = placed.unique(["row"]).group_by("cluster").agg(pl.col("total").sum().alias("events"))
    all_events = events["events"].sum()
    share = pl.col("count") / pl.col("events")
    overall = pl.col("count").sum().over("kind", "name") / all_events
    support = (pl.col("size") * _SUPPORT_SHARE).ceil().clip(2, _SUPPORT_USERS)
    found = (
        placed.group_by("cluster", "kind", "name")
        .agg(pl.col("count").sum(), pl.col("row").n_unique().alias("users"))
        .join(events, on="cluster")
        .join(sizes, on="cluster")
        .with_columns(share.alias("share"), (share / overall).alias("lift"))
        .filter(pl.col("users") >= support, pl.col("lift") >= SMALLEST_LIFT)
        .with_columns((share * (pl.col("lift") - 1) ** 2 / pl.col("lift")).alias("strength"))
        .sort("strength", "kind", "name", descending=[True, False, False])
    )
    traits: list[list[Trait]] = [[] for _ in range(cluster_count)]
    for row in found.iter_rows(named=True):
        kept = traits[row["cluster"]]
        if sum(trait.kind == row["kind"] for trait in kept) < _MOST[row["kind"]]:
            trait = Trait(kind=row["kind"], name=row["name"], share=min(row["share"], 1.0), lift=row["lift"])
            kept.append(trait)
    return traits


def labels_of(traits: Sequence[Sequence[Trait]]) -> list[str]:
    """A name for each segment in plain words, no two the same: its two strongest categories.

    Where there are no categories it is named by items, and then by what its users do.
    """
    parts = [_label_parts(own) for own in traits]
    labels = [" · ".join(own[:2]) or "All-round" for own in parts]
    for count in range(3, max((len(own) for own in parts), default=0) + 1):
        taken = [labels.count(label) for label in labels]
        labels = [
            " · ".join(own[:count]) if times > 1 and len(own) >= count else label
            for label, own, times in zip(labels, parts, taken, strict=True)
        ]
    return [
        label if labels.count(label) == 1 else f"{label} ({labels[: place + 1].count(label)})"
        for place, label in enumerate(labels)
    ]


def profiles_of(
    members: Members, segment_ids: Sequence[int], traits: Sequence[Sequence[Trait]], seed: int
) -> list[SegmentProfile]:
    """A profile for each cluster, without history."""
    sizes = np.bincount(members.clusters, minlength=len(segment_ids))
    distances = np.bincount(members.clusters, members.distances, len(segment_ids)) / np.maximum(sizes, 1)
    silhouettes = silhouettes_of(members, len(segment_ids), seed)
    labels = labels_of(traits)
    return [
        SegmentProfile(
            segment_id=segment_id,
            label=labels[cluster],
            user_count=int(sizes[cluster]),
            share=float(sizes[cluster] / sizes.sum()),
            traits=tuple(traits[cluster]),
            mean_distance=float(distances[cluster]),
            silhouette=float(silhouettes[cluster]),
        )
        for cluster, segment_id in enumerate(segment_ids)
    ]


def silhouettes_of(members: Members, cluster_count: int, seed: int) -> NDArray[np.float64]:
    """Mean silhouette of each cluster (K,), -1 to 1, on a sample of users; 0 where the sample cannot tell."""
    from sklearn.metrics import silhouette_samples

    rows = np.random.default_rng(seed).permutation(len(members.clusters))[:_SAMPLE]
    clusters = members.clusters[rows]
    found = np.zeros(cluster_count)
    if 2 <= len(np.unique(clusters)) < len(rows):
        values = silhouette_samples(members.points[rows], clusters)
        counts = np.bincount(clusters, minlength=cluster_count)
        found = np.bincount(clusters, values, cluster_count) / np.maximum(counts, 1)
    return np.clip(found, -1.0, 1.0)


def in_words(name: str) -> str:
    """A category or title as people would write it: no shouting, no surplus spaces."""
    text = " ".join(name.split())
    return text.capitalize() if text.isupper() else text


def _label_parts(traits: Sequence[Trait]) -> list[str]:
    """Names to build a label from, the best first; names that say the same are taken once."""
    by_kind = {kind: [in_words(trait.name) for trait in traits if trait.kind == kind] for kind in _MOST}
    first = by_kind["category"] or by_kind["item"]
    return list(dict.fromkeys([*first, *by_kind["action"]]))
