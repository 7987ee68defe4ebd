"""Dropout by bytes: the right share goes, the mean stays, and a seed fixes which."""

import pytest
import torch

from training.model.dropout import Dropout


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_the_dropped_share_is_the_rate_and_the_mean_stays(rate: float) -> None:
    torch.manual_seed(0)
    x = torch.ones(101, 997, requires_grad=True)
    y = Dropout(rate)(x)
    assert float((y == 0).float().mean()) == pytest.approx(rate, abs=0.01)
    assert float(y.detach().mean()) == pytest.approx(1.0, abs=0.02)
    y.sum().backward()
    torch.testing.assert_close(x.grad, y.detach())
    columns = (y == 0).float().mean(0)
    assert float(columns.std()) == pytest.approx((rate * (1 - rate) / 101) ** 0.5, rel=0.15)


def test_a_seed_fixes_it_and_evaluation_drops_nothing() -> None:
    dropout, x = Dropout(0.3), torch.randn(7, 13)
    drawn = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        drawn.append(dropout(x))
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    assert dropout.eval()(x) is x
    assert Dropout(0.0)(x) is x
