"""Next-item cross-entropy over the whole catalogue, or over sampled negatives shared by the batch."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

FULL_SOFTMAX_ITEMS = 2048
"""Catalogues of up to this size use the full softmax."""

SAMPLED_NEGATIVES = 1024
"""Negatives per batch for larger catalogues; docs/EXPERIMENTS.md has the measurements."""

_SMOOTHING = 0.75
"""Negatives are drawn with probability proportional to frequency to this power (word2vec, Mikolov et al. 2013)."""


ItemVectors = Tensor | Callable[[Tensor | None], Tensor]
"""Item vectors: the table (V, D), or a function from item rows to their vectors; None means all rows."""


class NextItemLoss(nn.Module):
    """Mean cross-entropy of the next item, in nats.

    `negatives` sampled items per batch estimate the denominator of the softmax without bias: each is weighted by the
    inverse of its expected count in the sample (logQ correction), and the target is added without correction
    (Khrylchenko et al. 2025). With 0 negatives, the softmax is over all items.
    """

    _cumulative: Tensor
    _log_expected: Tensor

    def __init__(self, event_counts: Tensor, negatives: int) -> None:
        """`event_counts` (V,) is how often each item is a target; 0 counts as 1."""
        super().__init__()
        chance = event_counts.clamp(min=1).double().pow(_SMOOTHING)
        chance = chance / chance.sum()
        self.negatives = negatives
        self._generator = torch.Generator()
        self.register_buffer("_cumulative", chance.cumsum(0), persistent=False)
        self.register_buffer("_log_expected", chance.mul(max(negatives, 1)).log().float(), persistent=False)

    def seed(self, seed: int) -> None:
        """Seed the generator of the negatives."""
        self._generator.manual_seed(seed)

    def forward(self, users: Tensor, targets: Tensor, items: ItemVectors) -> Tensor:
        """The loss of `users` (P, D), embeddings before their next items, with `targets` (P,), item rows."""
        if not self.negatives:
            return functional.cross_entropy(users @ vectors_of(items, None).T, targets)
        draws = torch.rand(self.negatives, dtype=torch.float64, generator=self._generator).to(users.device)
        rows = torch.searchsorted(self._cumulative, draws).clamp(max=len(self._cumulative) - 1)
        target_logits = (users * vectors_of(items, targets)).sum(1, keepdim=True)
        negative_logits = torch.addmm(-self._log_expected[rows], users, vectors_of(items, rows).T)
        negative_logits = negative_logits.masked_fill(targets[:, None] == rows, -math.inf)
        return functional.cross_entropy(torch.cat([target_logits, negative_logits], 1), targets.new_zeros(len(targets)))


def vectors_of(items: ItemVectors, rows: Tensor | None) -> Tensor:
    """Vectors of item rows (P,), or of all items, (P or V, D)."""
    if not isinstance(items, Tensor):
        return items(rows)
    return items if rows is None else functional.embedding(rows, items)


def choose_negatives(item_count: int) -> int:
    """The number of negatives for a catalogue; 0 is the full softmax."""
    return 0 if item_count <= FULL_SOFTMAX_ITEMS else SAMPLED_NEGATIVES
