"""How well each strategy of a release predicts what users did next, user by user."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import polars as pl
from numpy.typing import NDArray

from server.core.figures import AS_SERVED, LEAVE_ONE_OUT, NEXT_VISIT, TIME_SPLIT, Figure, figures_of
from server.core.next_visit import ItemTables
from server.core.preprocessing import Preprocessing
from training.data.split import Split
from training.metrics import bootstrap_interval
from training.ranking.next_visit import Asked
from training.ranking.variants import first_of_groups

SERVED_NDCG = "ndcg.parquet"
"""NDCG@10 of each user (user_id, and a column for each method), in the directory of the stage that measured it."""

LISTED = 20
"""Items of each list that figures need."""


@dataclass(frozen=True, eq=False)
class ServedQuality:
    """Values of users by strategy and measure, such as `each["hybrid"]["ndcg@10"]` (B,).

    `users` (B,) are rows of the log; `protocol` is the one of the evaluate stage that has the same targets.
    """

    protocol: str
    users: NDArray[np.intp]
    each: Mapping[str, Mapping[str, NDArray[np.float64]]]

    @cached_property
    def figures(self) -> tuple[Figure, ...]:
        """The mean of each measure over the users, with its interval."""
        return tuple(
            figure
            for strategy, measures in self.each.items()
            for figure in figures_of(
                self.protocol,
                strategy,
                {name: float(values.mean()) for name, values in measures.items()},
                {name: bootstrap_interval(values, seed=0) for name, values in measures.items()},
            )
        )

    def ndcg(self, user_ids: pl.Series) -> pl.DataFrame:
        """NDCG@10 of each user (user_id, and a column for each strategy)."""
        columns = {strategy: measures["ndcg@10"].astype(np.float32) for strategy, measures in self.each.items()}
        return pl.DataFrame({"user_id": user_ids.gather(self.users), **columns})


def served_protocol(split: Split, preprocessing: Preprocessing) -> str:
    """The protocol whose targets a release of this split is asked for."""
    if split.by_time:
        return TIME_SPLIT
    if split.by_visit:
        return NEXT_VISIT
    return LEAVE_ONE_OUT if preprocessing.exclude_seen else AS_SERVED


def strategy_lists(
    hybrid: NDArray[np.int64],
    tables: ItemTables,
    asked: Asked,
    groups: NDArray[np.int32] | None = None,
    count: int = LISTED,
) -> dict[str, NDArray[np.int64]]:
    """The best `count` items of each user by each strategy, as a release serves them, (B, count); -1 for none.

    `groups` (V,) are those of variants, of which each list has the first; `hybrid` (B, count) has been cut so.
    """
    width = count if groups is None else max(map(len, (segment.rows for segment in asked.segments)), default=count)
    popular = np.argsort(-tables.popularity, kind="stable")[: max(count, width)]
    segments = np.full((len(asked.rows), width), -1, np.int64)
    for place, segment in enumerate(asked.segments):
        segments[place, : len(segment.rows[:width])] = segment.rows[:width]
    return {
        "hybrid": hybrid,
        "personal": first_of_groups(asked.pools, groups, count),
        "segment": first_of_groups(segments, groups, count),
        "popular": np.tile(first_of_groups(popular[None], groups, count), (len(asked.rows), 1)),
    }
