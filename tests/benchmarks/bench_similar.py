"""Items like an item: the served similarity beside co-occurrence, the rule of one line.

    python -m tests.benchmarks.bench_similar --run runs/demo

Reads the stages `prepare`, `export` and `segment` of a run. Queries are items of each user's last basket (events of one
time stamp). "Same category" is the share of ten items that have the query's finest category, "same basket" the share of
queries with another item of that basket among the ten. Co-occurrence counts the earlier baskets that two items share,
divided by the root of the product of their baskets. The encoder has seen the baskets before the last as well.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy import sparse

from server.core.ranking.similar import CATEGORY_SHARE
from tests.benchmarks.common import show

QUERIES, LISTED = 500, 10
Scores = Callable[[int], NDArray[np.floating]]
"""The similarity of every item to an item, (V,)."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True, help="directory of a finished run")
    run: Path = parser.parse_args().run
    items = pl.read_parquet(run / "segment" / "items.parquet", columns=["item_id", "category"])
    vectors = np.load(run / "export" / "item_embeddings.npy")
    earlier, last = baskets(pl.read_parquet(run / "prepare" / "events.parquet"), items["item_id"])
    methods = methods_of(vectors, items["category"].to_list(), earlier)
    finest = np.array([names[-1] if names else "" for names in items["category"].to_list()])
    rows, figures = [], {}
    for name, scores in methods.items():
        same_category, same_basket = measured(scores, queries_of(last), last, finest)
        rows.append((name, f"{same_category:.3f}", f"{same_basket:.3f}"))
        figures[name] = {"same_category": round(same_category, 4), "same_basket": round(same_basket, 4)}
    show("Similar items", ("method", "same category", "same basket"), rows, figures)


def baskets(events: pl.DataFrame, item_ids: pl.Series) -> tuple[sparse.csr_matrix, sparse.csr_matrix]:
    """The baskets before each user's last, and the last baskets: 1 for each item, (baskets, V)."""
    rows = pl.DataFrame({"item_id": item_ids, "row": np.arange(len(item_ids))})
    known = events.join(rows, on="item_id").unique(["user_id", "timestamp", "row"])
    is_last = pl.col("timestamp") == pl.col("timestamp").max().over("user_id")
    parts = []
    for part in (known.filter(~is_last), known.filter(is_last)):
        basket = part.select(pl.struct("user_id", "timestamp").rank("dense").cast(pl.Int64) - 1).to_series().to_numpy()
        shape = int(basket.max()) + 1, len(item_ids)
        parts.append(sparse.csr_matrix((np.ones(len(part), np.float32), (basket, part["row"].to_numpy())), shape))
    return parts[0], parts[1]


def methods_of(
    vectors: NDArray[np.float32], categories: list[list[str]], earlier: sparse.csr_matrix
) -> dict[str, Scores]:
    """The methods by name."""
    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    names = {name: place for place, name in enumerate(sorted({name for one in categories for name in one}))}
    lengths = np.array([len(one) for one in categories])
    places = np.array([names[name] for one in categories for name in one], np.int64)
    owners = np.repeat(np.arange(len(categories)), lengths)
    has = sparse.csr_matrix((np.ones(len(places), np.float32), (owners, places)), (len(categories), len(names)))
    by_item, of_item, sizes = earlier.tocsc(), earlier.T.tocsr(), np.maximum(np.asarray(earlier.sum(axis=0)).ravel(), 1)

    def served(row: int) -> NDArray[np.floating]:
        common = (has @ has[row].T).toarray().ravel()
        jaccard = common / np.maximum(lengths + lengths[row] - common, 1)
        share = CATEGORY_SHARE if lengths[row] else 0.0
        return np.asarray((1 - share) * (unit @ unit[row]) + share * jaccard)

    def together(row: int) -> NDArray[np.floating]:
        counts = (of_item @ by_item[:, [row]]).toarray().ravel()
        return np.asarray(counts / np.sqrt(sizes * sizes[row]))

    return {"SimilarItems": served, "embeddings alone": lambda row: unit @ unit[row], "co-occurrence": together}


def queries_of(last: sparse.csr_matrix) -> list[tuple[int, int]]:
    """A sample of pairs of a basket with two items or more, and an item of it."""
    basket, item = last.nonzero()
    sizes = np.diff(last.indptr)
    pairs = np.column_stack([basket, item])[sizes[basket] > 1]
    drawn = np.random.default_rng(0).permutation(len(pairs))[:QUERIES]
    return [(int(one), int(other)) for one, other in pairs[drawn]]


def measured(
    scores: Scores, queries: list[tuple[int, int]], last: sparse.csr_matrix, finest: NDArray[np.str_]
) -> tuple[float, float]:
    """The two shares, 0 to 1; larger is better."""
    category, basket = [], []
    for number, row in queries:
        values = scores(row).copy()
        values[row] = -np.inf
        best = np.argpartition(-values, LISTED)[:LISTED]
        category.append(float(np.mean(finest[best] == finest[row])))
        basket.append(bool(np.isin(best, last[number].indices).any()))
    return float(np.mean(category)), float(np.mean(basket))


if __name__ == "__main__":
    main()
