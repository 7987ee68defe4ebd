"""Traits: names (categories, items, actions, hours) that a cluster has more often than all users, by their lift.

The lift is the ratio of two shares of events: the cluster's share and that of all users. A trait must also have a lower
confidence bound of the lift above 1, which excludes accidents. The bound is computed as follows.

1. Events of one user are not independent, so the error is computed over users. The shares of the cluster and of all
   other users are ratios of sums over users, with a known linearised variance (Cochran, Sampling Techniques, 1977, §6;
   Deng et al., Applying the Delta Method in Metric Analytics, KDD 2018).
2. The quotient of the two shares is bounded on the logarithmic scale, like a ratio of proportions in Katz et al.
   (Biometrics 1978), with Student's t, and then converted to a lift over all users.
3. The degrees of freedom are the number of the cluster's users who have the name, less 1. Unequal counts c per user
   lower the effective number to (Σc)²/Σc² (Kish, Survey Sampling, 1965).
4. The other users count as if one more of them had the name (similar to Haldane 1956), because a count of zero among
   the others may be an accident.
5. The error rate of 2.5 % is divided among all candidate names of the kind (Bonferroni), because the names with a large
   lift are selected from all of them.
"""

from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from server.core.profiles import ActionShare, Trait

SMALLEST_LIFT = 1.15
"""Least lift of a trait."""

MOST_TRAITS = {"category": 6, "action": 2, "time": 1, "item": 3}
"""Maximum number of traits of each kind in a profile."""

_ERROR_RATE = 0.025
_SUPPORT_USERS = 20
_SUPPORT_SHARE = 0.05
_HOURS = 6
"""Hours in a part of the day. The parts have no names, since the log does not have the users' time zones."""


@dataclass(frozen=True, slots=True)
class Tallies:
    """Event counts by cluster and name.

    `names` has a row for each combination of `cluster`, `kind` and `name` in the log: the `count` of events, the number
    of `users` with such events, and over these users the sums of count² (`squares`) and of count × all events of the
    user (`products`). `clusters` has `cluster`, `size` in users, `events`, and the sum over users of events²
    (`event_squares`).
    """

    names: pl.DataFrame
    clusters: pl.DataFrame


def tallies_of(
    events: pl.LazyFrame, items: pl.DataFrame, clusters: NDArray[np.intp], has_clock: bool, zone: str = "UTC"
) -> Tallies:
    """Count the events of a log; memory is limited to the pairs of user and item, for a log of any size.

    `events` has `row`, `item_id`, `action` and `timestamp` (milliseconds); `items` has `item_id, title, category`;
    `clusters` (U,) is the cluster of each row; parts of the day are of the time `zone`, whose name they carry.
    """
    placed = placed_users(clusters)
    event_counts = events.group_by("row").agg(pl.len().cast(pl.Float64).alias("events")).collect(engine="streaming")
    users = placed.join(event_counts, on="row")
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
        local = pl.from_epoch("timestamp", "ms").dt.replace_time_zone("UTC").dt.convert_time_zone(zone)
        day_part = local.dt.hour() // _HOURS * _HOURS
        counts["time"] = events.group_by("row", day_part.alias("name")).agg(pl.len().alias("count"))
    tallied = {kind: _tallied(frame, users) for kind, frame in counts.items()}
    if has_clock:
        hour_names = pl.format(f"{{}}–{{}} h {zone}", "name", pl.col("name") + _HOURS).alias("name")
        tallied["time"] = tallied["time"].with_columns(hour_names)
    named = [table.with_columns(pl.col("name").cast(pl.String), kind=pl.lit(kind)) for kind, table in tallied.items()]
    return Tallies(pl.concat(named), per_cluster)


def placed_users(clusters: NDArray[np.intp]) -> pl.DataFrame:
    """A table with the `row` and `cluster` of each user."""
    return pl.DataFrame({"row": np.arange(len(clusters), dtype=np.uint32), "cluster": clusters.astype(np.int64)})


def traits_by_cluster(tallies: Tallies, cluster_count: int, min_users: int) -> list[list[Trait]]:
    """The traits of each cluster, strongest first.

    The strength is the contribution to Pearson's chi-square of cluster and trait, computed with the lower bound of the
    lift. At least `min_users` users of the cluster must have the trait, and at least the smaller of 20 users and 5 % of
    the cluster.
    """
    low = pl.col("lift_low")
    support = (pl.col("size") * _SUPPORT_SHARE).ceil().clip(upper_bound=_SUPPORT_USERS)
    strongest = (
        _bounded(_shares(tallies, min_users).filter(pl.col("users") >= support))
        .filter(pl.col("lift") >= SMALLEST_LIFT, low > 1)
        .with_columns((pl.col("share") * (low - 1) ** 2 / low).alias("strength"))
        .sort("strength", "kind", "name", descending=[True, False, False])
        .with_columns(pl.int_range(pl.len()).over("cluster", "kind").alias("place"))
        .filter(pl.col("place") < pl.col("kind").replace_strict(MOST_TRAITS, return_dtype=pl.Int64))
    )
    traits: list[list[Trait]] = [[] for _ in range(cluster_count)]
    for row in strongest.iter_rows(named=True):
        figures = {name: row[name] for name in ("kind", "name", "share", "lift", "lift_low")}
        traits[row["cluster"]].append(Trait(**figures, user_count=row["users"]))
    return traits


