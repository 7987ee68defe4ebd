"""A narrower encoder: the feed-forward units of least magnitude are taken out, whole.

Single weights set to zero would make neither the file smaller nor a dense product faster; units do both. What a unit
adds to the output is bounded by the lengths of the rows that feed it and the column that reads it, so their product
ranks it (structured magnitude pruning, Li et al. 2017).
"""

from dataclasses import replace

import torch
from torch import Tensor

from training.model.encoder import Encoder

PRUNED_SHARE = 0.5
"""Share of the feed-forward units that are taken out."""


def pruned(encoder: Encoder, share: float = PRUNED_SHARE) -> Encoder:
    """A copy of `encoder` without the least `share` of each block's feed-forward units, at least one of which stays."""
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
    """Places of the strongest units, ascending; `into` (2 H, D) holds gates and contents, `out` (D, H)."""
    gate, content = into.chunk(2)
    lengths = torch.linalg.vector_norm
    strength = lengths(gate, dim=1) * lengths(content, dim=1) * lengths(out, dim=0)
    strongest: Tensor = strength.topk(count).indices
    return strongest.sort().values
