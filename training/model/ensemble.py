"""Several encoders as one: concatenated user and item embeddings, so that one inner product is the sum of all scores.

A member's scores are divided by their spread over a user's items and multiplied by its weight. The sum is scaled back
to the size of one member's scores, which are log-probabilities up to a constant. Z-scores would also subtract each
user's mean, which changes no ranking. A member's factor is split between its user and its item embeddings: the user
embeddings of all members get the same mean length times the root of the weight, since segments are computed from them.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from training.model.encoder import Encoder, EncoderShape

FUSION = "fusion.json"
"""File that marks a run as fused from several runs, and lists them."""


@dataclass(frozen=True, slots=True)
class Member:
    """A member: its run, its `weight` (the weights sum to 1), and the factors of its embeddings."""

    run: str
    weight: float
    user_factor: float
    item_factor: float


class FusedEncoder(Encoder):
    """The members' embeddings, scaled and concatenated; `embedding_dim` is the sum of the members'."""

    def __init__(self, encoders: Sequence[Encoder], members: Sequence[Member]) -> None:
        nn.Module.__init__(self)
        first = encoders[0].shape
        self.shape = EncoderShape(
            item_count=first.item_count,
            action_count=first.action_count,
            max_length=first.max_length,
            embedding_dim=sum(encoder.shape.embedding_dim for encoder in encoders),
            layers=max(encoder.shape.layers for encoder in encoders),
            heads=sum(encoder.shape.heads for encoder in encoders),
        )
        self.members = tuple(members)
        self.encoders = tuple(encoders)
        self.registered = nn.ModuleList(encoders)

    def forward(self, item_index: Tensor, action_index: Tensor, value: Tensor, gap_index: Tensor) -> Tensor:
        """User embeddings (B, D)."""
        return self.last_and_mean(item_index, action_index, value, gap_index)[0]

    def last_and_mean(
        self, item_index: Tensor, action_index: Tensor, value: Tensor, gap_index: Tensor
    ) -> tuple[Tensor, Tensor]:
        """User embeddings and means, (B, D) each."""
        parts = [encoder.last_and_mean(item_index, action_index, value, gap_index) for encoder in self.encoders]
        last, mean = zip(*parts, strict=True)
        return self._concatenated(last, [member.user_factor for member in self.members]), torch.cat(mean, dim=-1)

    def sequence(self, item_index: Tensor, action_index: Tensor, value: Tensor, gap_index: Tensor) -> Tensor:
        """The user embedding after each event, (B, L, D)."""
        parts = [encoder.sequence(item_index, action_index, value, gap_index) for encoder in self.encoders]
        return self._concatenated(parts, [member.user_factor for member in self.members])

    def item_embeddings(self) -> Tensor:
        """Row r belongs to item index r + 1, (V, D)."""
        parts = [encoder.item_embeddings() for encoder in self.encoders]
        return self._concatenated(parts, [member.item_factor for member in self.members])

    @staticmethod
    def _concatenated(parts: Sequence[Tensor], factors: Sequence[float]) -> Tensor:
        return torch.cat([part * factor for part, factor in zip(parts, factors, strict=True)], dim=-1)


def write_members(directory: Path, members: Sequence[Member]) -> None:
    """Write the list of members; their weights are in subdirectories 0, 1, …, in the same order."""
    text = json.dumps([asdict(member) for member in members], indent=2)
    (directory / FUSION).write_text(text + "\n", encoding="utf-8")


def read_fused(directory: Path, load: Callable[[Path], Encoder]) -> FusedEncoder:
    """The fused encoder of `directory`, its members read by `load`."""
    members = [Member(**entry) for entry in json.loads((directory / FUSION).read_bytes())]
    return FusedEncoder([load(directory / str(place)) for place in range(len(members))], members)
