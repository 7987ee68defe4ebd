"""Ranking metrics over a full catalogue, from the ranks of users' targets; bigger is better in all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:  # importing torch takes seconds, and most functions here do not need torch
    from torch import Tensor

CUTOFFS = (5, 10, 20)
LIST_LENGTH = 10
"""Items of a user's list that `coverage` and `novelty` look at."""

_RESAMPLES = 1000

_COLUMNS_AT_ONCE = 16_384
"""Items per block of scores. A block fits the CPU cache, which makes the count three times as fast."""


def target_ranks(scores: Tensor, target_rows: Tensor) -> Tensor:
    """The rank of each target, from 0, int64 (B,): the number of items before it. `scores` (B, V), `target_rows` (B,).

    Among equal scores the lower row comes first, as in a stable sort. A target with score -inf or NaN gets the last
    rank, V.
    """
    import torch

    target_scores = scores.gather(1, target_rows[:, None])
    before = torch.zeros_like(target_rows)
    for start in range(0, scores.shape[1], _COLUMNS_AT_ONCE):
        block = scores[:, start : start + _COLUMNS_AT_ONCE]
        rows = torch.arange(start, start + block.shape[1], device=scores.device)
        before += (~(block <= target_scores) | ((block == target_scores) & (rows < target_rows[:, None]))).sum(1)
    return torch.where(target_scores.squeeze(1) > -torch.inf, before, scores.shape[1])


def hit_rate(ranks: NDArray[np.int64], k: int) -> float:
    """Share of users whose target is among the first k, in [0, 1]."""
    return float((ranks < k).mean())


def ndcg_each(ranks: NDArray[np.int64], k: int) -> NDArray[np.float64]:
    """Each user's NDCG@k (T,), in [0, 1]: with one target it is 1 / log2(rank + 2), 0 beyond k."""
    return np.where(ranks < k, 1.0 / np.log2(ranks + 2.0), 0.0)


def mean_reciprocal_rank(ranks: NDArray[np.int64], k: int) -> float:
    """Mean of 1 / (rank + 1), which is 0 beyond the first k, in [0, 1]."""
    return float(np.where(ranks < k, 1.0 / (ranks + 1.0), 0.0).mean())


def coverage(listed: Tensor, item_count: int) -> float:
    """Share of the catalogue that is in at least one user's list, in [0, 1]; `listed` (T, k) are item rows."""
    import torch

    return len(torch.unique(listed)) / item_count


def novelty(listed: Tensor, event_counts: NDArray[np.int64]) -> float:
    """Mean self-information of the items in users' lists, in bits (Vargas and Castells 2011, "Rank and Relevance").

    `listed` (T, k) are item rows. `event_counts` (V,) are events per item in training; 0 counts as 1.
    """
    counts = np.maximum(event_counts, 1)
    bits = -np.log2(counts / counts.sum())
    return float(bits[listed.numpy()].mean())


def bootstrap_interval(each: NDArray[np.float64], seed: int, share: float = 0.95) -> tuple[float, float]:
    """Confidence bounds of the mean of `each` (T,), from resampled users (Efron 1979); `share` is the confidence.

    Users with equal values are drawn together, so the cost depends on the number of distinct values, not of users.
    """
    rng = np.random.default_rng(seed)
    values, counts = np.unique(each, return_counts=True)
    means = [rng.multinomial(len(each), counts / len(each)) @ values / len(each) for _ in range(_RESAMPLES)]
    low, high = np.quantile(means, [(1 - share) / 2, (1 + share) / 2])
    return float(low), float(high)


def set_metrics(hits: NDArray[np.bool_], sizes: NDArray[np.integer], k: int) -> Mapping[str, NDArray[np.float64]]:
    """HR, recall and NDCG at k of users with several targets, (B,) each, in [0, 1].

    `hits` (B, ≥ k) says whether each item of a list is a target; `sizes` (B,) are the targets, 1 or more. NDCG is the
    discounted hits divided by those of the best list of k items.
    """
    first = hits[:, :k]
    return {
        "hr": first.any(axis=1).astype(np.float64),
        "recall": first.sum(axis=1) / sizes,
        "ndcg": (first / np.log2(np.arange(2, first.shape[1] + 2))).sum(axis=1) / _ideal(sizes, k),
    }


def _ideal(sizes: NDArray[np.integer], k: int) -> NDArray[np.float64]:
    """The largest discounted hits in k places for each number of targets, (B,)."""
    gains: NDArray[np.float64] = np.cumsum(1 / np.log2(np.arange(2, k + 2)))[np.minimum(sizes, k) - 1]
    return gains


def metrics_by_user(ranks: NDArray[np.int64], users: NDArray[np.integer], k: int) -> Mapping[str, NDArray[np.float64]]:
    """HR and NDCG at k of each user, (U,), from the ranks of all targets (T,); `users` (T,) are from 0 to U - 1."""
    sizes = np.bincount(users)
    ndcg = np.bincount(users, ndcg_each(ranks, k)) / _ideal(sizes, k)
    return {"hr": (np.bincount(users, ranks < k) > 0).astype(np.float64), "ndcg": ndcg}


def ranking_metrics(ranks: NDArray[np.int64], cutoffs: Sequence[int] = CUTOFFS) -> Mapping[str, float]:
    """HR, NDCG and MRR at each cut-off, by name such as `ndcg@10`."""
    figures = {f"hr@{k}": hit_rate(ranks, k) for k in cutoffs}
    figures |= {f"ndcg@{k}": float(ndcg_each(ranks, k).mean()) for k in cutoffs}
    return figures | {f"mrr@{k}": mean_reciprocal_rank(ranks, k) for k in cutoffs}
