"""From the prepared log to windows: the split, the plan of an epoch, and features equal to those of the server."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from server.core.features import GAP_START, features_of
from server.core.hash_index import HashIndex
from server.core.history import Event, history_of
from server.core.preprocessing import Action, Preprocessing, ValueNormaliser, Visits
from training.data.sequences import (
    EventLog,
    HeldOut,
    held_out,
    in_training,
    one_a_user,
    positive_actions,
    read_first_events,
    read_log,
    seen_pairs,
    users_of,
)
from training.fit.batching import EpochPlan, StepWindows, Validation, Windows

PREPROCESSING = Preprocessing(
    max_length=4,
    actions=(Action(name="buy", weight=1.0), Action(name="return", weight=-1.0)),
    value=ValueNormaliser(method="log", center=0.5, scale=2.0),
    has_clock=True,
    exclude_seen=False,
)
HISTORIES = {"ann": "abcabdef", "ben": "aab", "cat": "abcde", "dan": "ababab", "eve": "f"}


def write(directory: Path, histories: dict[str, str], returns: frozenset[tuple[str, int]] = frozenset()) -> Path:
    """Events a day apart; the item ids are letters, in alphabetical order of index."""
    rows = [(user, item, place) for user, items in histories.items() for place, item in enumerate(items)]
    users, items, places = map(list, zip(*rows, strict=True))
    pl.DataFrame(
        {
            "user_id": users,
            "item_id": items,
            "action": ["return" if pair in returns else "buy" for pair in zip(users, places, strict=True)],
            "value": [None if place == 1 else float(place) for place in places],
            "timestamp": [86_400_000 * place for place in places],
        },
        {"user_id": pl.String, "item_id": pl.String, "action": pl.String, "value": pl.Float64, "timestamp": pl.Int64},
    ).write_parquet(directory / "events.parquet")
    pl.DataFrame({"item_id": sorted(set("".join(items)))}).write_parquet(directory / "items.parquet")
    return directory


def letters(log: EventLog, mask: np.ndarray) -> list[str]:
    """The chosen items of each user, as text."""
    text = np.array([*"-abcdef"])[log.features.item_index]
    bounds = log.features.offsets
    return ["".join(text[start:end][mask[start:end]]) for start, end in pairwise(bounds)]


def test_features_of_the_log_are_those_of_the_server(tmp_path: Path) -> None:
    log = read_log(
        write(tmp_path, HISTORIES, frozenset({("ann", 4)})), PREPROCESSING.model_copy(update={"max_length": 99})
    )
    events = pl.read_parquet(tmp_path / "events.parquet").with_columns(pl.col("value").fill_null(float("nan")))
    histories = [
        history_of([Event(*row) for row in part.drop("user_id").iter_rows()])
        for part in events.partition_by("user_id", maintain_order=True)
    ]
    items, actions = HashIndex.of(list("abcdef")), HashIndex.of(["buy", "return"])
    online = features_of(histories, items, actions, PREPROCESSING.model_copy(update={"max_length": 99}))
    for name in ("item_index", "action_index", "value", "gap_index", "offsets"):
        np.testing.assert_array_equal(getattr(log.features, name), getattr(online, name), name)
    assert log.users.to_list() == list(HISTORIES)


@pytest.mark.parametrize("ordered", [False, True])
def test_tied_events_of_the_log_are_in_the_order_of_the_server(tmp_path: Path, ordered: bool) -> None:
    rng = np.random.default_rng(0)
    count = 400
    events = pl.DataFrame(
        {
            "user_id": np.sort(rng.integers(0, 9, count)).astype(str),
            "item_id": rng.choice([*"abcdef"], count),
            "action": rng.choice(["buy", "return"], count),
            "value": pl.Series(rng.choice([0.0, 1.0, 2.0], count)).set(pl.Series(rng.random(count) < 0.3), None),
            "timestamp": 86_400_000 * rng.integers(0, 12, count),
        }
    ).sort("user_id", "timestamp", maintain_order=True)
    preprocessing = PREPROCESSING.model_copy(update={"max_length": count, "visits": Visits(ordered=ordered)})
    events.write_parquet(tmp_path / "events.parquet")
    pl.DataFrame({"item_id": [*"abcdef"]}).write_parquet(tmp_path / "items.parquet")
    log = read_log(tmp_path, preprocessing)
    histories = [
        history_of(
            Event(*row) for row in part.sample(fraction=1.0, shuffle=not ordered, seed=1).drop("user_id").iter_rows()
        )
        for part in events.with_columns(pl.col("value").fill_null(float("nan"))).partition_by(
            "user_id", maintain_order=True
        )
    ]
    online = features_of(histories, HashIndex.of([*"abcdef"]), HashIndex.of(["buy", "return"]), preprocessing)
    for name in ("item_index", "action_index", "value", "gap_index", "offsets"):
        np.testing.assert_array_equal(getattr(log.features, name), getattr(online, name), name)


def test_training_ends_before_the_targets_of_both_readings(tmp_path: Path) -> None:
    """Ann's last new items are e and f. Ben, Eve have too few events; Dan has enough, but only two items."""
    log = read_log(write(tmp_path, HISTORIES), PREPROCESSING)
    assert letters(log, in_training(log)) == ["abcabd", "aab", "abc", "abab", "f"]
    first = read_first_events(tmp_path, PREPROCESSING)
    assert letters(first, in_training(first)) == ["abcd", "ab", "abc", "ab", "f"]


