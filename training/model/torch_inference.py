"""User embeddings by torch, for any histories and for the histories before held-out targets."""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from server.core.features import Features, batches
from training.data.sequences import EventLog, HeldOut, seen_pairs
from training.model.encoder import Encoder, EncoderShape

Scorer = Callable[[NDArray[np.intp]], Tensor]
"""Positions of users in the targets (b,) → scores of all items (b, V), which the caller may overwrite."""


def embed_histories(encoder: nn.Module, features: Features, shape: EncoderShape) -> Tensor:
    """The user embedding of each history, (B, D); zeros for an empty history.

    D is the width of the encoder's output: `shape.embedding_dim`, or more for a `UserEncoder`.
    """
    embeddings = torch.zeros(len(features.lengths), shape.embedding_dim)
    with torch.inference_mode():
        for places, inputs in batches(features, shape.max_length):
            output = encoder(**{name: torch.from_numpy(array) for name, array in inputs.items()})
            if embeddings.shape[1] != output.shape[1]:
                embeddings = torch.zeros(len(embeddings), output.shape[1])
            embeddings[places] = output
    return embeddings


def embed_users(encoder: Encoder, log: EventLog, held: HeldOut) -> Tensor:
    """User embeddings before the targets, (T, D)."""
    return embed_histories(encoder, log.histories(held.rows, held.ends, encoder.shape.max_length), encoder.shape)


def leave_out_seen(scores: Tensor, log: EventLog, held: HeldOut) -> None:
    """Lower the `scores` (T, V) of the items in each user's history before the target to minus infinity, in place."""
    row, seen = (torch.from_numpy(array) for array in seen_pairs(log, held))
    scores[row, seen] = -torch.inf
