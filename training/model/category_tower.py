"""Item vectors from ids and categories: the vector of the id plus the mean vector of the item's categories.

An item with few events mostly depends on its categories, and an item without training events entirely. The sum is
computed during training only; saved and served is one table of item vectors (docs/EXPERIMENTS.md).
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

CATEGORIES_AN_ITEM = 8
"""Maximum categories per item; an item with more uses those with the fewest items."""


@dataclass(frozen=True)
class ItemCategories:
    """Shared categories of items: `index` int32 (V, C) holds category numbers from 1 to `count`, padded with 0."""

    index: NDArray[np.int32]
    count: int


def read_item_categories(prepared: Path) -> ItemCategories | None:
    """The categories in `items.parquet` of at least two items and not of all items; None if there are none."""
    items = pl.read_parquet(prepared / "items.parquet", columns=["category"]).with_row_index("row")
    pairs = items.explode("category").drop_nulls().unique(maintain_order=True)
    shared = (
        pairs.group_by("category", maintain_order=True)
        .len("items")
        .filter(pl.col("items").is_between(2, len(items) - 1))
        .sort("items", "category", descending=[True, False])
        .with_row_index("index", 1)
    )
    if shared.is_empty():
        return None
    kept = (
        pairs.join(shared, on="category")
        .sort("row", "index", descending=[False, True])
        .with_columns(place=pl.int_range(pl.len()).over("row"))
        .filter(pl.col("place") < CATEGORIES_AN_ITEM)
    )
    # (V, C): the category numbers of each item, filled from the left.
    row, place = kept["row"].to_numpy(), kept["place"].to_numpy()
    index = np.zeros((len(items), int(place.max()) + 1), np.int32)
    index[row, place] = kept["index"].to_numpy()
    return ItemCategories(index, len(shared))


class CategoryTower(nn.Module):
    """Item vectors by item index, with the interface of `nn.Embedding`: id vector plus mean category vector."""

    _index: Tensor
    _share: Tensor

    def __init__(self, ids: nn.Embedding, categories: ItemCategories) -> None:
        """`ids` (V + 1, D) by item index. The assignment of categories to items is not part of the saved weights."""
        super().__init__()
        self.ids = ids
        self.categories = nn.Embedding(categories.count + 1, ids.embedding_dim, padding_idx=0)
        nn.init.normal_(self.categories.weight[1:], std=float(ids.weight.detach().std()))
        index = functional.pad(torch.from_numpy(categories.index), (0, 0, 1, 0))
        self.register_buffer("_index", index, persistent=False)
        self.register_buffer("_share", 1 / (index > 0).sum(1, keepdim=True).clamp(min=1), persistent=False)

    @property
    def category_count(self) -> int:
        """Categories that have a vector."""
        return self.categories.num_embeddings - 1

    def forward(self, item_index: Tensor) -> Tensor:
        """Vectors (..., D) of items by index; index 0 is padding."""
        shared = self.categories(self._index[item_index]).sum(-2) * self._share[item_index]
        vectors: Tensor = self.ids(item_index) + shared
        return vectors

    def rows(self, rows: Tensor | None = None) -> Tensor:
        """Vectors of item rows (item index less 1), or of all items."""
        return self.table() if rows is None else self.forward(rows + 1)

    def table(self) -> Tensor:
        """Vectors of all items, (V, D)."""
        return self.forward(torch.arange(1, len(self._index), device=self._index.device))