def test_a_late_repeat_moves_the_end_of_training_back(tmp_path: Path) -> None:
    """As published, d and e are Ann's targets, though she comes back to a and b thereafter."""
    log = read_log(write(tmp_path, {"ann": "abcdeabab"}), PREPROCESSING)
    assert letters(log, in_training(log)) == ["abc"]


def test_targets_are_the_last_events(tmp_path: Path) -> None:
    log = read_log(write(tmp_path, HISTORIES), PREPROCESSING)
    for from_end, expected in ((1, "feb"), (2, "eda")):
        held = held_out(log, from_end)
        assert "".join("-abcdef"[target] for target in held.targets) == expected
    first = read_first_events(tmp_path, PREPROCESSING)
    assert "".join("-abcdef"[target] for target in held_out(first, 1).targets) == "fe"


def test_negative_actions_are_no_targets(tmp_path: Path) -> None:
    returned = frozenset({("cat", 4), ("cat", 1)})
    log = read_log(write(tmp_path, HISTORIES, returned), PREPROCESSING)
    positive = positive_actions(PREPROCESSING)
    assert [log.users[int(row)] for row in held_out(log, 1, positive).rows] == ["ann", "dan"]
    end = int(log.features.offsets[3])
    batch = Windows(log, PREPROCESSING)[StepWindows(np.array([end]), np.array([5]))]
    assert batch["target"][0].tolist()[-4:] == [0, 3, 4, 0]
    assert batch["item_index"][0].tolist()[-4:] == [1, 2, 3, 4]


def test_histories_before_the_targets(tmp_path: Path) -> None:
    log = read_log(write(tmp_path, HISTORIES), PREPROCESSING)
    held = held_out(log, 1)
    features = log.histories(held.rows, held.ends, max_length=4)
    assert features.lengths.tolist() == [4, 4, 4]
    assert features.item_index.tolist() == [1, 2, 4, 5, 1, 2, 3, 4, 2, 1, 2, 1]
    places, rows = seen_pairs(log, held)
    assert {(0, 0), (0, 4), (1, 3), (2, 1)} <= set(zip(places.tolist(), rows.tolist(), strict=True))
    assert (0, 5) not in set(zip(places.tolist(), rows.tolist(), strict=True))


def test_a_log_of_some_events_has_its_own_gaps_users_and_ends(tmp_path: Path) -> None:
    log = read_log(write(tmp_path, {"ann": "abc", "ben": "ab", "cat": "cdef"}), PREPROCESSING)
    kept = np.array([True, False, True, True, True, False, True, False, True])
    part = log.subset(kept, np.array([0, 2]), PREPROCESSING)
    assert part.users.to_list() == ["ann", "cat"]
    assert part.features.item_index.tolist() == [1, 3, 4, 6]
    assert part.event_users.tolist() == [0, 0, 1, 1]
    assert part.train_ends.tolist() == [2, 4]
    assert part.features.value.tolist() == log.features.value[[0, 2, 6, 8]].tolist()
    two_days = 17 + GAP_START + 1  # bucket floor(log2(1 + 172800))
    assert part.features.gap_index.tolist() == [GAP_START, two_days] * 2


