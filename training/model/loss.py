"""Next-item cross-entropy, over the whole catalogue or over negatives that the whole batch shares."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

FULL_SOFTMAX_ITEMS = 2048
"""Up to so many items the softmax is over all of them."""

SAMPLED_NEGATIVES = 1024
"""Negatives of larger catalogues; why so many is in EXPERIMENTS.md."""

_SMOOTHING = 0.75
"""Negatives are drawn by frequency to this power, as in word2vec (Mikolov et al. 2013)."""


Items = Tensor | Callable[[Tensor | None], Tensor]
"""Item vectors: all of them, (V, D), or a look-up of rows, where None asks for all."""


class NextItemLoss(nn.Module):
    """Mean cross-entropy of the next item, in nats.

    `negatives` items a batch estimate the softmax's denominator without bias: each weighs one over how often it is
    expected in the sample (logQ correction), and the target itself stands outside of the estimate uncorrected
    (Khrylchenko et al. 2025). 0 negatives mean all items.
    """

    _cumulative: Tensor
    _log_expected: Tensor

    def __init__(self, event_counts: Tensor, negatives: int) -> None:
        """`event_counts` (V,) says how often each item is a target; items never seen count once."""
        super().__init__()
        chance = event_counts.clamp(min=1).double().pow(_SMOOTHING)
        chance = chance / chance.sum()
        self.negatives = negatives
        self._generator = torch.Generator()
        self.register_buffer("_cumulative", chance.cumsum(0), persistent=False)
        self.register_buffer("_log_expected", chance.mul(max(negatives, 1)).log().float(), persistent=False)

    def seed(self, seed: int) -> None:
        """Fix which negatives are drawn from here on."""
        self._generator.manual_seed(seed)

    def forward(self, users: Tensor, targets: Tensor, items: Items) -> Tensor:
        """`users` (P, D) before their next items; `targets` (P,) item rows."""
        if not self.negatives:
            return functional.cross_entropy(users @ looked_up(items, None).T, targets)
        draws = torch.rand(self.negatives, dtype=torch.float64, generator=self._generator).to(users.device)
        rows = torch.searchsorted(self._cumulative, draws).clamp(max=len(self._cumulative) - 1)
        own = (users * looked_up(items, targets)).sum(1, keepdim=True)
        others = torch.addmm(-self._log_expected[rows], users, looked_up(items, rows).T)
        others = others.masked_fill(targets[:, None] == rows, -math.inf)
        return functional.cross_entropy(torch.cat([own, others], 1), targets.new_zeros(len(targets)))


def looked_up(items: Items, rows: Tensor | None) -> Tensor:
    """Vectors of item rows (P,), or of all items, (P or V, D)."""
    if not isinstance(items, Tensor):
        return items(rows)
    return items if rows is None else functional.embedding(rows, items)


def choose_negatives(item_count: int) -> int:
    """How many negatives suit a catalogue; 0 is the full softmax."""
    return 0 if item_count <= FULL_SOFTMAX_ITEMS else SAMPLED_NEGATIVES
