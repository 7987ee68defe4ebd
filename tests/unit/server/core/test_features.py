import math
from random import Random

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.core.features import (
    BATCH_EVENTS,
    CHUNK_SIZE,
    FEW_VALUES,
    GAP_COUNT,
    GAP_START,
    Features,
    _log1p,
    batches,
    encode,
    features_of,
    ignored_count,
    look_up,
    pad,
    padded_length,
)
from server.core.hash_index import HashIndex
from server.core.histories import Histories
from server.core.history import Event, History, history_of
from server.core.preprocessing import Action, Preprocessing, ValueCleaning, ValueNormaliser, Visits

ITEMS = HashIndex.of(["a", "b", "c"])
ACTIONS = HashIndex.of(["view", "buy"])


def preprocessing(**changes: object) -> Preprocessing:
    plain = Preprocessing(
        max_length=4,
        actions=(Action(name="view", weight=1.0), Action(name="buy", weight=2.0)),
        value=ValueNormaliser(method="z_score", center=10.0, scale=2.0),
        has_clock=True,
        exclude_seen=False,
    )
    return plain.model_copy(update=changes)


def history(*events: Event) -> History:
    return history_of(events)


def test_events_become_indexes_values_and_gaps() -> None:
    events = history(Event("a", "view", 12.0, 0), Event("b", "buy", float("nan"), 1000), Event("c", "view", 8.0, 8000))
    features = features_of([events], ITEMS, ACTIONS, preprocessing())
    assert features.item_index.tolist() == [1, 2, 3]
    assert features.action_index.tolist() == [1, 2, 1]
    assert features.value.tolist() == [1.0, 0.0, -1.0]
    # Gaps of 1 s and 7 s: 1 + 1 = 2^1 and 7 + 1 = 2^3, after the bucket of gaps under a second.
    assert features.gap_index.tolist() == [GAP_START, GAP_START + 2, GAP_START + 4]
    assert features.offsets.tolist() == [0, 3]


def test_log_values_keep_their_sign() -> None:
    normaliser = ValueNormaliser(method="log", center=0.0, scale=1.0)
    events = history(Event("a", "view", -np.expm1(2.0), 0), Event("a", "view", np.expm1(3.0), 1))
    features = features_of([events], ITEMS, ACTIONS, preprocessing(value=normaliser))
    np.testing.assert_allclose(features.value, [-2.0, 3.0], rtol=1e-6)


def test_events_with_unknown_items_or_actions_are_counted_and_left_out() -> None:
    events = [
        Event("a", "view", 1.0, 0),
        Event("?", "view", 1.0, 1),
        Event("b", "?", 1.0, 2),
        Event("c", "buy", 1.0, 3),
    ]
    features = features_of([history(*events), history()], ITEMS, ACTIONS, preprocessing())
    assert features.item_index.tolist() == [1, 3]
    assert features.ignored.tolist() == [2, 0]
    assert features.lengths.tolist() == [2, 0]


def test_events_that_the_cleaning_drops_are_counted_over_the_whole_history() -> None:
    rules = preprocessing(value_cleaning=ValueCleaning(missing="drop", bounds=(0.0, 9.0), drop_outside=True))
    odd = [Event("a", "view", float("nan"), 0), Event("a", "view", 50.0, 1), Event("?", "view", 1.0, 2)]
    events = history(*odd, *(Event("b", "view", 1.0, 10 + n) for n in range(rules.max_length)))
    assert ignored_count(events, ITEMS, ACTIONS, rules) == 3
    assert ignored_count(events, ITEMS, ACTIONS, preprocessing()) == 1
    assert ignored_count(history(), ITEMS, ACTIONS, rules) == 0


def test_only_the_newest_known_events_are_read() -> None:
    events = [
        Event("a", "view", 1.0, 0),
        *(Event("b", "view", 1.0, t) for t in range(1, 5)),
        Event("?", "view", 1.0, 9),
    ]
    features = features_of([history(*events)], ITEMS, ACTIONS, preprocessing())
    assert features.item_index.tolist() == [2, 2, 2, 2]


