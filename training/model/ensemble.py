"""Several encoders as one: user and item embeddings side by side, so that one inner product adds up all scores.

A member's scores are divided by how much they vary over a user's items, times a weight, and their sum is brought back
to the size that members' scores have, which are log-probabilities up to a constant. Subtracting each user's mean as
well, as z-scores do, would change no ranking. The factor of a member is parted between its user embeddings, which get
the same mean length times the root of the weight (segments are made of them), and its item embeddings.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from training.model.encoder import Encoder, EncoderShape

FUSION = "fusion.json"
"""Says that a run's weights are those of several runs."""


@dataclass(frozen=True, slots=True)
class Member:
    """A member: the run it came from, its `weight` (all add up to 1), and what its embeddings are multiplied by."""

    run: str
    weight: float
    user_factor: float
    item_factor: float


class FusedEncoder(Encoder):
    """Members side by side; `embedding_dim` is the sum of theirs."""

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
        return self._beside(last, [member.user_factor for member in self.members]), torch.cat(mean, dim=-1)

    def sequence(self, item_index: Tensor, action_index: Tensor, value: Tensor, gap_index: Tensor) -> Tensor:
        """The embedding that the user had after each event, (B, L, D)."""
        parts = [encoder.sequence(item_index, action_index, value, gap_index) for encoder in self.encoders]
        return self._beside(parts, [member.user_factor for member in self.members])

    def item_embeddings(self) -> Tensor:
        """Row r belongs to item index r + 1, (V, D)."""
        parts = [encoder.item_embeddings() for encoder in self.encoders]
        return self._beside(parts, [member.item_factor for member in self.members])

    @staticmethod
    def _beside(parts: Sequence[Tensor], factors: Sequence[float]) -> Tensor:
        return torch.cat([part * factor for part, factor in zip(parts, factors, strict=True)], dim=-1)


def write_members(directory: Path, members: Sequence[Member]) -> None:
    """Note the members; their weights are in subdirectories named 0, 1, …, in the same order."""
    text = json.dumps([asdict(member) for member in members], indent=2)
    (directory / FUSION).write_text(text + "\n", encoding="utf-8")


def read_fused(directory: Path, load: Callable[[Path], Encoder]) -> FusedEncoder:
    """The fused encoder of `directory`, its members read by `load`."""
    members = [Member(**entry) for entry in json.loads((directory / FUSION).read_bytes())]
    return FusedEncoder([load(directory / str(place)) for place in range(len(members))], members)
