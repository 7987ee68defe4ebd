"""The trend of items: counted from earlier events only, and chosen only if it clearly helps."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from server.core.features import Features
from server.core.preprocessing import Action, Preprocessing
from server.core.release import TREND
from server.core.repository.read import read_release
from tests.support.logs import START_MS
from tests.support.releases import tiny_release
from training.data.sequences import EventLog, HeldOut, held_out
from training.data.split import Split
from training.model.torch_inference import Scorer
from training.publish.add_items import catalogue
from training.ranking.trend import PRIOR, Demand, Trend, choose_trend, target_times

DAY_MS = 86_400_000
BUY, RETURN = Action(name="buy", weight=1.0), Action(name="return", weight=-1.0)
ITEMS, USERS, LENGTH = 30, 200, 8


def log_of(items: NDArray[np.int64], days: NDArray[np.float64], actions: NDArray[np.int64] | None = None) -> EventLog:
    """Users' events by item index and day, (U, L) each; training ends two events before the end."""
    users, length = items.shape
    offsets = np.arange(0, users * length + 1, length)
    ones = np.ones(items.size, np.int32)
    action = ones if actions is None else actions.ravel().astype(np.int32)
    zeros = np.zeros(items.size, np.float32)
    features = Features(items.ravel().astype(np.int32), action, zeros, ones, offsets, np.zeros(users, np.int32))
    times = START_MS + (days.ravel() * DAY_MS).astype(np.int64)
    return EventLog(pl.Series([f"u{row}" for row in range(users)]), features, times, offsets[1:] - 2)


def preprocessing(has_clock: bool = True) -> Preprocessing:
    return Preprocessing(max_length=8, actions=(BUY, RETURN), has_clock=has_clock, exclude_seen=False)


def trending_log(seed: int = 0) -> EventLog:
    """Users come once a day from a random first day; three of four events are on the item of the week."""
    rng = np.random.default_rng(seed)
    days = rng.integers(0, 60, USERS)[:, None] + np.arange(LENGTH) + rng.random((USERS, LENGTH)) * 0.9
    of_the_day = days.astype(np.int64) // 7 % ITEMS + 1
    return log_of(np.where(rng.random(days.shape) < 0.75, of_the_day, rng.integers(1, ITEMS + 1, days.shape)), days)


def equal_scores(places: NDArray[np.intp]) -> Tensor:
    """The same score for all items."""
    return torch.zeros(len(places), ITEMS)


def chosen(log: EventLog, scorer: Scorer = equal_scores, has_clock: bool = True) -> Trend | None:
    return choose_trend(log, held_out(log, 2), scorer, preprocessing(has_clock), ITEMS, exclude_seen=False)


def test_the_trend_is_the_log_ratio_of_recent_and_overall_probability() -> None:
    """One user: item 1 on day 0, item 2 on day 2 and twice on day 3; a return of item 3 on day 3 does not count."""
    log = log_of(np.array([[1, 2, 2, 2, 3]]), np.array([[0.0, 2.0, 3.0, 3.0, 3.0]]), np.array([[1, 1, 1, 1, 2]]))
    recent_counts = np.array([0.125, 2.5, 0.0])
    ever = np.array([2, 4, 1]) / 7
    recent = (recent_counts + PRIOR * ever) / (recent_counts.sum() + PRIOR)
    trend = Demand(log, 0, preprocessing(), 3).newest_scores(Trend(half_life=1.0, weight=0.5))
    np.testing.assert_allclose(trend, 0.5 * np.log(recent / ever), rtol=1e-5)
    assert trend[1] > 0 > trend[0]


