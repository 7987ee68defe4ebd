"""Where an encoder ranks held-out targets, user by user: what paired comparisons of runs are made of."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from server.core.features import Features, batches
from training.encoder import Encoder
from training.metrics import target_ranks
from training.sequences import HeldOut, Log, chosen, history_features, seen_pairs

_USERS_AT_ONCE = 128


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


def ranks_of(encoder: Encoder, log: Log, held: HeldOut, exclude_seen: bool) -> NDArray[np.int64]:
    """Ranks of the targets among all items, (T,), from 0; items of the history are left out with `exclude_seen`."""
    users = users_of(encoder, log, held)
    ranks = np.zeros(len(users), np.int64)
    with torch.inference_mode():
        items = encoder.item_embeddings().T.contiguous()
        for start in range(0, len(users), _USERS_AT_ONCE):
            places = np.arange(start, min(start + _USERS_AT_ONCE, len(users)))
            part = chosen(held, places)
            scores = users[start : start + len(places)] @ items
            if exclude_seen:
                row, item = (torch.from_numpy(array) for array in seen_pairs(log, part))
                scores[row, item] = -torch.inf
            ranks[places] = target_ranks(scores, torch.from_numpy(part.targets.astype(np.int64) - 1)).numpy()
    return ranks
