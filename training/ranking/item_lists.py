"""The items that describe a segment: those that most of its users chose, and those that it is particular about.

A user chose an item if the user has a positive event with the item; the number of such events does not matter. The
share of an item is the share of the segment's users who chose it. The lift is that share divided by the share among all
users.

Chance makes the lift of a rare item large. Therefore the particular items are ordered by a lower confidence bound of
the lift, and must have a bound above 1. The bound is computed as follows.

1. The lift is also a quotient of another kind: of the users who chose the item, the share who are in the segment,
   divided by the segment's share of all users. The divisor is known, and the dividend is a binomial proportion
   (Przyborowski & Wilenski, Biometrika 1940), whose exact lower bound is that of Clopper & Pearson (Biometrika 1934).
   Unlike bounds from a normal distribution, such as that of Katz et al. (Biometrics 1978), it holds for a handful of
   users, and for an item that nobody else chose. For an item that a large part of all users chose it is too low, never
   too high, since the segment's users are drawn without replacement.
2. The error rate of 2.5 % is divided among all candidate items (Bonferroni), because the items with a large lift are
   selected from all of them.

These lists describe. What is recommended to a segment is another list (`segment_items`), which predicts events: there
repeats count, old events fade, and the popularity in a segment with few events is drawn to the global popularity.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from server.core.frozen_model import FrozenModel
from server.core.profiles import SegmentItem
from training.ranking.segment_items import Behaviour, users_by_pair

LONGEST_LIST = 20
"""Largest number of items in a list."""

_ERROR_RATE = 0.025


@dataclass(frozen=True, slots=True)
class ItemLists:
    """Lists of a segment: `top` by share, `particular` by the lower bound of the lift; the largest first."""

    top: tuple[SegmentItem, ...] = ()
    particular: tuple[SegmentItem, ...] = ()


class ListOverlap(FrozenModel):
    """The share of items that the lists of two segments have in common, over all pairs of segments, 0 to 1."""

    mean: float
    largest: float


def item_lists(
    behaviour: Behaviour,
    clusters: NDArray[np.intp],
    cluster_count: int,
    item_ids: pl.Series,
    min_users: int = 1,
    min_size: int = 1,
) -> list[ItemLists]:
    """The lists of each cluster; `clusters` (U,) is the cluster of each user row, `item_ids` (V,) are by item row.

    An item is listed only if at least `min_users` users of the cluster chose it. A cluster with fewer than `min_size`
    users has empty lists.
    """
    sizes = np.bincount(clusters, minlength=cluster_count)
    lifts = _lifts(behaviour, clusters, sizes, min_users).filter(pl.col("size") >= min_size)
    shown = lifts.with_columns(item_id=item_ids.gather(lifts["item_row"]))
    top = _longest(shown, "user_share")
    particular = _longest(shown.filter(pl.col("lift_low") > 1), "lift_low")
    return [ItemLists(top.get(cluster, ()), particular.get(cluster, ())) for cluster in range(cluster_count)]


def list_overlap(lists: Sequence[Sequence[SegmentItem]]) -> ListOverlap | None:
    """How much the lists of two segments overlap; None if fewer than two lists have items.

    The number of items in common is divided by the length of the longer list, so that equal lists have 1.
    """
    from scipy.sparse import csr_array

    filled = [[item.item_id for item in listed] for listed in lists if listed]
    if len(filled) < 2:
        return None
    lengths = np.array([len(listed) for listed in filled])
    columns = np.unique([item_id for listed in filled for item_id in listed], return_inverse=True)[1]
    # Row = list, column = item: the product with its transpose counts the items in common.
    listed_items = csr_array((np.ones(len(columns)), columns, np.append(0, np.cumsum(lengths))))
    shares = (listed_items @ listed_items.T).toarray() / np.maximum(lengths[:, None], lengths)
    pairs = shares[np.triu_indices(len(filled), 1)]
    return ListOverlap(mean=float(pairs.mean()), largest=float(pairs.max()))


def _lifts(behaviour: Behaviour, clusters: NDArray[np.intp], sizes: NDArray[np.intp], min_users: int) -> pl.DataFrame:
    """A row for each `cluster` and `item_row` where at least `min_users` users of the cluster chose the item.

    Columns: `size` of the cluster, `user_share`, `lift`, and `lift_low`, the lower bound of the lift.
    """
    from scipy.stats import beta

    pairs, users = users_by_pair(behaviour, clusters)
    all_users = np.bincount(pairs % behaviour.item_count, users, behaviour.item_count)
    candidate_count = max(int(np.count_nonzero(all_users >= max(min_users, 1))), 1)
    is_shown = users >= min_users
    users, (cluster, item_row) = users[is_shown], np.divmod(pairs[is_shown], behaviour.item_count)
    all_users, cluster_share = all_users[item_row], sizes[cluster] / len(clusters)
    return pl.DataFrame(
        {
            "cluster": cluster,
            "item_row": item_row,
            "size": sizes[cluster],
            "user_share": users / sizes[cluster],
            "lift": users / all_users / cluster_share,
            "lift_low": beta.ppf(_ERROR_RATE / candidate_count, users, all_users - users + 1) / cluster_share,
        }
    )


def _longest(lifts: pl.DataFrame, column: str) -> dict[int, tuple[SegmentItem, ...]]:
    """For each cluster the items with the largest values of a column, the largest first."""
    ordered = lifts.sort("cluster", column, "item_id", descending=[False, True, False])
    listed: dict[int, list[SegmentItem]] = {}
    for row in ordered.group_by("cluster", maintain_order=True).head(LONGEST_LIST).iter_rows(named=True):
        figures = {name: row[name] for name in ("item_id", "user_share", "lift", "lift_low")}
        listed.setdefault(row["cluster"], []).append(SegmentItem(**figures))
    return {cluster: tuple(items) for cluster, items in listed.items()}