def actions_by_cluster(tallies: Tallies, cluster_count: int, min_users: int) -> list[list[ActionShare]]:
    """The actions of each cluster with at least `min_users` users, most frequent first."""
    shares = _shares(tallies, min_users).filter(pl.col("kind") == "action")
    actions: list[list[ActionShare]] = [[] for _ in range(cluster_count)]
    for row in shares.sort("share", "name", descending=[True, False]).iter_rows(named=True):
        actions[row["cluster"]].append(ActionShare(action=row["name"], share=row["share"], lift=row["lift"]))
    return actions


def _counted(pairs: pl.LazyFrame, names: pl.DataFrame) -> pl.LazyFrame:
    """Counts by user and name from counts by user and item; items and names are many-to-many."""
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
    """Names that at least `min_users` of a cluster's users have, with `share`, `lift`, and sums over all users.

    Shares of actions are relative to the events of published actions. Otherwise their gap to 1 would reveal the others.
    """
    summed = ("count", "users", "squares", "products")
    sums_over_all = {f"all_{name}": pl.col(name).sum().over("kind", "name") for name in summed}
    totals = tallies.clusters.select(pl.col("events", "event_squares").sum().name.prefix("all_"))
    candidates = pl.col("name").filter(pl.col("all_users") >= min_users).n_unique().over("kind")
    denominator = (
        pl.when(pl.col("kind") == "action").then(pl.col("count").sum().over("cluster", "kind")).otherwise("events")
    )
    return (
        tallies.names.with_columns(**sums_over_all)
        .with_columns(candidates.alias("candidates"))
        .filter(pl.col("users") >= min_users)
        .join(tallies.clusters, on="cluster")
        .join(totals, how="cross")
        .with_columns((pl.col("count") / denominator).clip(upper_bound=1.0).alias("share"))
        .with_columns((pl.col("share") / (pl.col("all_count") / pl.col("all_events"))).alias("lift"))
    )


def _bounded(shares: pl.DataFrame) -> pl.DataFrame:
    """Add `lift_low`, the lower bound of the lift; see the docstring of this module.

    A user with c of the C events of a name, and e of all E events, changes the logarithm of the group's share by
    c/C - e/E. The squares are summed over the users of the cluster, and over all other users.
    """
    from scipy.stats import t

    sums = ("count", "events", "squares", "products", "event_squares")
    cluster = {name: pl.col(name) for name in sums}
    mean_count = pl.col("all_count") / pl.col("all_users")
    extra_user = {"count": mean_count, "squares": mean_count**2}
    others = {name: pl.col(f"all_{name}") - pl.col(name) + extra_user.get(name, 0.0) for name in sums}
    quotient = cluster["count"] / cluster["events"] / (others["count"] / others["events"])
    with_error = shares.with_columns(
        quotient.alias("quotient"),
        (_variance(**cluster) + _variance(**others)).sqrt().alias("error"),
        (_ERROR_RATE / pl.col("candidates")).alias("error_rate"),
    )
    effective = with_error.select(pl.col("count") ** 2 / pl.col("squares")).to_series()
    degrees = np.maximum(effective.to_numpy() - 1, 1)
    widths = pl.Series(t.isf(with_error["error_rate"].to_numpy(), degrees), dtype=pl.Float64)
    # Lower bound of the quotient, converted to a lift over all users, of whose events the cluster has `cluster_share`.
    low = pl.col("quotient") * (-widths * pl.col("error")).exp()
    cluster_share = pl.col("events") / pl.col("all_events")
    return with_error.with_columns((low / (cluster_share * low + 1 - cluster_share)).alias("lift_low"))


def _variance(count: pl.Expr, events: pl.Expr, squares: pl.Expr, products: pl.Expr, event_squares: pl.Expr) -> pl.Expr:
    """Sum over users of (c/C - e/E)², the variance of the logarithm of C/E."""
    sums = squares / count**2 - 2 * products / (count * events) + event_squares / events**2
    return sums.clip(lower_bound=0.0)
