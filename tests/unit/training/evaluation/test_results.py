"""The sentence that compares the product with rules, the tables, and figures by user."""

from pathlib import Path

import polars as pl
import pytest

from server.core.figures import LEAVE_ONE_OUT, NEXT_VISIT, figures_of
from training.evaluation.results import EvaluateResult, Result, figures_by_user
from training.metrics import CUTOFFS


def evaluated(ndcg: dict[str, float], protocol: str = NEXT_VISIT) -> EvaluateResult:
    results = []
    for method, value in ndcg.items():
        figures = {f"{name}@{k}": value for name in ("hr", "ndcg", "recall", "mrr") for k in CUTOFFS}
        figures |= {"coverage@10": 0.5, "novelty@10": 8.0}
        results.append(Result(protocol, method, 9, figures, (0.0, 1.0), (0.0, 1.0), ()))
    return EvaluateResult(Path(), tuple(results))


@pytest.mark.parametrize(
    ("ndcg", "expected"),
    [
        (
            {"encoder": 0.06, "popularity": 0.08, "own, fading": 0.17},
            "A simple rule, `own, fading`, predicts the next visit better than the encoder of this run: NDCG@10 "
            "0.1700 against 0.0600.",
        ),
        (
            {"hybrid": 0.22, "encoder": 0.06, "popularity": 0.08, "own, fading": 0.2},
            "The hybrid predicts the next visit with NDCG@10 0.2200, 10.0% more than the best rule, `own, fading` "
            "(0.2000).",
        ),
        (
            {"hybrid": 0.1, "personal": 0.3, "popularity": 0.2},
            "A simple rule, `popularity`, predicts the next visit better than the hybrid of this run: NDCG@10 0.2000 "
            "against 0.1000.",
        ),
    ],
)
def test_the_sentence_names_the_best_rule_and_both_figures(ndcg: dict[str, float], expected: str) -> None:
    assert evaluated(ndcg).verdict(()) == expected


def test_the_hybrid_of_the_segment_stage_counts_if_its_figures_are_of_visits() -> None:
    found = evaluated({"encoder": 0.06, "popularity": 0.08})
    of_visits = found.verdict(figures_of(NEXT_VISIT, "hybrid", {"ndcg@10": 0.1}))
    assert of_visits == (
        "The hybrid predicts the next visit with NDCG@10 0.1000, 25.0% more than the best rule, `popularity` (0.0800)."
    )
    of_events = found.verdict(figures_of(LEAVE_ONE_OUT, "hybrid", {"ndcg@10": 0.1}))
    assert of_events
    assert "than the encoder of this run" in of_events


def test_other_protocols_have_no_sentence() -> None:
    assert evaluated({"encoder": 0.1, "popularity": 0.2}, LEAVE_ONE_OUT).verdict(()) is None


def test_the_table_of_visits_has_recall() -> None:
    for protocol, present, absent in ((NEXT_VISIT, "recall", "MRR"), (LEAVE_ONE_OUT, "MRR", "recall")):
        headings = [str(column.header) for column in evaluated({"encoder": 0.1}, protocol).tables()[0].columns]
        assert present in headings
        assert absent not in headings


def test_ranks_of_several_targets_make_one_figure_a_user() -> None:
    ranks = pl.DataFrame({"user_id": ["ann", "ann", "ben", "cat"], "rank": [0, 1, 12, 0]})
    found = figures_by_user(ranks)
    assert found["user_id"].to_list() == ["ann", "ben", "cat"]
    assert found["hr"].to_list() == [1.0, 0.0, 1.0]
    assert found["ndcg"].to_list() == pytest.approx([1.0, 0.0, 1.0])
