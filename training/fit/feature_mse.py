"""An extra loss: predict the embedding of what the user does next.

A random cut divides a history. From the user embedding at the cut a small head predicts the embedding of the rest,
which a slowly moving copy of the encoder gives (BYOL, Grill et al. 2020, with the future of a history in the place of
a second view). The exported weights do not grow. Where a step is computed in parts, by processes or by accumulation,
each part draws its own cuts: the loss is then that of a smaller step.
"""

import copy
from typing import Self

import torch
from torch import Tensor, nn

from server.core.features import GAP_START
from training.fit.batching import Batch
from training.model.encoder import Encoder

_DECAY = 0.99
"""Share of the slow copy, and of the statistics of its features, that a step keeps."""


class FeatureMSE(nn.Module):
    """Mean squared error of the predicted features, per component; predicting their mean gets 1.

    Targets are scaled to mean 0 and variance 1 by running statistics, which each process keeps for itself. A collapsed
    encoder therefore has no small loss: only noise is left to predict, and the loss is 1.
    """

    mean: Tensor
    variance: Tensor

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        dim = encoder.shape.embedding_dim
        self.slow = copy.deepcopy(encoder).requires_grad_(False)
        self.head = nn.Sequential(nn.Linear(dim, 2 * dim), nn.SiLU(), nn.Linear(2 * dim, dim))
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("variance", torch.zeros(dim))
        self.train()

    def train(self, mode: bool = True) -> Self:
        """As of any module, but the slow copy never drops anything out."""
        super().train(mode)
        self.slow.eval()
        return self

    def forward(self, users: Tensor, inputs: Batch) -> Tensor:
        """`users` (B, L, D) are the encoder's for `inputs`. Histories of two events and more are cut at random."""
        lengths = (inputs["item_index"] > 0).sum(1)
        usable = lengths > 1
        past = (1 + torch.rand(len(lengths), device=users.device) * (lengths - 1)).long()
        first = users.shape[1] - lengths + past  # (B,): the column where the future begins
        rows = torch.arange(len(first), device=users.device)
        predicted = self.head(users[rows, first - 1]).float()
        with torch.no_grad():
            target = self._scaled(self.slow(**future_of(inputs, first)).float(), usable)
        errors = (predicted - target).square().mean(1)
        return torch.where(usable, errors, 0.0).sum() / usable.sum().clamp(min=1)

    @torch.no_grad()
    def follow(self, encoder: Encoder) -> None:
        """Move the slow copy a little towards `encoder`."""
        for slow, fast in zip(self.slow.parameters(), encoder.parameters(), strict=True):
            slow.lerp_(fast, 1 - _DECAY)

    def _scaled(self, features: Tensor, usable: Tensor) -> Tensor:
        """`features` (B, D), scaled by the running statistics, which the `usable` rows, (B,), update first."""
        known = features[usable]
        if len(known):
            share = 1 - _DECAY if self.variance.any() else 1.0
            self.mean.lerp_(known.mean(0), share)
            self.variance.lerp_((known - self.mean).square().mean(0), share)
        return (features - self.mean) / (self.variance + 1e-8).sqrt()


def future_of(inputs: Batch, first: Tensor) -> Batch:
    """Inputs (B, L) without what stands before column `first` (B,), as if the history began there."""
    columns = torch.arange(inputs["item_index"].shape[1], device=first.device)
    kept = columns >= first[:, None]
    future = {name: torch.where(kept, column, 0) for name, column in inputs.items()}
    future["gap_index"] = torch.where(columns == first[:, None], GAP_START, future["gap_index"])
    return future
