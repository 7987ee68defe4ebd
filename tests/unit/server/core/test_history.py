"""Histories: packing, merging and keys."""

import dataclasses
import math
from itertools import permutations
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.core.history import (
    EMPTY,
    Event,
    History,
    content_keys,
    event_count_of,
    history_of,
    merge,
    merge_histories,
    repeated_keys,
    text_hash,
)

ids = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=12)
values = st.floats(width=64)
times = st.integers(-(2**63), 2**63 - 1)
events = st.builds(Event, ids, st.sampled_from(["view", "cart", "购买"]), values, times)
few_events = st.builds(Event, st.sampled_from("abc"), st.just("view"), st.just(1.0), st.integers(0, 5))


def assert_same(left: History, right: History) -> None:
    assert (list(left.item_ids), list(left.actions)) == (list(right.item_ids), list(right.actions))
    assert left.revision == right.revision
    for name in ("values", "timestamps", "item_hashes", "action_hashes", "keys"):
        assert getattr(left, name).tobytes() == getattr(right, name).tobytes()


@settings(deadline=None)
@given(st.lists(events, max_size=20), st.integers(0, 2**64 - 1))
def test_a_row_holds_its_history_bit_for_bit(recorded: list[Event], revision: int) -> None:
    history = history_of(recorded, revision)
    assert_same(History(history.row), history)
    assert event_count_of(history.row) == len(history) == len(recorded)
    assert history.revision == revision
    assert_same(history.with_revision(7), history_of(recorded, 7))


@settings(deadline=None)
@given(st.lists(events, min_size=1, max_size=4), st.data())
def test_a_row_cut_short_is_refused(recorded: list[Event], data: st.DataObject) -> None:
    row = history_of(recorded).row
    with pytest.raises(ValueError, match="history row"):
        History(row[: data.draw(st.integers(0, len(row) - 1))])


def test_a_row_of_another_version_is_refused() -> None:
    row = history_of([Event("a", "view")]).row
    with pytest.raises(ValueError, match="version 9"):
        History(b"\x09" + row[1:])
    with pytest.raises(ValueError, match="shorter than its header"):
        History(row[:5])


def test_nul_in_an_id_is_refused() -> None:
    with pytest.raises(ValueError, match="NUL"):
        history_of([Event("a\0b", "view")])


@settings(deadline=None)
@given(st.lists(few_events, max_size=12), st.lists(few_events, max_size=12), st.integers(1, 8))
def test_merging_keeps_the_newest_in_time_order_each_once(older: list[Event], newer: list[Event], limit: int) -> None:
    before = merge(EMPTY, older, limit, 1).history
    after, stored, duplicates = merge(before, newer, limit, 2)
    distinct = {event.key() for event in newer} - set(before.keys.tolist())
    assert duplicates == len(newer) - len(distinct)
    assert len(after) == min(limit, len(before) + len(distinct))
    assert list(after.timestamps) == sorted(after.timestamps)
    assert len(set(after.keys.tolist())) == len(after)
    union = {event.key(): event.timestamp for event in [*before.events(), *newer]}
    assert list(after.timestamps) == sorted(union.values())[-limit:]
    assert after.revision == (2 if stored else before.revision)


@settings(deadline=None)
@given(st.lists(few_events, max_size=12), st.lists(few_events, max_size=12), st.integers(1, 8))
def test_merging_two_histories_equals_merging_their_events(older: list[Event], newer: list[Event], limit: int) -> None:
    before = merge(EMPTY, older, limit, 1).history
    added = merge(EMPTY, sorted(newer, key=lambda event: event.timestamp), 100, 0).history
    expected = merge(before, added.events(), limit, 2).history
    assert_same(merge_histories(before, added, limit, 2), expected)


def test_equal_times_keep_the_order_of_arrival() -> None:
    first = merge(EMPTY, [Event("b", "view", 1.0, 5), Event("a", "view", 1.0, 5)], 10, 1).history
    both = merge(first, [Event("c", "view", 1.0, 5), Event("z", "view", 1.0, 4)], 10, 2).history
    assert list(both.item_ids) == ["z", "b", "a", "c"]


@settings(deadline=None)
@given(st.lists(few_events, max_size=20), st.integers(1, 8), st.integers(0, 20), st.randoms())
def test_which_events_stay_does_not_depend_on_the_order_of_arrival(
    recorded: list[Event], limit: int, cut: int, random: Random
) -> None:
    at_once = merge(EMPTY, recorded, limit, 1).history
    random.shuffle(recorded)
    first = merge(EMPTY, recorded[:cut], limit, 1).history
    both = merge(first, recorded[cut:], limit, 2).history
    assert sorted(both.keys.tolist()) == sorted(at_once.keys.tolist())
    assert sorted(history_of(recorded).shortened(limit).timestamps) == list(history_of(recorded).timestamps[-limit:])


def test_a_shortened_history_keeps_the_events_that_merging_keeps() -> None:
    stay = set(sorted("abcd", key=text_hash)[-2:])
    for order in permutations("abcd"):
        recorded = [Event("z", "view", 1.0, 4), *(Event(item_id, "view", 1.0, 5) for item_id in order)]
        merged = merge(EMPTY, recorded, 2, 0).history
        assert set(merged.item_ids) == set(history_of(recorded).shortened(2).item_ids) == stay


def test_merging_only_duplicates_changes_neither_history_nor_revision() -> None:
    history = merge(EMPTY, [Event("a", "view", math.nan, 5)], 10, 7).history
    again, stored, duplicates = merge(history, [Event("a", "view", math.nan, 5)], 10, 8)
    assert again is history
    assert (stored, duplicates) == (0, 1)
    assert merge_histories(history, history, 10, 9) is history


