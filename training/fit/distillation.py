"""Learning from another encoder as well as from the log: a start from its weights, or its scores as soft targets."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from training.fit.batching import Batch
from training.model.encoder import Encoder
from training.model.loss import FULL_SOFTMAX_ITEMS, SAMPLED_NEGATIVES, Items, looked_up

TEACHER_SHARE = 0.9
"""Share of the teacher in a student's loss; the rest is the next item itself."""


@dataclass(frozen=True)
class Lesson:
    """What a training is given beside the log: an encoder to go on from, or one to learn from."""

    start: Encoder | None = None
    teacher: Encoder | None = None


class Teacher:
    """An encoder whose scores a student learns to give (Hinton et al. 2015), at temperature 1.

    No module, so that its weights are no part of the student's checkpoints.
    """

    def __init__(self, encoder: Encoder) -> None:
        self._encoder = encoder.eval().requires_grad_(False)
        self._items = encoder.item_embeddings().detach()

    def mixed(self, loss: Tensor, inputs: Batch, asked: Tensor, targets: Tensor, users: Tensor, items: Items) -> Tensor:
        """`loss` and `self.loss` in their shares."""
        return (1 - TEACHER_SHARE) * loss + TEACHER_SHARE * self.loss(inputs, asked, targets, users, items)

    def loss(self, inputs: Batch, asked: Tensor, targets: Tensor, users: Tensor, items: Items) -> Tensor:
        """Mean Kullback-Leibler divergence of the student's scores from the teacher's, in nats.

        `asked` (B, L) marks the P positions of `users` (P, D); `targets` (P,) are their next item rows. Scores are
        compared over all items of a small catalogue, otherwise over the batch's targets and random items.
        """
        self._encoder.to(users.device)
        self._items = self._items.to(users.device)
        rows = self._rows(targets)
        with torch.no_grad():
            taught = self._encoder.sequence(**inputs)[asked] @ looked_up(self._items, rows).T
        learned = users @ looked_up(items, rows).T
        return functional.kl_div(learned.log_softmax(1), taught.log_softmax(1), log_target=True, reduction="batchmean")

    def _rows(self, targets: Tensor) -> Tensor | None:
        count = len(self._items)
        if count <= FULL_SOFTMAX_ITEMS:
            return None
        drawn = torch.randint(count, (SAMPLED_NEGATIVES,), device=targets.device)
        rows: Tensor = torch.unique(torch.cat([targets, drawn]))
        return rows
