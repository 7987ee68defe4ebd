"""Gates that compare a release with the active one, on figures whose right answer is obvious."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from server.core.repository.read import read_release
from server.core.repository.traffic import TRAFFIC, Traffic
from tests.support.releases import tiny_release
from training.config import PublishSettings
from training.errors import PublishError
from training.evaluation.compare import paired_difference
from training.publish.active_gate import active_release, quality_gate, segment_gates
from training.publish.gates import Gate, decide, vocabulary_gate

GOOD = Gate("good", "1", "1")
HARD = Gate("hard", "0", "1", "It is wrong.")
SOFT = Gate("soft", "0", "1", "It is worse.", can_be_forced=True)


@pytest.mark.parametrize(
    ("found", "active", "problem"),
    [
        (np.tile([0.4, 0.6], 500), np.tile([0.5, 0.7], 500), "lower by 16.7%, a significant difference"),
        (np.tile([0.49, 0.69], 500), np.tile([0.5, 0.7], 500), ""),
        (np.tile([0.9, 0.9], 500), np.tile([0.5, 0.7], 500), ""),
        (np.array([0.0, 0.4, 0.8, 0.1]), np.array([0.4, 0.1, 0.7, 0.6]), ""),
        (np.zeros(100), np.zeros(100), ""),
        (np.zeros(100), np.ones(100), "lower by 100.0%"),
    ],
    ids=["worse", "a little worse", "better", "worse by chance", "both nothing", "all lost"],
)
def test_quality_may_not_be_lower_unless_by_chance(
    found: NDArray[np.float64], active: NDArray[np.float64], problem: str
) -> None:
    gate = quality_gate(paired_difference(found, active), len(found), 7, max_loss=0.05)
    assert problem in gate.problem
    assert bool(gate.problem) == bool(problem)
    assert gate.can_be_forced
    assert gate.figures is not None
    assert gate.figures["active_ndcg@10"] == pytest.approx(active.mean())
    assert gate.name == "quality of the encoder", "not of what is served, which stands beside rules"
    assert gate.measured.startswith(
        f"NDCG@10 of the encoder alone {found.mean():.4f}, release 7 {active.mean():.4f} (p "
    )
    assert not problem or gate.problem.startswith("NDCG@10 of the encoder alone is ")


def test_users_who_move_and_whose_segment_is_no_more_are_counted(tmp_path: Path) -> None:
    new = read_release(tiny_release(tmp_path))
    before = np.array([1, 1, 2, 2, 9, 9, 9, 9, 0, 1])
    after = np.array([1, 1, 2, 3, 1, 1, 1, 1, 1, 0])
    moved, retired = segment_gates(before, after, new, 7, PublishSettings())
    assert (moved.figures, retired.figures) == ({"moved_share": 5 / 8}, {"retired_share": 0.5})
    assert not moved.problem
    assert not retired.problem
    moved, retired = segment_gates(before, after, new, 7, PublishSettings(max_moved_share=0.6, max_retired_share=0.4))
    assert moved.problem.startswith(
        "62.5% of 8 users are in another segment than in release 7, and [publish] max_moved"
    )
    assert retired.problem.startswith("50.0% of 8 users were in segments that no longer exist")


def test_the_catalogue_counts_by_popularity(tmp_path: Path) -> None:
    small = read_release(tiny_release(tmp_path / "small", items=10))
    large = read_release(tiny_release(tmp_path / "large", items=50))
    assert vocabulary_gate(large, small, 1.0).figures == {"known_popularity": 1.0}
    share = (1 / np.arange(1, 11)).sum() / (1 / np.arange(1, 51)).sum()
    gate = vocabulary_gate(small, large, 0.5)
    assert gate.figures is not None
    assert gate.figures["known_popularity"] == pytest.approx(share, abs=1e-6)
    assert not gate.problem
    assert "requires 90.0%; check that it was trained on the right log." in vocabulary_gate(small, large, 0.9).problem


def test_only_judgement_can_be_forced() -> None:
    assert decide([GOOD], None) == []
    assert decide([GOOD, SOFT], "we know") == ["It is worse."]
    with pytest.raises(PublishError, match=r'^It is worse\. Publish it nevertheless with --force "why"\.$'):
        decide([GOOD, SOFT], None)
    with pytest.raises(PublishError, match=r"^It is wrong\.$"):
        decide([HARD, SOFT], "we know")
    with pytest.raises(PublishError, match=r"^It is wrong\. It is worse\.$"):
        decide([HARD, SOFT], None)


def test_the_active_release_is_the_one_that_answers(tmp_path: Path) -> None:
    def active() -> int:
        found = active_release(tmp_path)
        return found.number if found else 0

    assert active() == 0
    for number in (1, 2, 3):
        tiny_release(tmp_path, number)
    assert active() == 3
    (tmp_path / TRAFFIC).write_text(Traffic(stable=2).model_dump_json())
    assert active() == 2
    (tmp_path / TRAFFIC).write_text(Traffic(stable=9).model_dump_json())
    assert active() == 3
    (tmp_path / TRAFFIC).write_text("{")
    assert active() == 3
