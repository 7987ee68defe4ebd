"""The gate beside rules: worse beyond chance stands by, anything else may answer."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from numpy.typing import NDArray

from training.publish.rule_gate import beside_rules, compare_with_rules, rule_gates, stand_by_reason
from training.ranking.served import SERVED_NDCG
from training.runs import Run

USERS = 400


def measured(tmp_path: Path, own: NDArray[np.float64], **rules: NDArray[np.float64]) -> Run:
    """A run whose stages measured these NDCG of each user; the segment stage measured every other user."""
    run = Run.create(tmp_path, run_id="run")
    users = pl.Series("user_id", [f"u{number:03}" for number in range(len(own))])
    for stage in ("evaluate", "segment"):
        (run.path / stage).mkdir()
    pl.DataFrame({"user_id": users, "encoder": own, **rules}).write_parquet(run.path / "evaluate" / SERVED_NDCG)
    strategies = pl.DataFrame({"user_id": users, "hybrid": own.astype(np.float32)})
    strategies.gather_every(2).reverse().write_parquet(run.path / "segment" / SERVED_NDCG)
    return run


def values(mean: float, seed: int) -> NDArray[np.float64]:
    return np.random.default_rng(seed).normal(mean, 0.1, USERS)


def test_a_rule_that_is_better_beyond_chance_makes_the_release_stand_by(tmp_path: Path) -> None:
    own = values(0.3, 0)
    found = compare_with_rules(measured(tmp_path, own, popularity=values(0.2, 1), **{"item-kNN": values(0.4, 2)}))
    assert [(one.rule, one.users, one.is_worse, one.is_ahead) for one in found] == [
        ("popularity", USERS // 2, False, True),
        ("item-kNN", USERS // 2, True, False),
    ]
    assert found[0].ndcg.value == pytest.approx(own[::2].mean(), abs=1e-6)
    # The gate of the release that answers measures another NDCG@10, under the name `ndcg@10`.
    assert {name for gate in rule_gates(found) for name in gate.figures or ()} == {"served_ndcg@10", "rule_ndcg@10"}
    assert [(gate.name, bool(gate.problem), gate.stands_by) for gate in rule_gates(found)] == [
        ("beside `popularity`", False, True),
        ("beside `item-kNN`", True, True),
    ]
    assert stand_by_reason(found).startswith("A rule of one line, `item-kNN`, predicts better than the release")
    assert beside_rules(found) == stand_by_reason(found)


def test_a_difference_that_may_be_chance_is_said_and_may_answer(tmp_path: Path) -> None:
    found = compare_with_rules(measured(tmp_path, values(0.3, 0), popularity=values(0.3, 1)))
    assert [one.rule for one in found] == ["popularity"]
    assert stand_by_reason(found) == ""
    assert "is not shown to predict better than a rule of one line, `popularity`" in beside_rules(found)


def test_a_release_that_is_ahead_says_so(tmp_path: Path) -> None:
    found = compare_with_rules(measured(tmp_path, values(0.3, 0), popularity=values(0.1, 1)))
    assert beside_rules(found).startswith("As served, the release predicts better than the best rule, `popularity`")


def test_without_test_users_nothing_is_compared(tmp_path: Path) -> None:
    found = compare_with_rules(Run.create(tmp_path, run_id="run"))
    assert (found, stand_by_reason(found), beside_rules(found)) == ([], "", "")
    [gate] = rule_gates(found)
    assert gate.measured.startswith("not measured")
