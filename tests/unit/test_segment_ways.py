"""Forecasts of what follows, and how much a way of making segments is worth, on logs whose right answer is known."""

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from server.core.features import Features
from server.core.preprocessing import Action
from server.core.segments import normalised
from tests.unit.test_probe import PREPROCESSING, log_of
from training.segment_ways import KS, Trial, learn_forecast
from training.sequences import Log

ITEMS = 40
BAGS = np.vstack([np.zeros(ITEMS), np.eye(ITEMS)]).astype(np.float32)


def counted(features: Features) -> NDArray[np.float32]:
    """Bags of items, of length 1, (B, ITEMS)."""
    bags = np.zeros((len(features.lengths), ITEMS + 1))
    np.add.at(bags, (np.repeat(np.arange(len(bags)), features.lengths), features.item_index), 1)
    return normalised(bags[:, 1:]).astype(np.float32)


def turning(users: int = 60, held_back: int = 8) -> Log:
    """Each user goes on from item 1 to 2, or from 3 to 4, at some time; then an event that training may not see."""
    turns = 4 + np.arange(users) % 5
    rows = [[[1, 3][u % 2]] * turn + [[2, 4][u % 2]] * (12 - turn) + [held_back] for u, turn in enumerate(turns)]
    log = log_of(*rows)
    return replace(log, train_ends=log.train_ends - 1)


def test_a_forecast_tells_what_follows_and_not_what_was() -> None:
    found = learn_forecast(turning(), PREPROCESSING, counted, BAGS, 20, seed=0)
    assert found
    known = counted(log_of([1, 1, 1, 1], [3, 3, 3, 3]).features)
    first, second = normalised(known @ found.weights - found.center)
    assert first[1] > 0.4 > 0.1 > first[3]
    assert second[3] > 0.4 > 0.1 > second[1]
    assert (np.abs(found.weights[:, 7]) < 1e-6).all()


def test_a_forecast_is_not_learned_from_held_back_events() -> None:
    one, other = (learn_forecast(turning(held_back=b), PREPROCESSING, counted, BAGS, 20, seed=0) for b in (8, 7))
    assert one
    assert other
    np.testing.assert_array_equal(one.weights, other.weights)


def test_what_is_returned_does_not_follow() -> None:
    returns = PREPROCESSING.model_copy(update={"actions": (*PREPROCESSING.actions[:1], Action(name="no", weight=-1.0))})
    log = turning()
    action = np.where(np.isin(log.features.item_index, (2, 3)), 2, 1).astype(np.int32)
    log = replace(log, features=replace(log.features, action_index=action))
    found = learn_forecast(log, returns, counted, BAGS, 20, seed=0)
    assert found
    assert (np.abs(found.weights[:, [1, 2]]) < 1e-6).all()
    assert np.abs(found.weights[:, 3]).max() > 0.1


@pytest.mark.parametrize("users", [0, 1, 9])
def test_too_few_users_tell_no_forecast(users: int) -> None:
    log = turning(max(users, 1))
    if not users:
        log = replace(log, train_ends=log.features.offsets[:-1] + 1)
    assert learn_forecast(log, PREPROCESSING, counted, BAGS, 20, seed=0) is None


def tastes(users: int = 120, kinds: int = 16, seed: int = 0) -> Log:
    """Users of some tastes, an item each, of which three events in four are; and what training may not see."""
    rng = np.random.default_rng(seed)
    own = np.arange(users)[:, None] % kinds + 1
    events = np.where(rng.random((users, 16)) < 0.75, own, rng.integers(1, ITEMS + 1, (users, 16)))
    log = log_of(*np.hstack([events, own, own]).tolist())
    return replace(log, train_ends=log.train_ends - 2)


REPEATS = PREPROCESSING.model_copy(update={"exclude_seen": False})


def trial(log: Log) -> Trial:
    return Trial.of(log, REPEATS, counted, ITEMS, 20, seed=0)


def as_is(known: NDArray[np.float32]) -> NDArray[np.float32]:
    return known


def blurred(known: NDArray[np.float32]) -> NDArray[np.float32]:
    """Other noise for other vectors."""
    rng = np.random.default_rng(np.frombuffer(known.tobytes(), np.uint32)[:1000])
    return normalised(known + rng.normal(size=known.shape)).astype(np.float32)


def test_a_way_is_worth_the_more_the_better_its_segments_come_out_again() -> None:
    steady = replace(trial(tastes(kinds=16)), past=None)
    assert steady.worth(as_is) > steady.worth(blurred) + 0.5


def test_a_way_is_worth_the_more_the_better_its_segments_foretell() -> None:
    foretelling = replace(trial(tastes(kinds=ITEMS)), halves=None)
    assert foretelling.worth(as_is) > foretelling.worth(blurred) + 0.1


def test_both_count_alike() -> None:
    both = trial(tastes())
    apart = [replace(both, past=None).worth(as_is), replace(both, halves=None).worth(as_is)]
    assert both.worth(as_is) == pytest.approx(sum(apart))


def test_halves_are_of_what_training_sees_and_the_past_ends_before_its_target() -> None:
    log = tastes()
    shown = counted(replace_held_back(log, 1).features)
    assert not np.allclose(shown, counted(log.features))
    one, other = trial(log), trial(replace_held_back(log, 1))
    assert one.halves
    assert other.halves
    for half, again in zip(one.halves, other.halves, strict=True):
        np.testing.assert_array_equal(half, again)
    assert one.past
    assert other.past
    np.testing.assert_array_equal(one.past.points, other.past.points)


def replace_held_back(log: Log, item: int) -> Log:
    """The same with `item` in the place of each user's last two."""
    items = log.features.item_index.copy()
    for back in (1, 2):
        items[log.features.offsets[1:] - back] = item
    return replace(log, features=replace(log.features, item_index=items))


def test_nothing_is_known_of_a_way_with_fewer_users_than_segments() -> None:
    found = trial(tastes(max(KS)))
    assert found.halves is None
    assert found.past is None
    assert found.worth(lambda known: known) == 0.0
