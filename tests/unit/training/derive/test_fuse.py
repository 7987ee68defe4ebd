"""Weights of an ensemble."""

import numpy as np
import pytest

from training.derive.fuse import MEMBERS_MAX, candidate_weights, choose_weights


@pytest.mark.parametrize("count", range(2, MEMBERS_MAX + 1))
def test_weights_are_positive_add_up_and_are_all_different(count: int) -> None:
    weights = candidate_weights(count)
    assert weights[0] == (1 / count,) * count
    assert len(set(weights)) == len(weights)
    for each in weights:
        assert len(each) == count
        assert min(each) > 0
        assert sum(each) == pytest.approx(1)


def test_other_weights_must_be_better_beyond_chance() -> None:
    rng = np.random.default_rng(0)
    equal = rng.random(500)
    noise = rng.normal(0, 0.5, 500)
    chance, better = equal + noise - noise.mean() + 0.001, equal + rng.normal(0.1, 0.1, 500)
    assert choose_weights([equal, chance]) == 0
    assert choose_weights([equal, chance, better]) == 2
