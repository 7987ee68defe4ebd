"""Forecasts of what follows, on logs whose right answer is known."""

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from server.core.features import Features
from server.core.preprocessing import Action, Preprocessing
from server.core.segments import normalised
from tests.unit.training.evaluation.test_probe import PREPROCESSING, log_of, planted_vectors
from training.data.sequences import EventLog
from training.model.forecast import Bags, Forecast, agreement_of_halves, halves_of, learn_forecast

ITEMS = 40
BAGS = Bags(np.arange(ITEMS + 1, dtype=np.int32), np.vstack([np.zeros(ITEMS), np.eye(ITEMS)]).astype(np.float32))


def counted(features: Features) -> NDArray[np.float32]:
    """Bags of items, of length 1, (B, ITEMS)."""
    bags = np.zeros((len(features.lengths), ITEMS + 1))
    np.add.at(bags, (np.repeat(np.arange(len(bags)), features.lengths), features.item_index), 1)
    return normalised(bags[:, 1:]).astype(np.float32)


def going_on(*ways: tuple[int, int], users: int = 60, held_back: int = 8) -> EventLog:
    """Each user goes on from one item to another, or stays, at some time; then an event that training may not see."""
    turns = 4 + np.arange(users) % 5
    rows = [[ways[u % len(ways)][0]] * turn + [ways[u % len(ways)][1]] * (12 - turn) for u, turn in enumerate(turns)]
    log = log_of(*[[*row, held_back] for row in rows])
    return replace(log, train_ends=log.train_ends - 1)


TURNING = (1, 2), (3, 2), (5, 4)


def learned(log: EventLog, preprocessing: Preprocessing = PREPROCESSING) -> Forecast:
    found = learn_forecast(log, preprocessing, counted, BAGS, 20, seed=0)
    assert found
    return found


def test_a_forecast_predicts_the_following_events() -> None:
    found = learned(going_on(*TURNING))
    assert found.weights.shape == (ITEMS, 16)
    one, other, third = normalised(counted(log_of([1] * 4, [3] * 4, [5] * 4).features) @ found.weights - found.center)
    assert one @ other > 0.8
    assert max(one @ third, other @ third) < 0.0


def test_a_forecast_is_not_learned_from_held_back_events() -> None:
    one, other = (learned(going_on(*TURNING, held_back=item)) for item in (8, 7))
    np.testing.assert_array_equal(one.weights, other.weights)


def test_what_is_returned_does_not_follow() -> None:
    """Half of the users get item 2, the others 4, and all of them 6; what differs is sent back or not."""
    returns = PREPROCESSING.model_copy(update={"actions": (*PREPROCESSING.actions[:1], Action(name="no", weight=-1.0))})
    log = log_of(*[[1, 1, 1, 1, 2, 6, 2, 6] if user % 2 else [3, 3, 3, 3, 4, 6, 4, 6] for user in range(60)])
    action = np.where(np.isin(log.features.item_index, (2, 4)), 2, 1).astype(np.int32)
    sent_back = replace(log, features=replace(log.features, action_index=action))
    known = counted(log_of([1] * 4, [3] * 4).features)
    apart = [float(np.linalg.norm(np.diff(known @ learned(one, returns).weights, axis=0))) for one in (log, sent_back)]
    assert apart[0] > 2 * apart[1]


@pytest.mark.parametrize("users", [1, 9])
def test_too_few_users_give_no_forecast(users: int) -> None:
    assert learn_forecast(going_on(*TURNING, users=users), PREPROCESSING, counted, BAGS, 20, seed=0) is None


def test_equal_users_have_a_constant_forecast() -> None:
    assert not learned(log_of(*[[1] * 12] * 40)).weights.any()


def test_users_with_one_event_give_no_forecast() -> None:
    log = going_on(*TURNING)
    log = replace(log, train_ends=log.features.offsets[:-1] + 1)
    assert learn_forecast(log, PREPROCESSING, counted, BAGS, 20, seed=0) is None


def random_log(users: int, held_back: int) -> EventLog:
    log = log_of(*[[*row, held_back] for row in np.random.default_rng(0).integers(1, 9, (users, 12)).tolist()])
    return replace(log, train_ends=log.train_ends - 1)


def test_halves_are_of_what_training_sees_and_make_it_up_together() -> None:
    one, other = (halves_of(random_log(50, item), PREPROCESSING, lengths, seed=0) for item in (9, 10))
    assert one
    assert other
    for half, again in zip(one, other, strict=True):
        np.testing.assert_array_equal(half, again)
    whole = lengths(random_log(50, 9).features)[:, :9]
    np.testing.assert_array_equal((one[0] + one[1])[:, :9], whole)
    assert halves_of(random_log(32, 9), PREPROCESSING, lengths, seed=0) is None  # no more users than segments


def lengths(features: Features) -> NDArray[np.float32]:
    """How often each item is there, (B, ITEMS + 1)."""
    bags = np.zeros((len(features.lengths), ITEMS + 1), np.float32)
    np.add.at(bags, (np.repeat(np.arange(len(bags)), features.lengths), features.item_index), 1)
    return bags


def test_segments_are_steady_that_come_out_the_same_of_both_halves() -> None:
    clear = planted_vectors(groups=32, users=320, noise=0.02).astype(np.float32)
    again = planted_vectors(groups=32, users=320, noise=0.02, seed=1).astype(np.float32)
    strange = np.random.default_rng(2).permutation(again)
    assert agreement_of_halves((clear, clear), seed=0) >= agreement_of_halves((clear, again), seed=0)
    assert agreement_of_halves((clear, again), seed=0) > 0.3 > 0.1 > agreement_of_halves((clear, strange), seed=0)
