"""The figures of a visit and the rules of one line, by hand."""

from dataclasses import replace

import numpy as np
import polars as pl
import pytest

from server.core.features import Features
from server.core.preprocessing import Action, Preprocessing
from training.cli.summary import verdict_lines
from training.data.sequences import EventLog, held_out, last_visits, one_a_user
from training.data.split import Split
from training.evaluation.results import ENCODER, NEXT_VISIT, EvaluateResult, Result
from training.evaluation.visits import LISTED, Visits, measure_lists, rules

DAY_MS = 86_400_000
ITEMS = 30
PREPROCESSING = Preprocessing(
    max_length=8, actions=(Action(name="buy", weight=1.0),), has_clock=True, exclude_seen=False
)

ANN = ((0, (1, 2)), (10, (1, 3)), (20, (1, 4)), (30, (1, 2, 9)))
BOB = ((0, (5,)), (12, (5, 6)), (25, (6, 7)), (31, (5, 8)))


def log_of(*users: tuple[tuple[int, tuple[int, ...]], ...]) -> EventLog:
    """Visits (day, item rows) of each user."""
    events = [(row, item, day) for row, visits in enumerate(users) for day, items in visits for item in items]
    row, item, day = (np.array(column) for column in zip(*events, strict=True))
    ones = np.ones(len(row), np.int32)
    offsets = np.searchsorted(row, np.arange(len(users) + 1))
    zeros = np.zeros(len(row), np.float32)
    features = Features((item + 1).astype(np.int32), ones, zeros, ones, offsets, np.zeros(len(users), np.int32))
    names = pl.Series([f"u{user}" for user in range(len(users))])
    log = EventLog(names, features, day * np.int64(DAY_MS), features.ends, Split(by_visit=True))
    return replace(log, train_ends=last_visits(log).train_ends())


def lists_of(*lists: tuple[int, ...]) -> np.ndarray:
    return np.array([(*one, *[-1] * (LISTED - len(one))) for one in lists])


def test_last_visits_are_held_out_whole_and_the_ones_before_validate() -> None:
    log = log_of(ANN, BOB)
    test, validation = held_out(log, 1), held_out(log, 2)
    assert list(zip(test.rows.tolist(), (test.targets - 1).tolist(), strict=True)) == [
        (0, 1),
        (0, 2),
        (0, 9),
        (1, 5),
        (1, 8),
    ]
    assert (validation.targets - 1).tolist() == [1, 4, 6, 7]
    assert log.train_ends.tolist() == [4, 12]
    chosen = one_a_user(test, 0)
    assert chosen.rows.tolist() == [0, 1]
    assert all(target in test.targets for target in chosen.targets)


def test_figures_are_of_the_set_of_items() -> None:
    visits = Visits.of(log_of(ANN, BOB), 1, PREPROCESSING)
    result = measure_lists("x", visits, lists_of((1, 20, 9), (21, 22)), np.ones(ITEMS, np.int64))
    assert result.users == 2
    assert result.figures["hr@10"] == 0.5
    assert result.figures["recall@10"] == pytest.approx((2 / 3 + 0) / 2)
    ideal = 1 + 1 / np.log2(3) + 1 / 2
    assert result.figures["ndcg@10"] == pytest.approx((1 + 1 / 2) / ideal / 2)
    slices = {one.name: one for one in result.slices}
    assert (slices["repeats"].users, slices["items new to the user"].users) == (2, 2)
    assert slices["items new to the user"].hr == 0.5


def test_rules_list_what_their_names_say() -> None:
    log = log_of(ANN, BOB)
    lists = dict(rules(log, Visits.of(log, 1, PREPROCESSING), PREPROCESSING, ITEMS))
    assert lists["own, most frequent"][0, :4].tolist() == [1, 4, 3, 2]
    assert set(lists["own, most frequent"][1, :2].tolist()) == {6, 5}
    assert lists["popularity"][0, 0] == lists["popularity"][1, 0]
    [fading] = [name for name in lists if name.startswith("own, fading")]
    assert lists[fading][0, 0] == 1
    assert "item-kNN" in lists
    new_only = dict(
        rules(
            log,
            Visits.of(log, 1, PREPROCESSING),
            PREPROCESSING.model_copy(update={"exclude_seen": True}),
            ITEMS,
        )
    )
    assert not any(name.startswith("own") for name in new_only)
    assert not {1, 2, 3, 4} & set(new_only["popularity"][0, :10].tolist())


def evaluated(**ndcg: float) -> EvaluateResult:
    results = [Result(NEXT_VISIT, name, 1, {"ndcg@10": value}, (0, 0), (0, 0), ()) for name, value in ndcg.items()]
    return EvaluateResult(None, tuple(results))  # type: ignore[arg-type]


def test_the_first_sentence_says_when_a_rule_wins() -> None:
    figures = evaluated(**{ENCODER: 0.1, "own": 0.2, "popularity": 0.15})
    assert verdict_lines(figures, {})[0].startswith("A rule of one line, `own`, foretells the next visit better")
    ahead = verdict_lines(figures, {"hybrid_ndcg@10": 0.25, "hybrid_recall@10": 0.2})[0]
    assert ahead.startswith(
        "The next visit is foretold with NDCG@10 0.2500; the best rule of one line, `own`, has 0.2000"
    )
    of_events = verdict_lines(figures, {"hybrid_ndcg@10": 0.25})
    assert "better than this release" in of_events[0]
    assert verdict_lines(evaluated(), {}) == []
