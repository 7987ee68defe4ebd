"""Groups of variants: items of one title are one thing to a reader, so the server shows the best of them only."""

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor

from server.core.release import GROUP


def variant_groups(items: pl.DataFrame) -> pl.Series:
    """The row of the first item of each item's group, int32 (V,), from `title` and, if it is there, `group`.

    Items are of one group if their value of `group` is the same; where it is null, if their titles are, whatever the
    case and the blanks around. An item without either is a group of its own.
    """
    title = pl.col("title").str.strip_chars().str.to_lowercase()
    named = pl.col("group") if "group" in items.columns else pl.lit(None, pl.String)
    keys = items.select(
        group=named,
        title=pl.when(named.is_null() & (title != "")).then(title),
        row=pl.int_range(pl.len(), dtype=pl.Int32),
    )
    alone = pl.when(pl.col("group").is_null() & pl.col("title").is_null()).then("row")
    return keys.select(group=pl.col("row").min().over("group", "title", alone))["group"]


def groups_with_new(old: pl.DataFrame, new: pl.DataFrame) -> pl.Series:
    """The `variant_groups` of the items of a release, which have the column `group` (V,), followed by new items.

    A new item joins the group of the first old item with its title.
    """
    first = variant_groups(pl.concat([old.select("title"), new.select("title")])).to_numpy()[len(old) :]
    groups = old[GROUP].to_numpy()
    joined = np.where(first < len(old), groups[np.minimum(first, len(old) - 1)], first)
    return pl.Series(GROUP, np.concatenate([groups, joined]), pl.Int32)


def groups_of(items: pl.DataFrame) -> NDArray[np.int32] | None:
    """The `variant_groups` of items (`title`, `group` if there is one); None if no two items are of one group."""
    groups = variant_groups(items).to_numpy()
    return None if np.array_equal(groups, np.arange(len(groups))) else groups


def leave_out_variants(scores: Tensor, groups: NDArray[np.int32] | None) -> Tensor:
    """The scores (B, V), with minus infinity for each item that another of its group beats, as a server shows them.

    Of equal scores in a group, each stays.
    """
    if groups is None:
        return scores
    index = torch.from_numpy(groups.astype(np.int64)).expand_as(scores)
    best = torch.full_like(scores, -torch.inf).scatter_reduce(1, index, scores, "amax")
    return torch.where(scores < best.gather(1, index), -torch.inf, scores)


def first_of_groups(lists: NDArray[np.int64], groups: NDArray[np.int32] | None, count: int) -> NDArray[np.int64]:
    """The first `count` items of each list (B, L), of each group only the first; -1 where there are fewer."""
    if groups is not None:
        named = np.where(lists < 0, -1, groups[lists])
        is_kept = lists >= 0
        for place in range(1, lists.shape[1]):
            is_kept[:, place] &= ~(named[:, :place] == named[:, place, None]).any(axis=1)
        order = np.argsort(~is_kept, axis=1, kind="stable")
        lists = np.take_along_axis(np.where(is_kept, lists, -1), order, axis=1)
    return lists[:, :count]