def test_without_a_clock_all_gaps_are_equal() -> None:
    events = history(Event("a", "view", 1.0, 0), Event("b", "view", 1.0, 10**9))
    features = features_of([events], ITEMS, ACTIONS, preprocessing(has_clock=False))
    assert features.gap_index.tolist() == [GAP_START, GAP_START]


def test_windows_are_padded_on_the_left_and_begin_with_an_unknown_gap() -> None:
    events = history(*(Event("a", "view", 12.0, t * 1000) for t in range(4)))
    features = features_of([events], ITEMS, ACTIONS, preprocessing())
    window = pad(features, np.array([3]), np.array([2]), 4)
    assert window["item_index"].tolist() == [[0, 0, 1, 1]]
    assert window["value"].tolist() == [[0.0, 0.0, 1.0, 1.0]]
    assert window["gap_index"].tolist() == [[0, 0, GAP_START, GAP_START + 2]]
    assert {array.dtype.name for array in window.values()} == {"int32", "float32"}


def test_an_empty_history_is_in_no_batch() -> None:
    features = features_of([history()], ITEMS, ACTIONS, preprocessing())
    assert batches(features, 4) == []
    assert pad(features, np.array([0]), np.array([0]), 4)["item_index"].tolist() == [[0, 0, 0, 0]]


def test_batches_of_long_histories_are_smaller() -> None:
    lengths = np.array([*[2] * 70, *[900] * 90])
    ones = np.ones(lengths.sum(), np.int32)
    offsets, ignored = np.concatenate([[0], np.cumsum(lengths)]), np.zeros(len(lengths), np.int32)
    features = Features(ones, ones, ones.astype(np.float32), ones, offsets, ignored)
    found = batches(features, 1_000, size=64)
    shapes = [inputs["item_index"].shape for _, inputs in found]
    assert all(rows <= 64 and rows * length <= BATCH_EVENTS for rows, length in shapes)
    assert shapes[0] == (64, 8)
    assert len(shapes) <= 5
    np.testing.assert_array_equal(np.sort(np.concatenate([rows for rows, _ in found])), np.arange(len(lengths)))
    alone = features_of([history(Event("a", "view", 1.0, 0))], ITEMS, ACTIONS, preprocessing())
    [(rows, _)] = batches(alone, 2 * BATCH_EVENTS)
    assert rows.tolist() == [0]


def test_padded_lengths_are_few_and_never_short() -> None:
    found = [padded_length(longest, 200) for longest in range(1, 201)]
    assert all(length >= min(longest, 200) for longest, length in enumerate(found, 1))
    assert sorted(set(found)) == [8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 200]


event = st.builds(
    Event,
    st.sampled_from(["a", "b", "c", "?"]),
    st.sampled_from(["view", "buy", "?"]),
    st.floats(-1e6, 1e6) | st.just(float("nan")),
    st.integers(0, 2**41),
)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.lists(event, max_size=12), min_size=1, max_size=4),
    st.sampled_from([1, FEW_VALUES]),
    st.sampled_from(["none", "z_score", "log"]),
    st.floats(-10, 10),
    st.floats(0.1, 10) | st.just(1e-300),
    st.booleans(),
)
def test_features_have_the_bits_of_the_pipeline_of_training(
    some: list[list[Event]], repeats: int, method: str, center: float, scale: float, has_clock: bool
) -> None:
    normaliser = ValueNormaliser(method=method, center=center, scale=scale)  # type: ignore[arg-type]
    chosen = preprocessing(value=normaliser, has_clock=has_clock)
    histories = Histories.of([history_of(events) for events in some] * repeats)
    indexed = look_up(histories, ITEMS, ACTIONS, chosen)
    columns = ("row", "item_index", "action_index", "value", "timestamp")
    trained = encode(pl.LazyFrame({name: getattr(indexed, name) for name in columns}), chosen).collect()
    served = features_of(histories, ITEMS, ACTIONS, chosen)
    for name in ("item_index", "action_index", "value", "gap_index"):
        assert getattr(served, name).dtype == trained[name].to_numpy().dtype
        assert getattr(served, name).tobytes() == trained[name].to_numpy().tobytes(), name


