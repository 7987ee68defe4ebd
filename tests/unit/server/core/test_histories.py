import logging

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.core.histories import DAMAGED, Histories
from server.core.history import ACTION_HASH, EMPTY, TIMESTAMP, Event, History, column_of, history_of

events = st.builds(Event, st.sampled_from("ab"), st.sampled_from(["view", "buy"]), st.floats(0, 9), st.integers(0, 5))
some = st.lists(st.lists(events, max_size=8).map(history_of), max_size=6)


@settings(deadline=None)
@given(some, st.integers(0, 10))
def test_the_newest_numbers_are_the_ends_of_the_columns(listed: list[History], count: int) -> None:
    histories = Histories.of(listed)
    newest = histories.newest(np.full(len(listed), count))
    ends = [slice(max(0, len(history) - count), None) for history in listed]
    timestamps = [time for history, end in zip(listed, ends, strict=True) for time in history.timestamps[end].tolist()]
    hashes = [one for history, end in zip(listed, ends, strict=True) for one in history.action_hashes[end].tolist()]
    assert column_of(newest, TIMESTAMP).tolist() == timestamps
    assert column_of(newest, ACTION_HASH).tolist() == hashes


@settings(deadline=None)
@given(some, st.integers(1, 10))
def test_events_tied_with_the_oldest_of_the_newest_are_counted(listed: list[History], count: int) -> None:
    expected = [
        int((history.timestamps >= history.timestamps[-min(count, len(history))]).sum()) if history else 0
        for history in listed
    ]
    assert Histories.of(listed).counts_with_ties(count).tolist() == expected


def test_stored_rows_are_checked_and_a_damaged_one_is_none(caplog: pytest.LogCaptureFixture) -> None:
    good = history_of([Event("secret-item", "view")], revision=7)
    damaged = good.row[:-1] + b"x"
    with caplog.at_level(logging.ERROR):
        histories = Histories.read([good.row, None, damaged, b""])
    assert histories.rows == [good.row, EMPTY.row, DAMAGED, DAMAGED]
    assert histories.counts.tolist() == [1, 0, 0, 0]
    assert [history and history.revision for history in histories][:1] == [7]
    assert histories[1] is not None
    assert histories[2] is None
    assert caplog.text.count("a stored history is damaged") == 2
    assert "secret-item" not in caplog.text


def test_histories_are_joined_in_order() -> None:
    listed = [history_of([Event("a", "view", 1.0, time)] * size) for time, size in enumerate((3, 1, 0, 2))]
    histories = Histories.of(listed)
    joined = Histories.joined([histories[2:], histories[:2]])
    assert joined.counts.tolist() == [0, 2, 3, 1]
    assert [history.row for history in joined if history is not None] == [listed[place].row for place in (2, 3, 0, 1)]
    assert len(Histories.joined([])) == 0
