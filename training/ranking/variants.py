"""Groups of variants: items of one title are one thing to a reader, so the server shows the best of them only."""

import numpy as np
import polars as pl

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