def test_tied_events_have_one_order_by_whatever_name_their_action_comes() -> None:
    others = [f"buy{number}" for number in range(8)]
    actions = HashIndex.with_aliases(["view", "buy"], dict.fromkeys(others, "buy"))
    orders = set()
    for name in ("buy", *others):
        tied = history(Event("a", "view", 1.0, 5), Event("a", name, 2.0, 5))
        orders.add(tuple(features_of([tied], ITEMS, actions, preprocessing()).action_index.tolist()))
    assert len(orders) == 1


@settings(max_examples=30, deadline=None)
@given(st.lists(st.lists(event, max_size=12), min_size=1, max_size=2 * CHUNK_SIZE))
def test_a_history_is_encoded_the_same_alone_and_among_others(many: list[list[Event]]) -> None:
    histories = [history_of(events) for events in many]
    together = features_of(histories, ITEMS, ACTIONS, preprocessing())
    seen = set()
    for rows, inputs in batches(together, 4):
        assert len(rows) <= CHUNK_SIZE
        assert inputs["gap_index"].max() < GAP_COUNT
        for place, row in enumerate(rows.tolist()):
            seen.add(row)
            [(_, alone)] = batches(features_of([histories[row]], ITEMS, ACTIONS, preprocessing()), 4)
            for name, array in alone.items():
                np.testing.assert_array_equal(array[0], inputs[name][place])
    assert seen == {row for row, length in enumerate(together.lengths.tolist()) if length}


tied_event = st.builds(
    Event,
    st.sampled_from(["a", "b", "c", "?"]),
    st.sampled_from(["view", "buy", "?"]),
    st.sampled_from([float("nan"), 0.0, 10.0, 12.0]),
    st.integers(0, 3),
)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.lists(tied_event, max_size=16), min_size=1, max_size=12), st.integers(1, 8), st.randoms())
def test_features_do_not_depend_on_the_order_of_tied_events(
    many: list[list[Event]], max_length: int, random: Random
) -> None:
    chosen = preprocessing(max_length=max_length)
    expected = features_of([history_of(events) for events in many], ITEMS, ACTIONS, chosen)
    for events in many:
        random.shuffle(events)
    found = features_of([history_of(events) for events in many], ITEMS, ACTIONS, chosen)
    for name in ("item_index", "action_index", "value", "gap_index", "offsets", "ignored"):
        assert getattr(found, name).tobytes() == getattr(expected, name).tobytes(), name
    known = [sum(event.item_id != "?" and event.action != "?" for event in events) for events in many]
    assert found.lengths.tolist() == [min(count, max_length) for count in known]


def test_an_ordered_log_keeps_the_order_of_arrival() -> None:
    for items, newest in (("abcab", [3, 1, 2]), ("cbacb", [1, 3, 2])):
        events = history(*(Event(item_id, "view", 1.0, 5) for item_id in items))
        chosen = preprocessing(max_length=3, visits=Visits(ordered=True))
        assert features_of([events], ITEMS, ACTIONS, chosen).item_index.tolist() == newest


@pytest.mark.parametrize("count", [FEW_VALUES - 1, 50_000])
def test_logarithms_have_the_bits_of_the_c_library(count: int) -> None:
    """NumPy's own differ in some; in float32, as the encoder reads them, that hardly shows."""
    values = np.exp(np.random.default_rng(0).uniform(-40, 20, count))
    assert _log1p(values).tolist() == [math.log1p(value) for value in values.tolist()]
