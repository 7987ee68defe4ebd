"""What each cluster does more than everyone, with a lower bound of the lift that keeps accidents out.

A lift is a ratio of two shares of events, and events of one user go together. So its error is reckoned over users.
The share of a cluster's events and that of everyone else's are ratios of sums over users, whose linearised variance is
known (Cochran, Sampling Techniques, 1977, §6; Deng et al., Applying the Delta Method in Metric Analytics, KDD 2018).
Their quotient is bounded on the logarithmic scale, as Katz et al. (Biometrics 1978) do for a ratio of proportions,
with Student's t, and turned into a lift over all users. Degrees of freedom are the users of the cluster who have it,
less one; users of unlike counts stand for fewer (Kish, Survey Sampling, 1965: (Σc)²/Σc²). Everyone else counts as if
one more of them had it (in the manner of Haldane 1956): that nobody else had it by chance is no proof. The 2.5 % below
the bound are divided among all names of the kind that could be told (Bonferroni): those that a cluster happens to have
often are looked at because it has them often.
"""

from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from server.core.profiles import ActionShare, Trait

SMALLEST_LIFT = 1.15
"""Something done less than this many times more often than among all users sets nobody apart."""

MOST = {"category": 6, "action": 2, "time": 1, "item": 3}
"""Traits of each kind that a profile holds."""

_DOUBT = 0.025
_SUPPORT_USERS = 20
_SUPPORT_SHARE = 0.05
_HOURS = 6
"""Hours in a part of the day. They are UTC: a log does not say where its users live, so no part has a name."""


@dataclass(frozen=True, slots=True)
class Tallies:
    """How often each cluster does what.

    `names` has a row for each `cluster`, `kind` and `name` that occur: `count` of events, `users` who have it, and
    over these users the sums of count² (`squares`) and of count × all their events (`products`). `clusters` has
    `cluster`, `size` in users, `events`, and the sum of their users' events² (`event_squares`).
    """

    names: pl.DataFrame
    clusters: pl.DataFrame


def tallies_of(events: pl.LazyFrame, items: pl.DataFrame, clusters: NDArray[np.intp], has_clock: bool) -> Tallies:
    """Count the events of a log, of any size: nothing larger than its pairs of user and item is held.

    `events` has `row`, `item_id`, `action` and `timestamp` (milliseconds); `items` has `item_id, title, category`;
    `clusters` (U,) is the cluster of each row.
    """
    placed = placed_users(clusters)
    own = events.group_by("row").agg(pl.len().cast(pl.Float64).alias("events")).collect(engine="streaming")
    users = placed.join(own, on="row")
    per_cluster = users.group_by("cluster").agg(
        pl.len().alias("size"), pl.col("events").sum(), (pl.col("events") ** 2).sum().alias("event_squares")
    )
    catalogue = items.with_row_index("item_index")
    indexed = events.join(catalogue.lazy().select("item_id", "item_index"), on="item_id")
    pairs = indexed.group_by("row", "item_index").agg(pl.len().alias("count")).collect(engine="streaming").lazy()
    title = pl.coalesce(pl.when(pl.col("title") != "").then("title"), pl.col("item_id").cast(pl.String)).alias("name")
    categories = catalogue.select("item_index", name="category").explode("name").drop_nulls("name").unique()
    counts = {
        "category": _counted(pairs, categories),
        "item": _counted(pairs, catalogue.select("item_index", title)),
        "action": events.group_by("row", pl.col("action").alias("name")).agg(pl.len().alias("count")),
    }
    if has_clock:
        part = pl.from_epoch("timestamp", "ms").dt.hour() // _HOURS * _HOURS
        counts["time"] = events.group_by("row", part.alias("name")).agg(pl.len().alias("count"))
    tallied = {kind: _tallied(frame, users) for kind, frame in counts.items()}
    if has_clock:
        hours = pl.format("{}–{} h UTC", "name", pl.col("name") + _HOURS).alias("name")
        tallied["time"] = tallied["time"].with_columns(hours)
    named = [table.with_columns(pl.col("name").cast(pl.String), kind=pl.lit(kind)) for kind, table in tallied.items()]
    return Tallies(pl.concat(named), per_cluster)


def placed_users(clusters: NDArray[np.intp]) -> pl.DataFrame:
    """`row` and `cluster` of each user."""
    return pl.DataFrame({"row": np.arange(len(clusters), dtype=np.uint32), "cluster": clusters.astype(np.int64)})


