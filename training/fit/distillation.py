"""Distillation: a student encoder learns the scores of a teacher encoder as soft targets (Hinton et al. 2015)."""

import torch
from torch import Tensor
from torch.nn import functional

from training.fit.batching import Batch
from training.model.encoder import Encoder
from training.model.loss import FULL_SOFTMAX_ITEMS, SAMPLED_NEGATIVES, ItemVectors, vectors_of

TEACHER_SHARE = 0.9
"""Share of the teacher in a student's loss; the rest is the next item itself."""


class Distillation:
    """The loss of a student against its teacher, at temperature 1.

    No module, so that the teacher's weights are no part of the student's checkpoints.
    """

    def __init__(self, teacher: Encoder) -> None:
        self._teacher = teacher.eval().requires_grad_(False)
        self._items = teacher.item_embeddings().detach()

    def mixed(
        self, loss: Tensor, inputs: Batch, has_target: Tensor, targets: Tensor, users: Tensor, items: ItemVectors
    ) -> Tensor:
        """The student's own `loss` and `self.loss`, weighted by `TEACHER_SHARE`."""
        return (1 - TEACHER_SHARE) * loss + TEACHER_SHARE * self.loss(inputs, has_target, targets, users, items)

    def loss(self, inputs: Batch, has_target: Tensor, targets: Tensor, users: Tensor, items: ItemVectors) -> Tensor:
        """Mean Kullback-Leibler divergence of the student's scores from the teacher's, in nats.

        `has_target` (B, L) marks the P positions of `users` (P, D); `targets` (P,) are their next item rows. Scores
        are compared over all items of a small catalogue, otherwise over the batch's targets and random items.
        """
        self._teacher.to(users.device)
        self._items = self._items.to(users.device)
        rows = self._rows(targets)
        with torch.no_grad():
            teacher_scores = self._teacher.sequence(**inputs)[has_target] @ vectors_of(self._items, rows).T
        scores = users @ vectors_of(items, rows).T
        return functional.kl_div(
            scores.log_softmax(1), teacher_scores.log_softmax(1), log_target=True, reduction="batchmean"
        )

    def _rows(self, targets: Tensor) -> Tensor | None:
        """Item rows to compare over; None for all."""
        count = len(self._items)
        if count <= FULL_SOFTMAX_ITEMS:
            return None
        drawn = torch.randint(count, (SAMPLED_NEGATIVES,), device=targets.device)
        rows: Tensor = torch.unique(torch.cat([targets, drawn]))
        return rows
