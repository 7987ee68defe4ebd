"""The trust in a segment, from figures that can be computed by hand."""

import numpy as np
import pytest

from training.segments.trust import SegmentTrust, halves_kept, largest_jaccard, trust_of


def test_a_cluster_that_every_fit_finds_is_reproduced_and_one_that_splits_is_not() -> None:
    clusters = np.array([0] * 10 + [1] * 10)
    fit = np.array([3] * 10 + [0] * 5 + [1] * 5)
    outside = np.where(np.arange(20) % 10 == 0, -1, fit)
    assert largest_jaccard(clusters, [fit, outside], 3).tolist()[:2] == pytest.approx([1.0, (5 / 10 + 5 / 9) / 2])
    assert np.isnan(largest_jaccard(clusters, [fit], 3)[2])


def test_halves_agree_by_chance_or_always() -> None:
    first = np.repeat([0, 1], 50)
    assert halves_kept(first, first, 3).tolist()[:2] == [1.0, 1.0]
    assert halves_kept(first, np.tile([0, 1], 50), 2).tolist() == pytest.approx([0.0, 0.0])
    assert np.isnan(halves_kept(first, first, 3)[2])


@pytest.mark.parametrize(
    ("reproduced", "halves", "word"),
    [
        (0.9, 0.6, "steady"),
        (0.9, 0.3, "loose"),
        (0.6, 0.9, "loose"),
        (0.3, 0.9, "noise"),
        (0.9, 0.1, "noise"),
        (0.8, np.nan, "steady"),
        (np.nan, np.nan, None),
    ],
)
def test_the_worse_of_both_figures_gives_the_word(reproduced: float, halves: float, word: str | None) -> None:
    [trust] = trust_of([7], np.array([reproduced]), np.array([halves]))
    assert trust.verdict == word
    assert SegmentTrust.model_validate_json(trust.model_dump_json()) == trust