@settings(deadline=None)
@given(st.lists(events, min_size=1, max_size=10))
def test_keys_of_columns_are_the_events_keys(recorded: list[Event]) -> None:
    item_hashes = np.array([text_hash(event.item_id) for event in recorded], np.uint64)
    action_hashes = np.array([text_hash(event.action) for event in recorded], np.uint64)
    timestamps = np.array([event.timestamp for event in recorded], np.int64)
    contents = content_keys(item_hashes, action_hashes, timestamps)
    assert contents.tolist() == [event.key() for event in recorded]
    assert repeated_keys(contents, np.zeros(len(recorded), np.uint64)).tolist() == contents.tolist()


def test_the_event_id_alone_decides_the_key() -> None:
    event = Event("a", "view", 1.0, 5)
    same = dataclasses.replace(event, event_id="e1")
    assert same.key() == Event("b", "cart", 2.0, 6, "e1").key()
    assert same.key() != event.key()
    others = [
        Event("b", "view", 1.0, 5),
        Event("a", "cart", 1.0, 5),
        Event("a", "view", 1.0, 6),
    ]
    assert len({event.key(), Event("view", "a", 1.0, 5).key(), *(other.key() for other in others)}) == 5


def test_the_value_has_no_part_in_the_key() -> None:
    assert Event("a", "view", 1.0, 5).key() == Event("a", "view", math.nan, 5).key()
    kept = merge(history_of([Event("a", "view", 1.0, 5)], 1), [Event("a", "view", 9.0, 5)], 10, 2)
    assert (kept.stored_count, kept.duplicate_count, kept.history.values.tolist()) == (0, 1, [1.0])


NAMELESS = Event("a", "view", 1.0, 5)
NAMED = [dataclasses.replace(NAMELESS, event_id=name) for name in ("first", "second")]


@pytest.mark.parametrize(
    ("stored", "sent", "counts"),
    [
        (NAMED[:1], [NAMELESS], (0, 1)),
        ([NAMELESS], NAMED[:1], (0, 1)),
        ([NAMELESS], NAMED, (1, 1)),
        (NAMED, [NAMELESS], (0, 1)),
        ([], [NAMELESS, *NAMED], (2, 1)),
        ([], [*NAMED, NAMELESS], (2, 1)),
    ],
)
def test_an_event_with_an_id_and_the_same_event_of_a_log_are_one(
    stored: list[Event], sent: list[Event], counts: tuple[int, int]
) -> None:
    before = merge(EMPTY, stored, 10, 1).history
    merged = merge(before, sent, 10, 2)
    assert (merged.stored_count, merged.duplicate_count) == counts
    again = merge(merged.history, [*sent, *stored], 10, 3)
    assert again.history is merged.history
    as_log = merge(EMPTY, [NAMELESS], 10, 0).history
    assert merge_histories(merged.history, as_log, 10, 4) is merged.history


def test_of_equal_events_in_a_log_and_in_the_history_the_larger_number_stays() -> None:
    contents = history_of([NAMELESS] * 3).content_keys()
    log = history_of([NAMELESS] * 3)
    columns = (log.timestamps, log.values, log.item_hashes, log.action_hashes)
    log = History.of(["a"] * 3, ["view"] * 3, (*columns, repeated_keys(contents, np.arange(3, dtype=np.uint64))))
    named = merge(EMPTY, NAMED, 10, 1).history
    merged = merge_histories(named, log, 10, 2)
    assert len(merged) == 3
    assert merge_histories(merged, log, 10, 3) is merged


@settings(deadline=None)
@given(st.lists(few_events, max_size=12), st.lists(few_events, max_size=12), st.integers(1, 8))
def test_stored_counts_what_is_kept(older: list[Event], newer: list[Event], limit: int) -> None:
    before = merge(EMPTY, older, limit, 1).history
    merged = merge(before, newer, limit, 2)
    kept = set(merged.history.keys.tolist()) - set(before.keys.tolist())
    assert merged.stored_count == len(kept)
    assert (merged.history is before) == (not kept)


def test_an_event_older_than_all_that_is_kept_changes_nothing() -> None:
    full = history_of([Event("a", "view", 1.0, second) for second in (5, 6)], 7)
    merged = merge(full, [Event("b", "view", 1.0, 4)], 2, 8)
    assert merged == (full, 0, 0)
    assert merge_histories(full, history_of([Event("b", "view", 1.0, 4)]), 2, 8) is full


@settings(deadline=None)
@given(st.lists(events, min_size=1, max_size=5), st.data())
def test_a_row_with_one_changed_byte_is_recognised(recorded: list[Event], data: st.DataObject) -> None:
    row = bytearray(history_of(recorded, 3).row)
    row[data.draw(st.integers(0, len(row) - 1))] ^= data.draw(st.integers(1, 255))
    with pytest.raises(ValueError, match="history row"):
        History(bytes(row))


def test_a_user_who_comes_back_has_another_origin() -> None:
    first = merge(EMPTY, [Event("a", "view", 1.0, 5)], 10, 7).history
    later = merge(first, [Event("b", "view", 1.0, 6)], 10, 8).history
    assert (first.origin, later.origin, later.with_revision(9).origin) == (7, 7, 7)
    assert history_of([Event("a", "view")]).with_revision(9).origin == 9


def test_events_before_a_time_can_be_left_out() -> None:
    history = history_of(
        [Event(item_id, "view", 1.0, second) for item_id, second in zip("abcd", (1, 2, 2, 3), strict=True)]
    )
    assert history.since(2).item_ids == ["b", "c", "d"]
    assert history.since(1) is history
    assert len(history.since(4)) == len(EMPTY.since(0)) == 0
