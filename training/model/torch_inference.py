"""User embeddings by an encoder in torch: of any histories, and before held-out targets."""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from server.core.features import Features, batches
from training.data.sequences import EventLog, HeldOut, seen_pairs
from training.model.encoder import Encoder, EncoderShape

Scorer = Callable[[NDArray[np.intp]], Tensor]
"""Places of users among the targets → their scores of all items, (b, V), free to be overwritten."""


def embedded(encoder: nn.Module, features: Features, shape: EncoderShape) -> Tensor:
    """The user embedding of each history, (B, D), by an encoder of that shape; zeros for an empty history.

    An encoder may give more than `shape.embedding_dim` numbers, as `UserEncoder` does; then D is so many.
    """
    users = torch.zeros(len(features.lengths), shape.embedding_dim)
    with torch.inference_mode():
        for places, inputs in batches(features, shape.max_length):
            found = encoder(**{name: torch.from_numpy(array) for name, array in inputs.items()})
            if users.shape[1] != found.shape[1]:
                users = torch.zeros(len(users), found.shape[1])
            users[places] = found
    return users


def users_of(encoder: Encoder, log: EventLog, held: HeldOut) -> Tensor:
    """User embeddings before the targets, (T, D)."""
    return embedded(encoder, log.histories(held.rows, held.ends, encoder.shape.max_length), encoder.shape)


def leave_out_seen(scores: Tensor, log: EventLog, held: HeldOut) -> None:
    """Lower the `scores` (T, V) of the items in each user's history before the target to minus infinity, in place."""
    row, seen = (torch.from_numpy(array) for array in seen_pairs(log, held))
    scores[row, seen] = -torch.inf
