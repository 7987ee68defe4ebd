"""Which feed-forward units go."""

import torch

from training.model.encoder import Encoder, EncoderShape
from training.model.pruning import pruned

SHAPE = EncoderShape(item_count=20, action_count=2, max_length=8, embedding_dim=8, layers=2, heads=1, hidden=10)


def test_units_without_effect_are_removed_first() -> None:
    torch.manual_seed(0)
    encoder = Encoder(SHAPE).eval()
    idle = [[0, 3, 4, 9], [1, 2, 6, 7]]
    state = encoder.state_dict()
    for block, units in enumerate(idle):
        state[f"blocks.{block}.forward_out.weight"][:, units] = 0
    narrow = pruned(encoder, 0.4)
    assert narrow.shape.hidden == 6
    assert narrow.blocks[0].state_dict()["forward_in.weight"].shape == (12, 8)
    inputs = (torch.ones(3, 5, dtype=torch.int32), torch.ones(3, 5, dtype=torch.int32), torch.randn(3, 5))
    gaps = torch.ones(3, 5, dtype=torch.int32)
    torch.testing.assert_close(narrow(*inputs, gaps), encoder(*inputs, gaps))
    assert not torch.equal(pruned(encoder, 0.8)(*inputs, gaps), encoder(*inputs, gaps))


def test_one_unit_stays() -> None:
    assert pruned(Encoder(SHAPE), 1.0).shape.hidden == 1