def test_events_before_the_end_of_each_user(tmp_path: Path) -> None:
    log = read_log(write(tmp_path, {"ann": "abc", "ben": "ab", "cat": "cdef"}), PREPROCESSING)
    assert letters(log, log.before(np.array([1, 3, 9]))) == ["a", "", "cdef"]


@pytest.mark.parametrize("batch_size", [1, 3, None])
def test_an_epoch_asks_for_every_event_once(tmp_path: Path, batch_size: int | None) -> None:
    log = read_log(write(tmp_path, HISTORIES | {"zoe": "abcdef" * 5}), PREPROCESSING)
    plan = EpochPlan(log, 4, batch_size, seed=0)
    seen_plans = []
    for epoch in range(3):
        plan.set_epoch(epoch)
        windows = list(plan)
        assert len(windows) == len(plan)
        targets = [
            place
            for window in windows
            for end, length in zip(window.ends, window.lengths, strict=True)
            for place in range(end - length + 1, end)
        ]
        inside = np.flatnonzero(in_training(log))
        assert sorted(targets) == sorted(set(inside) - set(log.features.offsets[:-1]))
        assert all(window.lengths.max() <= 5 for window in windows)
        seen_plans.append([window.ends.tolist() for window in windows])
    assert seen_plans[0] != seen_plans[1] != seen_plans[2]
    plan.set_epoch(0)
    assert [window.ends.tolist() for window in plan] == seen_plans[0]


def test_inputs_and_targets_are_one_step_apart(tmp_path: Path) -> None:
    log = read_log(write(tmp_path, HISTORIES | {"zoe": "abcdef" * 5}), PREPROCESSING)
    data = Windows(log, PREPROCESSING)
    for window in EpochPlan(log, 4, 4, seed=0):
        batch = data[window]
        inputs, targets = batch["item_index"].numpy(), batch["target"].numpy()
        assert inputs.shape == targets.shape
        assert inputs.shape[1] <= 4
        assert ((inputs > 0) == (targets > 0)).all()
        both = (inputs[:, 1:] > 0) & (targets[:, :-1] > 0)
        assert (inputs[:, 1:][both] == targets[:, :-1][both]).all()


@pytest.mark.parametrize("exclude_seen", [True, False])
def test_validation_batches(tmp_path: Path, exclude_seen: bool) -> None:
    preprocessing = PREPROCESSING.model_copy(update={"exclude_seen": exclude_seen})
    log = read_log(write(tmp_path, HISTORIES), preprocessing)
    [batch] = list(map(Validation(log, held_out(log, 2), preprocessing).__getitem__, [0]))
    assert sorted(batch["target"].tolist()) == [0, 3, 4]
    assert len(batch["seen_row"]) == (6 + 3 + 4 if exclude_seen else 0)


def test_one_target_of_each_user_is_drawn() -> None:
    held = HeldOut(np.array([1, 1, 1, 4, 7, 7]), np.array([3, 3, 3, 9, 12, 12]), np.arange(1, 7, dtype=np.int32))
    drawn = {tuple(one_a_user(held, seed).targets.tolist()) for seed in range(40)}
    assert {targets[0] for targets in drawn} == {1, 2, 3}
    assert {targets[1] for targets in drawn} == {4}
    assert {targets[2] for targets in drawn} == {5, 6}
    one = one_a_user(held, 0)
    assert (one.rows.tolist(), one.ends.tolist()) == ([1, 4, 7], [3, 9, 12])


def test_users_are_drawn_with_all_their_targets() -> None:
    held = HeldOut(np.array([1, 1, 1, 4, 7, 7]), np.array([3, 3, 3, 9, 12, 12]), np.arange(1, 7, dtype=np.int32))
    for seed in range(9):
        rows = users_of(held, 2, seed).rows.tolist()
        assert len(set(rows)) == 2
        assert all(rows.count(row) == held.rows.tolist().count(row) for row in set(rows))
    assert users_of(held, 3, 0) is held
