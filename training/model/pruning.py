"""Structured pruning of an encoder: removes the feed-forward units of least magnitude.

Removing whole units makes the file smaller and dense products faster; setting single weights to zero does neither. A
unit's contribution is bounded by the lengths of its input rows and its output column, so units are ranked by the
product of these lengths (structured magnitude pruning, Li et al. 2017).
"""

from dataclasses import replace

import torch
from torch import Tensor

from training.model.encoder import Encoder

PRUNED_SHARE = 0.5
"""Share of the feed-forward units that are removed."""


def pruned(encoder: Encoder, share: float = PRUNED_SHARE) -> Encoder:
    """A copy of `encoder` without the weakest `share` of each block's feed-forward units; at least one unit stays."""
    state = encoder.state_dict()
    hidden = state["blocks.0.forward_out.weight"].shape[1]
    kept = max(1, hidden - round(share * hidden))
    for block in range(len(encoder.blocks)):
        into, out = f"blocks.{block}.forward_in.weight", f"blocks.{block}.forward_out.weight"
        units = _strongest(state[into], state[out], kept)
        state[into] = torch.cat([part[units] for part in state[into].chunk(2)])
        state[out] = state[out][:, units]
    narrow = Encoder(replace(encoder.shape, hidden=kept))
    narrow.load_state_dict(state)
    return narrow.eval()


def _strongest(into: Tensor, out: Tensor, count: int) -> Tensor:
    """Indexes of the strongest units, ascending; `into` (2 H, D) holds gates and contents, `out` (D, H)."""
    gate, content = into.chunk(2)
    lengths = torch.linalg.vector_norm
    strength = lengths(gate, dim=1) * lengths(content, dim=1) * lengths(out, dim=0)
    strongest: Tensor = strength.topk(count).indices
    return strongest.sort().values
