"""What the encoder can be trained for beside naming the next item.

`feature_mse` foretells features: from the user embedding at a cut a small head guesses the embedding of what the user
does after it, which a slowly moving copy of the encoder gives (BYOL, Grill et al. 2020, with the future of a history
in the place of a second view). `contrastive` is CoLES (Babaev et al. 2022): random slices of one history are near, of
two users far. Neither adds to the weights that are exported.

Where a step is cut into parts, by processes or by accumulation, each part draws its own cuts and tells its own slices
apart: these losses are then those of smaller steps.
"""

import copy
import math
from collections.abc import Mapping
from typing import Self
from zlib import crc32

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from server.core.features import GAP_START, pad, padded_length
from server.core.preprocessing import Preprocessing
from training.config import Objectives
from training.data.sequences import EventLog
from training.errors import LogError
from training.fit.batching import TARGETS_A_STEP, Batch, StepWindows, Windows
from training.model.encoder import Encoder

SLICES_A_USER = 2

SLICED_EVENTS_MIN = 4
"""Users with fewer events in training are not sliced."""

_SHORTEST = 8
_USERS_MIN, _USERS_MAX = 16, 128
_SLICED_EVENTS = 2 * TARGETS_A_STEP
"""About so many events are in the slices of a step."""

_TEMPERATURE = 0.1
_DECAY = 0.99
"""How much of the slow copy, and of the statistics of its features, stays in a step."""

_PREFIX = "slice_"


class OtherObjectives(nn.Module):
    """The objectives beside `next_item` that have a weight."""

    def __init__(self, weights: Objectives, encoder: Encoder) -> None:
        super().__init__()
        self.features = FutureFeatures(encoder) if weights.feature_mse else None
        self.contrasts = weights.contrastive > 0

    def forward(self, encoder: Encoder, users: Tensor, inputs: Batch, slices: Batch) -> Mapping[str, Tensor]:
        """Losses by name. `users` (B, L, D) are the encoder's for `inputs`; `slices` are those of `slices_of`."""
        losses = {}
        if self.features is not None:
            losses["feature_mse"] = self.features(users, inputs)
        if self.contrasts:
            owner = slices.pop("owner")
            losses["contrastive"] = contrastive_loss(encoder(**slices), owner)
        return losses

    def follow(self, encoder: Encoder) -> None:
        """Move the slow copy, if there is one, a little towards `encoder`."""
        if self.features is not None:
            self.features.follow(encoder)


def other_objectives(weights: Objectives, encoder: Encoder) -> OtherObjectives | None:
    """None where the next item is the only objective."""
    return OtherObjectives(weights, encoder) if weights.feature_mse or weights.contrastive else None


class FutureFeatures(nn.Module):
    """Mean squared error of guessed features of the future, per component; guessing their mean gets 1.

    Targets are scaled to mean 0 and variance 1 by running statistics, each process its own. So a collapsed encoder
    does not get a small loss: nothing is left to foretell but noise, and the loss is 1.
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
        first = users.shape[1] - lengths + past
        rows = torch.arange(len(first), device=users.device)
        guessed = self.head(users[rows, first - 1]).float()
        with torch.no_grad():
            target = self._scaled(self.slow(**future_of(inputs, first)).float(), usable)
        each = (guessed - target).square().mean(1)
        return torch.where(usable, each, 0.0).sum() / usable.sum().clamp(min=1)

    @torch.no_grad()
    def follow(self, encoder: Encoder) -> None:
        """Move the slow copy a little towards `encoder`."""
        for slow, fast in zip(self.slow.parameters(), encoder.parameters(), strict=True):
            slow.lerp_(fast, 1 - _DECAY)

    def _scaled(self, features: Tensor, usable: Tensor) -> Tensor:
        """`features` (B, D) by statistics that the `usable` ones of them, (B,), move."""
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


def contrastive_loss(users: Tensor, owner: Tensor) -> Tensor:
    """InfoNCE of slices' embeddings (S, D), in nats: each has to find those of its `owner` (S,) among all others.

    Van den Oord et al. 2018, by cosine. CoLES' own loss, a margin, stayed where a new encoder begins, with all users
    on one spot: see DECISIONS.md.
    """
    directions = functional.normalize(users.float(), dim=1)
    self_pairs = torch.eye(len(users), dtype=torch.bool, device=users.device)
    logits = (directions @ directions.T / _TEMPERATURE).masked_fill(self_pairs, -torch.inf)
    near = (owner[:, None] == owner) & ~self_pairs
    return -logits.log_softmax(1)[near].mean()


class SlicedWindows(Windows):
    """Training batches, and beside each of them slices of users' histories.

    For each batch users are drawn anew, and two slices of each, from anywhere in the part of the history that training
    may see. How long they can be is drawn for the whole batch, evenly in the logarithm, up to three quarters of what
    the encoder reads; no slice is longer than three quarters of its history. Draws depend on the seed and on the
    windows of the step, which depend on seed and epoch.
    """

    def __init__(self, log: EventLog, preprocessing: Preprocessing, seed: int) -> None:
        """Raises LogError where there are no two users to tell apart."""
        super().__init__(log, preprocessing)
        self._log = log
        self._longest_read = preprocessing.max_length
        self._seed = seed
        counts = log.train_ends - log.features.offsets[:-1]
        users = np.flatnonzero(counts >= SLICED_EVENTS_MIN)
        if len(users) < 2:
            raise LogError(
                f"The objective contrastive needs two users with {SLICED_EVENTS_MIN} events to learn from; "
                "set train.objectives.contrastive to 0."
            )
        self._starts, self._counts = log.features.offsets[users], counts[users]
        self._longest = max(_SHORTEST, min(self._longest_read, int(self._counts.max())) * 3 // 4)

    def __getitem__(self, window: StepWindows) -> Batch:
        """The batch, and `slice_…`: encoder inputs (S, L) of the slices, and whose they are, (S,)."""
        rng = np.random.default_rng((self._seed, crc32(window.ends.tobytes()), window.part))
        longest = round(math.exp(rng.uniform(math.log(_SHORTEST), math.log(self._longest))))
        wanted = np.clip(_SLICED_EVENTS // (SLICES_A_USER * longest), _USERS_MIN, _USERS_MAX) // window.parts
        count = min(max(int(wanted), 2), len(self._counts))
        users = rng.choice(len(self._counts), count, replace=False).repeat(SLICES_A_USER)
        counts = self._counts[users]
        most = np.minimum(counts * 3 // 4, longest)
        lengths = rng.integers((most + 1) // 2, most, endpoint=True)
        ends = self._starts[users] + lengths + rng.integers(0, counts - lengths, endpoint=True)
        inputs = pad(self._log.features, ends, lengths, padded_length(int(lengths.max()), self._longest_read))
        slices = {**inputs, "owner": users}
        return super().__getitem__(window) | {_PREFIX + name: torch.from_numpy(array) for name, array in slices.items()}


def slices_of(batch: Batch) -> Batch:
    """Take the slices out of a batch: encoder inputs (S, L) and `owner` (S,); nothing where it has none."""
    return {name.removeprefix(_PREFIX): batch.pop(name) for name in list(batch) if name.startswith(_PREFIX)}