@pytest.mark.parametrize("is_past", [True, False])
def test_the_trend_at_a_time_knows_only_earlier_days(is_past: bool) -> None:
    """A permutation of the items of later events changes nothing; one of earlier events does."""
    log = trending_log()
    time_ms = int(np.median(log.timestamp))
    start = int(log.timestamp.min())
    past = (log.timestamp - start) // DAY_MS < (time_ms - start) // DAY_MS
    items = log.features.item_index.copy()
    swapped = np.flatnonzero(past if is_past else ~past)
    items[swapped] = items[np.random.default_rng(1).permutation(swapped)]
    other = replace(log, features=replace(log.features, item_index=items))
    original, permuted = (
        Demand(each, 0, preprocessing(), ITEMS).scores_by_time(Trend(1.0, 1.0))(np.array([time_ms]))
        for each in (log, other)
    )
    assert torch.equal(original, permuted) is not is_past


def noise(seed: int) -> EventLog:
    rng = np.random.default_rng(seed)
    days = rng.random((USERS, LENGTH)).cumsum(1) * 20
    return log_of(rng.integers(1, ITEMS + 1, (USERS, LENGTH)), days)


def test_a_planted_trend_is_chosen_and_noise_is_not() -> None:
    trend = chosen(trending_log())
    assert trend is not None
    assert trend.half_life <= 7
    assert chosen(noise(1)) is None


def test_noise_hardly_ever_gets_a_trend() -> None:
    assert sum(chosen(noise(seed)) is not None for seed in range(40)) <= 2


def test_no_trend_is_chosen_without_a_clock_or_targets() -> None:
    assert chosen(trending_log(), has_clock=False) is None
    log = trending_log()
    nobody = HeldOut(np.empty(0, np.intp), np.empty(0, np.int64), np.empty(0, np.int32))
    assert choose_trend(log, nobody, equal_scores, preprocessing(), ITEMS, exclude_seen=False) is None


def test_a_perfect_scorer_gets_no_trend() -> None:
    log = trending_log()
    targets = torch.from_numpy(held_out(log, 2).targets.astype(np.int64) - 1)

    def perfect(places: NDArray[np.intp]) -> Tensor:
        return torch.nn.functional.one_hot(targets[torch.from_numpy(places)], ITEMS).float() * 100

    assert chosen(log, perfect) is None


def test_targets_are_predicted_at_their_time_or_at_the_start_of_the_period() -> None:
    log = trending_log()
    held = held_out(log, 1)
    np.testing.assert_array_equal(target_times(log, held, 1), log.timestamp[held.ends])
    split = Split(validation_from=START_MS + 30 * DAY_MS, test_from=START_MS + 40 * DAY_MS)
    timed = replace(log, split=split)
    assert set(target_times(timed, held, 1)) == {START_MS + 40 * DAY_MS}
    assert set(target_times(timed, held, 2)) == {START_MS + 30 * DAY_MS}


def test_long_logs_of_many_items_are_counted_in_longer_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    log = trending_log()
    fine = Demand(log, 0, preprocessing(), ITEMS).scores_by_time(Trend(30.0, 1.0))
    monkeypatch.setattr("training.ranking.trend._CELLS_MAX", 300)
    coarse = Demand(log, 0, preprocessing(), ITEMS).scores_by_time(Trend(30.0, 1.0))
    times = np.array([START_MS, int(log.timestamp.max()) + 30 * DAY_MS])
    torch.testing.assert_close(coarse(times)[0], torch.zeros(ITEMS))
    assert math.isclose(float(fine(times)[1].max()), float(coarse(times)[1].max()), abs_tol=0.3)


def test_added_items_have_no_trend(tmp_path: Path) -> None:
    old = read_release(tiny_release(tmp_path))
    old = replace(old, items=old.items.with_columns(pl.Series(TREND, np.full(len(old.items), -1.0, np.float32))))
    table = pl.DataFrame({"item_id": ["new"], "title": ["New"], "category": [["group 1"]]})
    items = catalogue(old, table)
    assert items[TREND].to_list() == [-1.0] * len(old.items) + [0.0]
    assert TREND not in catalogue(replace(old, items=old.items.drop(TREND)), table).columns
