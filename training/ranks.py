"""User embeddings by an encoder in torch: of any histories, and before held-out targets."""

import torch
from torch import Tensor

from server.core.features import Features, batches
from training.encoder import Encoder
from training.sequences import HeldOut, Log, history_features


def embedded(encoder: Encoder, features: Features) -> Tensor:
    """The user embedding of each history, (B, D); zeros for an empty one."""
    length = encoder.shape.max_length
    users = torch.zeros(len(features.lengths), encoder.shape.embedding_dim)
    with torch.inference_mode():
        for places, inputs in batches(features, length):
            users[places] = encoder(**{name: torch.from_numpy(array) for name, array in inputs.items()})
    return users


def users_of(encoder: Encoder, log: Log, held: HeldOut) -> Tensor:
    """User embeddings before the targets, (T, D)."""
    return embedded(encoder, history_features(log, held, encoder.shape.max_length))