def traits_by_cluster(tallies: Tallies, cluster_count: int, min_users: int) -> list[list[Trait]]:
    """What each cluster surely does more than everyone, strongest first.

    Strongest is what contributes most to Pearson's chi-square of cluster and trait, for a cluster of given size, if
    the lift is no more than its lower bound. A trait needs so many users of the cluster who have it: `min_users`, and
    5 % of the cluster, but no more than 20 for that.
    """
    low = pl.col("lift_low")
    support = (pl.col("size") * _SUPPORT_SHARE).ceil().clip(upper_bound=_SUPPORT_USERS)
    found = (
        _bounded(_shares(tallies, min_users).filter(pl.col("users") >= support))
        .filter(pl.col("lift") >= SMALLEST_LIFT, low > 1)
        .with_columns((pl.col("share") * (low - 1) ** 2 / low).alias("strength"))
        .sort("strength", "kind", "name", descending=[True, False, False])
        .with_columns(pl.int_range(pl.len()).over("cluster", "kind").alias("place"))
        .filter(pl.col("place") < pl.col("kind").replace_strict(MOST, return_dtype=pl.Int64))
    )
    traits: list[list[Trait]] = [[] for _ in range(cluster_count)]
    for row in found.iter_rows(named=True):
        figures = {name: row[name] for name in ("kind", "name", "share", "lift", "lift_low")}
        traits[row["cluster"]].append(Trait(**figures, user_count=row["users"]))
    return traits


def actions_by_cluster(tallies: Tallies, cluster_count: int, min_users: int) -> list[list[ActionShare]]:
    """What each cluster does, most frequent first: actions of at least `min_users` of its users."""
    shares = _shares(tallies, min_users).filter(pl.col("kind") == "action")
    actions: list[list[ActionShare]] = [[] for _ in range(cluster_count)]
    for row in shares.sort("share", "name", descending=[True, False]).iter_rows(named=True):
        actions[row["cluster"]].append(ActionShare(action=row["name"], share=row["share"], lift=row["lift"]))
    return actions


def _counted(pairs: pl.LazyFrame, names: pl.DataFrame) -> pl.LazyFrame:
    """Counts of users and names from counts of users and items; an item can have several names, or one of many."""
    return pairs.join(names.lazy(), on="item_index").group_by("row", "name").agg(pl.col("count").sum())


def _tallied(counts: pl.LazyFrame, users: pl.DataFrame) -> pl.DataFrame:
    count = pl.col("count").cast(pl.Float64)
    return (
        counts.join(users.lazy(), on="row")
        .group_by("cluster", "name")
        .agg(
            count.sum(),
            pl.len().cast(pl.Int64).alias("users"),
            (count**2).sum().alias("squares"),
            (count * pl.col("events")).sum().alias("products"),
        )
        .collect(engine="streaming")
    )


def _shares(tallies: Tallies, min_users: int) -> pl.DataFrame:
    """Names that at least `min_users` of a cluster's users have, with `share`, `lift`, and sums over everyone.

    Shares of actions are of events whose action is told: what is missing from 1 would give away the others.
    """
    every = ("count", "users", "squares", "products")
    whole = {f"all_{name}": pl.col(name).sum().over("kind", "name") for name in every}
    totals = tallies.clusters.select(pl.col("events", "event_squares").sum().name.prefix("all_"))
    looked_at = pl.col("name").filter(pl.col("all_users") >= min_users).n_unique().over("kind")
    told = pl.when(pl.col("kind") == "action").then(pl.col("count").sum().over("cluster", "kind")).otherwise("events")
    return (
        tallies.names.with_columns(**whole)
        .with_columns(looked_at.alias("looked_at"))
        .filter(pl.col("users") >= min_users)
        .join(tallies.clusters, on="cluster")
        .join(totals, how="cross")
        .with_columns((pl.col("count") / told).clip(upper_bound=1.0).alias("share"))
        .with_columns((pl.col("share") / (pl.col("all_count") / pl.col("all_events"))).alias("lift"))
    )


def _bounded(shares: pl.DataFrame) -> pl.DataFrame:
    """With `lift_low`, as this module's docstring says.

    With c of the C events of a name, and e of all E events, a user moves the logarithm of their group's share by
    c/C - e/E; the squares of this are summed over the users of the cluster, and over everyone else.
    """
    from scipy.stats import t

    sums = ("count", "events", "squares", "products", "event_squares")
    own = {name: pl.col(name) for name in sums}
    usual = pl.col("all_count") / pl.col("all_users")
    more = {"count": usual, "squares": usual**2}
    others = {name: pl.col(f"all_{name}") - pl.col(name) + more.get(name, 0.0) for name in sums}
    quotient = own["count"] / own["events"] / (others["count"] / others["events"])
    with_error = shares.with_columns(
        quotient.alias("quotient"),
        (_variance(**own) + _variance(**others)).sqrt().alias("error"),
        (_DOUBT / pl.col("looked_at")).alias("doubt"),
    )
    effective = with_error.select(pl.col("count") ** 2 / pl.col("squares")).to_series()
    degrees = np.maximum(effective.to_numpy() - 1, 1)
    widths = pl.Series(t.isf(with_error["doubt"].to_numpy(), degrees), dtype=pl.Float64)
    low = pl.col("quotient") * (-widths * pl.col("error")).exp()
    part = pl.col("events") / pl.col("all_events")
    return with_error.with_columns((low / (part * low + 1 - part)).alias("lift_low"))


def _variance(count: pl.Expr, events: pl.Expr, squares: pl.Expr, products: pl.Expr, event_squares: pl.Expr) -> pl.Expr:
    """Sum over users of (c/C - e/E)², the variance of the logarithm of C/E."""
    sums = squares / count**2 - 2 * products / (count * events) + event_squares / events**2
    return sums.clip(lower_bound=0.0)
